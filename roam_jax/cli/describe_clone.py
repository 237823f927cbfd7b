"""What a cloned policy learns from: demonstrations of each body, in words and pictures."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import ml_collections
import numpy as np

from roam_jax.data.demonstration_batches import ACTION
from roam_jax.data.demonstrations import Demonstrations
from roam_jax.files import write_atomically
from roam_jax.morphology import JOINTS, PIXELS
from roam_jax.tasks.clone import fields_of
from roam_jax.tasks.clone_build import TRAIN, CloneExperiment, clone_experiment
from roam_jax.viz.actions import draw_action_chunks

# Rows of a batch that are drawn of each body.
DRAWN = 3


def describe_clone(name: str, config: ml_collections.ConfigDict, out: pathlib.Path | None) -> None:
    """Prints the report and, with a folder, writes data.json and pictures of rows there.

    Demonstrations are made where they are not there.

    Args:
        name: of the config, for the report.
        config: the whole config.
        out: an existing folder, or None.

    Raises:
        ValueError: as `clone_experiment`, or damaged demonstrations.
    """
    experiment = clone_experiment(config)
    figures = {body: body_figures(found) for body, found in experiment.splits[TRAIN].bodies.items()}
    splits = {split: source.describe() for split, source in experiment.splits.items()}
    report = {"name": name, "splits": splits, "bodies": figures}
    print(f"{name}: environment {config.data.environment}, an expert's episodes")
    print("\n".join([*split_lines(experiment), *figure_lines(figures)]))
    if out:
        write_atomically(out / "data.json", json.dumps(report, indent=1) + "\n")
        print(f"report:  {out / 'data.json'}")
        for path in draw_rows(experiment, out):
            print(f"picture: {path}")


def body_figures(found: Demonstrations) -> list[dict[str, Any]]:
    """Stream or action -> the range of each of its numbers, in its units; ready for JSON."""
    units = {stream.name: list(stream.dimensions) for stream in found.spec.streams}
    values = {name: found.observations[name] for name in units} | {"action": found.actions}
    units["action"] = list(found.spec.morphology.joint_names)
    return [
        {
            "stream": name,
            "numbers": units[name],
            **{
                about: measure(np.float64(x.reshape(-1, x.shape[-1])), axis=0).tolist()
                for about, measure in (
                    ("least", np.min),
                    ("most", np.max),
                    ("mean", np.mean),
                    ("deviation", np.std),
                )
            },
        }
        for name, x in values.items()
    ]


def split_lines(experiment: CloneExperiment) -> Iterator[str]:
    """A line for each split and body: episodes, steps, and what was dropped."""
    width = 1 + max(map(len, experiment.specs))
    for split, source in experiment.splits.items():
        for body, about in source.describe().items():
            dropped = [f"{count:,} dropped ({why})" for why, count in about["dropped"].items()]
            yield (
                f"{split:<6}{body:<{width}}{about['episodes']:,} episodes, {about['steps']:,} "
                f"steps; {', '.join(dropped) or 'none dropped'}"
            )


def figure_lines(figures: Mapping[str, list[dict[str, Any]]]) -> Iterator[str]:
    """A line for each number of each stream of `body_figures`, by body."""
    for body, streams in figures.items():
        yield f"{body}"
        yield f"  {'stream':<10}{'number':<18}{'least':>9}{'most':>9}{'mean':>9}{'deviation':>11}"
        for row in streams:
            for i, number in enumerate(row["numbers"]):
                yield (
                    f"  {row['stream']:<10}{number:<18}{row['least'][i]:>9.3f}"
                    f"{row['most'][i]:>9.3f}{row['mean'][i]:>9.3f}{row['deviation'][i]:>11.3f}"
                )


def draw_rows(experiment: CloneExperiment, out: pathlib.Path) -> Iterator[pathlib.Path]:
    """Draws the actions of the first rows of the first batch, a picture for each body."""
    batch = next(experiment.batches())
    for body, spec in experiment.specs.items():
        actions = fields_of(batch, body)[ACTION][:DRAWN]
        count, _, joints = actions.shape
        path = out / f"first_batch_{body}.png"
        draw_action_chunks(
            path,
            past=np.zeros((count, 0, joints), np.float32),
            recorded=actions,
            predicted=np.zeros((count, 0, joints), np.float32),
            names=spec.morphology.joint_names,
            units=("1",) * joints,
            titles=[f"{body}, row {row}" for row in range(count)],
        )
        yield path


def stream_lines(experiment: CloneExperiment) -> Iterator[str]:
    """A line for each body: its joints, what else it sees, and its cells."""
    for body, model in experiment.model.bodies.items():
        spec, layout = model.spec, model.module.layout
        streams = [s for s in spec.streams if s.name == JOINTS or s.name in layout.regions]
        seen = [f"{s.name} {s.cells} x {len(s.dimensions)}" for s in streams]
        seen += [PIXELS] if model.sees_pixels else []
        cells = sum(map(layout.region_numel, layout.regions))
        yield (
            f"{body}: {len(spec.morphology)} joints, {cells} cells, sees {', '.join(seen)}; "
            f"{model.chunk} actions of {spec.period:g} s at once"
        )
