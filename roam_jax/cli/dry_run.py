"""What a run will do, before it does it: parameters, bytes, batch, a picture of the data."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

import jax
import numpy as np

from roam_jax.contracts import ACTION_NAMES, Params
from roam_jax.data.loader import make_loader
from roam_jax.evaluate.pictures import window_titles
from roam_jax.tasks.build import Experiment
from roam_jax.train import names
from roam_jax.viz.batch import draw_windows

# float32 value and gradient, and Adam's two float32 moments; frozen weights have 16 bits.
BYTES_TRAINED, BYTES_FROZEN = 16, 2
WINDOWS_DRAWN = 3


def parameter_group(name: str) -> str:
    """loop, decoder, graft, vae or backbone."""
    if name.startswith("blocks/loop/"):
        return "loop"
    if name.startswith("graft/decoder/"):
        return "decoder"
    prefix = name.split("/")[0]
    return prefix if prefix in ("graft", "vae") else "backbone"


def count_parameters(shapes: Params, trainable: tuple[str, ...]) -> dict[tuple[str, bool], int]:
    """(group, whether it trains) -> number of parameters."""
    counts: dict[tuple[str, bool], int] = {}
    for name, leaf in names.flatten(shapes).items():
        key = parameter_group(name), names.matches(name, trainable)
        counts[key] = counts.get(key, 0) + int(np.prod(leaf.shape))
    return counts


def describe_run(experiment: Experiment) -> Iterator[str]:
    """Lines of the report: parameters and bytes by group, data, batch shapes."""
    shapes = jax.eval_shape(experiment.task.init, jax.random.key(0))
    counts = count_parameters(shapes, experiment.task.trainable)
    yield f"{'parameters':<12}{'':<9}{'count':>15}{'MiB':>11}"
    for (group, trains), count in sorted(counts.items()):
        size = count * (BYTES_TRAINED if trains else BYTES_FROZEN) / 2**20
        yield f"  {group:<10}{'trained' if trains else 'frozen':<9}{count:>15,}{size:>11.1f}"
    yield "  (trained: float32 with gradient and two moments; frozen: 16 bits)"
    for split in (experiment.train, experiment.val):
        about = split.describe()
        yield (
            f"{about['split']:<6}{about['episodes']:,} episodes, {about['windows']:,} windows of "
            f"{about['frames']} frames, {about['left_out']} episodes too short"
        )
    yield "batch"
    total = 0
    for name, spec in experiment.task.batch_spec.items():
        total += spec.nbytes
        yield f"  {name:<18}{np.dtype(spec.dtype).name:<9}{spec.shape}"
    yield f"  {total / 2**20:.1f} MiB"


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
