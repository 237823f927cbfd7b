"""Parameters of a task by group: what trains of them, and how they are stored."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from roam_jax.contracts import Task
from roam_jax.train import names

# Group -> its parameters' names; the first expression found decides.
GROUPS = {
    "loop": r"^blocks/loop/",
    "decoder": r"^graft/(\w+_)?decoder/",
    "encoders": r"^graft/",
    "vae": r"^(vae|encoder|decoder)/",  # the last two where the VAE itself trains
    "backbone": "",
}
# The same of a canvas model.
CANVAS_GROUPS = {
    "loop": r"^blocks/loop/",
    "blocks": r"^(blocks|norm_out)/",
    "encoders": r"^cells/",
    "decoders": r"^decoders/",
    "balance": "",
}
# float32 value, gradient, and Adam's two moments.
BYTES_TRAINED = 16
# How frozen weights were published, where no file is at hand to say it.
PUBLISHED = np.dtype(np.float16)
Stored = Mapping[str, jax.ShapeDtypeStruct]


def parameter_group(name: str, groups: Mapping[str, str] = GROUPS) -> str:
    """Which group a parameter belongs to; "encoders" are those of the new cells."""
    return next(group for group, pattern in groups.items() if re.search(pattern, name))


def stored_parameters(task: Task) -> Stored:
    """Name -> shape and storage dtype of every parameter; nothing is allocated.

    What trains is float32. Frozen parameters have `task.frozen_dtype`, else that of their file,
    else 16 bits, as published.
    """
    shapes = names.flatten(jax.eval_shape(task.init, jax.random.key(0)))
    files = names.flatten(task.pretrained()) if task.pretrained else {}

    def dtype(name: str) -> np.dtype:
        if names.matches(name, task.trainable):
            return np.dtype(np.float32)
        return np.dtype(task.frozen_dtype or getattr(files.get(name), "dtype", PUBLISHED))

    return {n: jax.ShapeDtypeStruct(leaf.shape, dtype(n)) for n, leaf in shapes.items()}


def count_parameters(
    stored: Stored, trainable: Sequence[str], *, groups: Mapping[str, str] = GROUPS
) -> list[dict]:
    """{"group", "trains", "count", "bytes"}, a group's trained and frozen parameters apart.

    Args:
        stored: from `stored_parameters`.
        trainable: regular expressions of what trains; its bytes include gradient and moments.
        groups: `GROUPS`, or `CANVAS_GROUPS` of a canvas model.
    """
    rows: dict[tuple[str, bool], dict] = {}
    for name, leaf in stored.items():
        key = parameter_group(name, groups), names.matches(name, trainable)
        empty = {"group": key[0], "trains": key[1], "count": 0, "bytes": 0}
        row = rows.setdefault(key, empty)
        row["count"] += leaf.size
        row["bytes"] += leaf.size * (BYTES_TRAINED if row["trains"] else leaf.dtype.itemsize)
    return [rows[key] for key in sorted(rows)]


def trained_by_policy(
    stored: Stored, policies: Mapping[str, Sequence[str]]
) -> dict[str, dict[str, int]]:
    """Policy -> group -> how many parameters it trains; groups without any are left out.

    Args:
        stored: from `stored_parameters`.
        policies: policy -> regular expressions of what it trains.
    """
    return {
        policy: {
            row["group"]: row["count"]
            for row in count_parameters(stored, patterns)
            if row["trains"]
        }
        for policy, patterns in policies.items()
    }
