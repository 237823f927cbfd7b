"""Batches of demonstrations: what each body saw, and the actions that its expert took from there.

Demonstrations are in memory. Which rows a batch holds is a function of the run's seed and the
batch's position alone, drawn with replacement, so that the position is all that a resumed run
needs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int

from roam_jax.contracts import Batch
from roam_jax.data.loader import check_seed
from roam_jax.data.position import Process, place_of, saved_position
from roam_jax.morphology import WorldSpec

# Fields of a batch beside the observed streams.
ACTION, MASK = "action", "mask"


@runtime_checkable
class Recorded(Protocol):
    """One split of a body's demonstrations, steps of an episode one after another.

    Attributes:
        spec: the world.
        observations: stream -> (N, cells, numbers) in its units.
        actions: the expert's, in [-1, 1].
        episode: of each step.
        fingerprint: of all that is held.
    """

    spec: WorldSpec
    observations: Mapping[str, np.ndarray]
    actions: Float[np.ndarray, "N J"]
    episode: Int[np.ndarray, " N"]
    fingerprint: str


class Chunks:
    """Rows of a body's demonstrations with the actions that follow each.

    Args:
        recorded: the demonstrations.
        chunk: actions P of a row.

    Raises:
        ValueError: no steps, episodes that do not lie one after another, or a chunk below 1.
    """

    def __init__(self, recorded: Recorded, *, chunk: int):
        if chunk < 1:
            raise ValueError(f"data.chunk = {chunk}: expected at least 1")
        episode, name = np.asarray(recorded.episode), recorded.spec.name
        if not len(episode):
            raise ValueError(f"demonstrations of {name} hold no step: expected at least one")
        starts = np.flatnonzero(np.r_[True, episode[1:] != episode[:-1]])
        if len(np.unique(episode)) != len(starts):
            raise ValueError(
                f"demonstrations of {name}: steps of an episode lie apart; expected one episode "
                "after another"
            )
        ends = np.r_[starts[1:], len(episode)]
        self.recorded = recorded
        self._last = np.repeat(ends - 1, ends - starts)
        self._ahead = np.arange(chunk)

    def __len__(self) -> int:
        return len(self._last)

    def __getitem__(self, rows: Int[np.ndarray, " B"]) -> dict[str, np.ndarray]:
        """Stream -> (B, cells, numbers), `ACTION` (B, P, J) and `MASK` (B, P).

        Behind an episode's end the mask is False and the actions repeat its last one.
        """
        places = rows[:, None] + self._ahead
        last = self._last[rows, None]
        chunks = self.recorded.actions[np.minimum(places, last)]
        seen = {name: values[rows] for name, values in self.recorded.observations.items()}
        return {**seen, ACTION: np.asarray(chunks, np.float32), MASK: places <= last}


class DemonstrationBatches(Iterator[Batch]):
    """Endless batches, of every body as many rows; the position can be saved and restored.

    Fields are "BODY/STREAM", "BODY/action" and "BODY/mask".

    Args:
        recorded: body -> its demonstrations.
        batch_size: rows of a batch, over all bodies and processes.
        chunk: actions P of a row.
        seed: by which rows are drawn.
        process: which rows of each batch are made here; None = all.

    Raises:
        ValueError: a number is out of range, bodies and processes do not divide the batch, or as
            `Chunks`.
    """

    def __init__(
        self,
        recorded: Mapping[str, Recorded],
        *,
        batch_size: int,
        chunk: int,
        seed: int,
        process: Process | None = None,
    ):
        check_seed(seed)
        self._rows = body_rows(batch_size, bodies=len(recorded))
        index, count = place_of(process)
        if self._rows % count:
            raise ValueError(
                f"train.batch_size = {batch_size}: {self._rows} rows of each of {len(recorded)} "
                f"bodies do not divide by {count} processes"
            )
        here = self._rows // count
        self._here = slice(index * here, (index + 1) * here)
        self._chunks = {body: Chunks(r, chunk=chunk) for body, r in recorded.items()}
        self._identity = {
            "seed": seed,
            "batch_size": batch_size,
            "chunk": chunk,
            "demonstrations": {body: r.fingerprint for body, r in recorded.items()},
        }
        self._position = 0

    def __next__(self) -> Batch:
        key = np.array([self._identity["seed"], self._position], np.uint64)
        rng = np.random.Generator(np.random.Philox(key=key))
        self._position += 1
        batch = {}
        for body, chunks in self._chunks.items():
            rows = rng.integers(len(chunks), size=self._rows)[self._here]
            batch |= {f"{body}/{name}": values for name, values in chunks[rows].items()}
        return batch

    def get_state(self) -> dict[str, Any]:
        """JSON-serialisable position: `set_state` with it makes the same next batch."""
        return {**self._identity, "position": self._position}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes to a saved position; another number of processes is right.

        Raises:
            ValueError: the state is of another seed, batch size, chunk or other demonstrations.
        """
        self._position = saved_position(state, self._identity)

    def close(self) -> None:
        """Nothing is held open."""


def body_rows(batch_size: int, *, bodies: int) -> int:
    """Rows of each body in a batch.

    Raises:
        ValueError: the batch does not divide by the bodies.
    """
    if batch_size < 1 or batch_size % bodies:
        below = batch_size // bodies * bodies
        near = f"{below} or {below + bodies}" if below > 0 else str(bodies)
        raise ValueError(
            f"train.batch_size = {batch_size} does not divide by {bodies} bodies (nearest: {near})"
        )
    return batch_size // bodies
