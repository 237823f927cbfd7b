"""What a run will do, before it does it: parameters, bytes, batch, a picture of the data."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

import numpy as np

from roam_jax.cli.describe_clone import draw_rows, split_lines, stream_lines
from roam_jax.cli.describe_scene import draw_some_examples, scene_lines
from roam_jax.cli.describe_text import batch_lines, parameter_lines
from roam_jax.contracts import Batch
from roam_jax.data.loader import make_loader
from roam_jax.evaluate.parameters import (
    CANVAS_GROUPS,
    GROUPS,
    count_parameters,
    stored_parameters,
)
from roam_jax.evaluate.pictures import window_titles
from roam_jax.evaluate.splits import own_dimensions
from roam_jax.tasks.build import Experiment
from roam_jax.tasks.clone_build import CloneExperiment
from roam_jax.tasks.experiment import Trainable
from roam_jax.tasks.scene_build import SceneExperiment
from roam_jax.viz.batch import draw_windows

WINDOWS_DRAWN = 3


def describe_run(experiment: Trainable) -> Iterator[str]:
    """Lines of the report: parameters and bytes by group, data, batch shapes."""
    task, canvas = experiment.task, isinstance(experiment, SceneExperiment | CloneExperiment)
    groups = CANVAS_GROUPS if canvas else GROUPS
    yield from parameter_lines(
        count_parameters(stored_parameters(task), task.trainable, groups=groups)
    )
    if isinstance(experiment, CloneExperiment):
        yield from stream_lines(experiment)
        yield from split_lines(experiment)
    elif canvas:
        yield from scene_lines(experiment.model)
    else:
        yield from _data_lines(experiment)
    yield from batch_lines(task.batch_spec)


def _data_lines(experiment: Experiment) -> Iterator[str]:
    width = 1 + max(5, *map(len, experiment.splits))
    for name, source in experiment.splits.items():
        about = source.describe()
        left_out = [f"{count:,} left out ({why})" for why, count in about["left_out"].items()]
        yield (
            f"{name:<{width}}"
            f"{about['episodes']:,} episodes, {about['windows']:,} windows of {about['frames']} "
            f"frames; {', '.join(left_out) or 'no episode left out'}"
        )
    for source in experiment.latents:
        about = source.describe()["latents"]
        yield (
            f"latents: {about['windows']:,} windows, {about['copies']} of each, in "
            f"{about['folder']} ({about['bytes'] / 1e6:,.1f} MB)"
        )


def dry_run(experiment: Trainable, workdir: pathlib.Path) -> None:
    """Prints the report and draws the first training windows to workdir/first_batch.png.

    Of a cloned policy there is a picture for each body.
    """
    for line in describe_run(experiment):
        print(line)
    workdir.mkdir(parents=True, exist_ok=True)
    if isinstance(experiment, CloneExperiment):
        for picture in draw_rows(experiment, workdir):
            print(f"picture: {picture}")
        return
    picture = workdir / "first_batch.png"
    if isinstance(experiment, SceneExperiment):
        batch = next(experiment.batches())
        draw_some_examples(picture, experiment.model, batch, title="train example")
    else:
        draw_first_batch(experiment, picture)
    print(f"picture: {picture}")


def draw_first_batch(experiment: Experiment, picture: pathlib.Path) -> None:
    """Draws some windows of the batch that a run would see first."""
    config, members = experiment.config, experiment.members
    batch = next(
        make_loader(
            [(member.train, member.weight) for member in members],
            batch_size=config.train.batch_size,
            seed=config.seed,
        )
    )
    batch = {name: values[:WINDOWS_DRAWN] for name, values in batch.items()}
    drawn = [members[number].train for number in batch["dataset"].tolist()]
    videos = [
        batch["frames"],
        *np.moveaxis(batch.get("camera_frames", batch["frames"][:, :0]), 1, 0),
    ]
    draw_windows(
        picture,
        frames=dict(zip(config.data.cameras, videos, strict=True)),
        actions=[
            np.concatenate(
                [
                    own_dimensions(batch[field][i], source, "actions")
                    for field in ("past_actions", "action_chunk")
                ]
            )
            for i, source in enumerate(drawn)
        ],
        observed=experiment.time.observed_frames,
        names=[source.statistics.actions.spec.names for source in drawn],
        titles=_titles(experiment, batch),
    )


def _titles(experiment: Experiment, batch: Batch) -> list[str]:
    """One for each window, each of its own member."""
    titles = []
    for i, number in enumerate(batch["dataset"].tolist()):
        member, row = experiment.members[number], slice(i, i + 1)
        split = f"train/{member.name}" if member.name else "train"
        titles += window_titles(split, member.train, batch["episode"][row], batch["start"][row])
    return titles
