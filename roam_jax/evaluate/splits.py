"""The splits of a run with one dataset or several, and each dataset's own part of a batch.

Members of a mixture are measured apart: a mean over robots with other units and other rates would
say nothing of any of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float

from roam_jax.data.windows import WindowSource
from roam_jax.tasks.build import Experiment


def own_train_split(split: str) -> str:
    """The train split of the same dataset: "train" of "val", "train/NAME" of "val/NAME"."""
    _, *member = split.split("/", 1)
    return "/".join(["train", *member])


def by_member(
    experiment: Experiment, measure: Callable[[WindowSource], dict[str, float]]
) -> dict[str, float]:
    """Figures of each validation split; those of a member of a mixture as "NAME/figure"."""
    return {
        f"{member.name}/{name}" if member.name else name: value
        for member in experiment.members
        for name, value in measure(member.val).items()
    }


def own_dimensions(rows: Any, source: WindowSource, stream: str) -> Float[np.ndarray, "*rows D"]:
    """What a dataset has of rows in the dimensions of a mixture.

    Args:
        rows: (..., dimensions of the mixture), of a batch or predicted.
        source: windows of the dataset.
        stream: "actions", "proprio" or "reward".
    """
    places = {"actions": source.action_places, "proprio": source.proprio_places}.get(stream)
    rows = np.asarray(rows)
    return rows if places is None else rows[..., places]


def file_name(name: str) -> str:
    """A split, or a member of a mixture, as part of a file's name."""
    return name.replace("/", "_")
