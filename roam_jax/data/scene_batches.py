"""Batches of a scene: which examples a step learns from, not what they hold.

A run's examples are numbers 0, 1, 2, ... of the stream that its seed names. Batch k holds numbers
kB to (k + 1)B - 1 of it, so that no example comes twice and the position is one number.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from roam_jax.contracts import ArraySpec, Batch
from roam_jax.data.position import Process, place_of, saved_position
from roam_jax.data.scene_random import VALIDATION_SEED


class SceneBatches(Iterator[Batch]):
    """Endless batches of seeds and numbers; the position can be saved and restored.

    Args:
        batch_size: examples of a batch over all processes.
        seed: names the stream of examples, 0 <= seed < `VALIDATION_SEED`.
        process: which rows of each batch are made here; None = all.

    Raises:
        ValueError: a number is out of range, or processes do not divide the batch.
    """

    def __init__(self, *, batch_size: int, seed: int, process: Process | None = None):
        if batch_size < 1:
            raise ValueError(f"train.batch_size = {batch_size}: expected at least 1")
        if not 0 <= seed < VALIDATION_SEED:
            raise ValueError(
                f"seed = {seed}: expected 0 <= seed < 2**32 - 1 (2**32 - 1 is of the examples that "
                "models are validated on)"
            )
        index, count = place_of(process)
        if batch_size % count:
            below = batch_size // count * count
            raise ValueError(
                f"train.batch_size = {batch_size} does not divide by {count} processes "
                f"(nearest: {below or count} or {below + count})"
            )
        self._batch_size, self._seed = batch_size, seed
        self._rows = batch_size // count
        self._first = index * self._rows
        self._position = 0

    def __next__(self) -> Batch:
        start = self._position * self._batch_size + self._first
        self._position += 1
        return scene_batch(self._seed, start, self._rows)

    def get_state(self) -> dict[str, Any]:
        """JSON-serialisable position: `set_state` with it makes the same next batch."""
        return {**self._identity(), "position": self._position}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes to a saved position; another number of processes is right.

        Raises:
            ValueError: the state is of another seed or batch size.
        """
        self._position = saved_position(state, self._identity())

    def close(self) -> None:
        """Nothing is held open."""

    def _identity(self) -> dict[str, int]:
        return {"seed": self._seed, "batch_size": self._batch_size}


def scene_batch(seed: int, start: int, count: int) -> Batch:
    """Examples `start` to `start + count - 1` of a stream; after 2**32 it begins again."""
    numbers = np.arange(start, start + count, dtype=np.uint64)
    return {
        "scene_seed": np.full(count, seed, np.uint32),
        "scene_index": numbers.astype(np.uint32),
    }


def validation_batch(start: int, count: int) -> Batch:
    """Examples that no training run sees, from number `start` on."""
    return scene_batch(VALIDATION_SEED, start, count)


def scene_batch_spec(batch_size: int) -> dict[str, ArraySpec]:
    """Shapes of a global batch, for `Task.batch_spec`."""
    spec = ArraySpec((batch_size,), np.dtype(np.uint32))
    return {"scene_seed": spec, "scene_index": spec}
