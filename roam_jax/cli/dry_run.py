"""What a run will do, before it does it: parameters, bytes, batch, a picture of the data."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

import numpy as np

from roam_jax.cli.describe_text import batch_lines, parameter_lines
from roam_jax.contracts import ACTION_NAMES
from roam_jax.data.loader import make_loader
from roam_jax.evaluate.parameters import count_parameters, stored_parameters
from roam_jax.evaluate.pictures import window_titles
from roam_jax.tasks.build import Experiment
from roam_jax.viz.batch import draw_windows

WINDOWS_DRAWN = 3


def describe_run(experiment: Experiment) -> Iterator[str]:
    """Lines of the report: parameters and bytes by group, data, batch shapes."""
    task = experiment.task
    yield from parameter_lines(count_parameters(stored_parameters(task), task.trainable))
    for split in (experiment.train, experiment.val):
        about = split.describe()
        yield (
            f"{about['split']:<6}{about['episodes']:,} episodes, {about['windows']:,} windows of "
            f"{about['frames']} frames, {about['left_out']} episodes too short"
        )
    yield from batch_lines(task.batch_spec)


def dry_run(experiment: Experiment, workdir: pathlib.Path) -> None:
    """Prints the report and draws the first training windows to workdir/first_batch.png."""
    for line in describe_run(experiment):
        print(line)
    workdir.mkdir(parents=True, exist_ok=True)
    picture = workdir / "first_batch.png"
    draw_first_batch(experiment, picture)
    print(f"picture: {picture}")


def draw_first_batch(experiment: Experiment, picture: pathlib.Path) -> None:
    """Draws some windows of the batch that a run would see first."""
    train, config = experiment.train, experiment.config
    loader = make_loader(train, batch_size=config.train.batch_size, seed=config.seed)
    batch = {name: values[:WINDOWS_DRAWN] for name, values in next(loader).items()}
    draw_windows(
        picture,
        frames=batch["frames"],
        actions=np.concatenate([batch["past_actions"], batch["action_chunk"]], axis=1),
        observed=experiment.time.observed_frames,
        names=ACTION_NAMES,
        titles=window_titles(train, batch["episode"], batch["start"]),
    )
