"""`python -m roam_jax describe --what data` of a canvas model: what its scene makes."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import ml_collections
import numpy as np

from roam_jax.contracts import Batch
from roam_jax.data.scene_batches import validation_batch
from roam_jax.files import write_atomically
from roam_jax.tasks.canvas import SceneModel
from roam_jax.tasks.cell_values import cell_count
from roam_jax.tasks.scene_build import scene_experiment
from roam_jax.viz.scenes import draw_examples

# Examples by which the streams are summed up, and those that are drawn.
MEASURED, DRAWN = 1024, 3


def describe_scene(name: str, config: ml_collections.ConfigDict, out: pathlib.Path | None) -> None:
    """Prints the report and, with a folder, writes data.json and a picture of examples there.

    Args:
        name: of the config, for the report.
        config: the whole config.
        out: an existing folder, or None.

    Raises:
        ValueError: as `scene_experiment`.
    """
    model = scene_experiment(config).model
    report = {"name": name, "scene": config.data.scene, "streams": list(stream_figures(model))}
    print(f"{name}: scene {config.data.scene}, made as a run goes")
    print("\n".join(figure_lines(report["streams"])))
    if out:
        write_atomically(out / "data.json", json.dumps(report, indent=1) + "\n")
        print(f"report:  {out / 'data.json'}")
        picture = out / "examples.png"
        draw_some_examples(picture, model, validation_batch(0, DRAWN), title="validation example")
        print(f"picture: {picture}")


def scene_lines(model: SceneModel) -> Iterator[str]:
    """A line for each stream: its role, kind, shape and cells."""
    width = 2 + max(map(len, model.streams))
    yield f"  {'stream':<{width}}{'role':<8}{'kind':<9}{'shape':<18}{'cells':>6}  learned by"
    for name, stream in model.streams.items():
        shape = " x ".join(map(str, stream.shape))
        yield (
            f"  {name:<{width}}{stream.role:<8}{stream.kind:<9}{shape:<18}"
            f"{cell_count(stream):>6}  {stream.objective or '-'}"
        )


def stream_figures(model: SceneModel) -> Iterator[dict[str, Any]]:
    """What each stream holds, over examples that no run trains on; ready for JSON.

    Of tokens "shares" are those of each word, and "majority" is the mean over cells of the share of
    a cell's most frequent word: what is right without looking. Of numbers, "mean", "deviation",
    "least" and "most".
    """
    batch = validation_batch(0, MEASURED)
    values = jax.device_get(
        jax.jit(model.scene.examples)(batch["scene_seed"], batch["scene_index"])
    )
    words = getattr(model.scene, "words", ())
    for name, stream in model.streams.items():
        found: dict[str, Any] = {
            "name": name,
            "role": stream.role,
            "kind": stream.kind,
            "shape": list(stream.shape),
            "cells": cell_count(stream),
            "objective": stream.objective,
        }
        if stream.kind == "tokens":
            counts = np.stack([np.bincount(v, minlength=stream.vocabulary) for v in values[name].T])
            names = words[: stream.vocabulary] or tuple(map(str, range(stream.vocabulary)))
            shares = counts.sum(axis=0) / counts.sum()
            found["shares"] = dict(zip(names, shares.tolist(), strict=True))
            found["majority"] = float((counts.max(axis=1) / MEASURED).mean())
        else:
            x = values[name].astype(np.float64)
            found |= {"mean": x.mean(), "deviation": x.std(), "least": x.min(), "most": x.max()}
            found = {k: float(v) if isinstance(v, np.floating) else v for k, v in found.items()}
        yield found


def figure_lines(streams: list[dict[str, Any]]) -> Iterator[str]:
    """A line for each stream of `stream_figures`."""
    width = 2 + max(len(row["name"]) for row in streams)
    yield f"  {'stream':<{width}}{'role':<8}{'kind':<9}{'shape':<18}{'cells':>6}  values"
    for row in streams:
        shape = " x ".join(map(str, row["shape"]))
        if "shares" in row:
            about = (
                f"{len(row['shares'])} words; the usual one of its cell in {row['majority']:.1%}"
            )
        else:
            about = (
                f"{row['least']:.2f} to {row['most']:.2f}, mean {row['mean']:.2f}, deviation "
                f"{row['deviation']:.2f}"
            )
        yield (
            f"  {row['name']:<{width}}{row['role']:<8}{row['kind']:<9}{shape:<18}"
            f"{row['cells']:>6}  {about}"
        )


def draw_some_examples(path: pathlib.Path, model: SceneModel, batch: Batch, *, title: str) -> None:
    """Draws the first examples of a batch.

    Args:
        path: the PNG.
        model: whose scene makes them.
        batch: their seeds and numbers.
        title: what they are called, before their number.
    """
    seeds, numbers = (batch[name][:DRAWN] for name in ("scene_seed", "scene_index"))
    examples = jax.device_get(jax.jit(model.scene.examples)(seeds, numbers))
    titles = [f"{title} {number}" for number in numbers.tolist()]
    draw_examples(path, model.scene, examples, titles)
