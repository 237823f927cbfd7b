"""From windows to batches in a reproducible order: batch k is a function of (seed, k).

Grain shuffles the windows of each member anew in every epoch, interleaves members in the given
proportions and repeats before it batches, so that no window is lost where epochs and batches do
not divide. All of it is arithmetic on indices: there is no shuffle buffer, and the position in the
data is one number. Processes of a cluster each make their own rows of every batch, and worker
processes read batches ahead in turn; neither changes what a batch holds, so a run resumes bit for
bit under any number of either.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import grain
import numpy as np
from absl import flags, logging

from roam_jax.contracts import Batch
from roam_jax.data.latents import LatentSource
from roam_jax.data.mixing import Proportions
from roam_jax.data.position import Process, place_of, saved_position
from roam_jax.data.windows import WindowSource

Source = WindowSource | LatentSource

# Without workers, two threads decode ahead of the step; four batches bound the memory.
THREADS = 2
BATCHES_AHEAD = 4
# Batches that each worker holds ready.
WORKER_BATCHES_AHEAD = 2
PARENT_ASKED_EVERY_S = 1.0
# Signals with which a run saves and stops, or writes a profile.
HEEDED_BY_RUNS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
# How batches are made, not what they hold: may differ on a resume, and is told.
READING = ("workers", "processes")


class Loader(Iterator[Batch]):
    """An endless iterator of batches whose position can be saved and restored.

    Use `make_loader`. `close` ends its worker processes.
    """

    def __init__(
        self,
        batches: grain.MapDataset,
        *,
        identity: dict[str, Any],
        workers: int,
        process: Process,
    ):
        self._dataset, self._identity = batches, identity
        self._workers, self._process = workers, process
        self._position = 0
        self._batches = None  # nothing is read before the first batch is asked for

    def __next__(self) -> Batch:
        if self._batches is None:
            self._batches = self._open()
        batch = next(self._batches)
        self._position += 1
        return batch

    def get_state(self) -> dict[str, Any]:
        """JSON-serialisable position: `set_state` with it makes the same next batch."""
        return {**self._identity, "position": self._position, **self._reading()}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes to a saved position.

        Another number of workers or processes is right: batches are the same, and a log line says
        so.

        Raises:
            ValueError: the state is of a loader with another seed, batch size or data.
        """
        position = saved_position(state, self._identity)
        for name, value in self._reading().items():
            if state.get(name, value) != value:
                logging.info(
                    "data goes on with %d %s where %d were: batches are the same",
                    value,
                    name,
                    state[name],
                )
        self.close()
        self._position = position

    def close(self) -> None:
        """Ends worker processes; the next batch starts new ones at the same position."""
        if self._batches is not None:
            self._batches.close()
            self._batches = None

    def _reading(self) -> dict[str, int]:
        return dict(zip(READING, (self._workers, self._process.count), strict=True))

    def _open(self) -> Iterator[Batch]:
        """Reads from the position on: of batches of this process's size, every count-th is ours."""
        index, count = self._process.index, self._process.count
        ours = self._dataset[index + self._position * count :: count]
        threads = grain.ReadOptions(num_threads=THREADS, prefetch_buffer_size=BATCHES_AHEAD)
        if not self._workers:
            return iter(ours.to_iter_dataset(threads))
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Grain's workers are handed the parsed flags
        # The worker processes are the threads.
        alone = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
        options = grain.MultiprocessingOptions(
            num_workers=self._workers, per_worker_buffer_size=WORKER_BATCHES_AHEAD
        )
        batches = ours.to_iter_dataset(alone).mp_prefetch(options, worker_init_fn=_prepare_worker)
        return iter(batches)


def make_loader(
    source: Source | Sequence[tuple[Source, float]],
    *,
    batch_size: int,
    seed: int,
    shuffle: bool = True,
    workers: int = 0,
    process: Process | None = None,
) -> Loader:
    """Endless batches of windows, read ahead.

    Args:
        source: windows, or the members of a mixture with their weights.
        batch_size: windows of a batch over all processes; may exceed the windows that there are.
        seed: fixes the order, 0 <= seed < 2**32.
        shuffle: False keeps the order of each source.
        workers: processes that read ahead; 0 = threads of this one. A program that asks for some
            must be importable (`if __name__ == "__main__"`), because they are spawned.
        process: which rows of each batch are made here; None = all.

    Raises:
        ValueError: a number is out of range, or processes do not divide the batch.
    """
    process = process or Process()
    _check(batch_size=batch_size, seed=seed, workers=workers, process=process)
    members = [(source, 1.0)] if isinstance(source, Source) else list(source)
    order = [
        _member_order(number, source, seed, shuffle) for number, (source, _) in enumerate(members)
    ]
    weights = [weight for _, weight in members]
    indices = order[0]
    if len(order) > 1:
        indices = grain.MapDataset.select_from_datasets(order, Proportions(weights))
    windows = indices.seed(seed).random_map(_Draw([source for source, _ in members]))
    identity = {
        "seed": seed,
        "batch_size": batch_size,
        "shuffle": shuffle,
        "windows": [len(source) for source, _ in members],
        "weights": weights,
        "fingerprint": [source.fingerprint for source, _ in members],
    }
    rows = windows.batch(batch_size // process.count, drop_remainder=True)
    return Loader(rows, identity=identity, workers=workers, process=process)


def check_seed(seed: int) -> None:
    """Refuses a seed that NumPy or JAX would refuse without its name, or cut.

    Raises:
        ValueError: out of range.
    """
    if not 0 <= seed < 1 << 32:
        raise ValueError(f"seed = {seed}: expected 0 <= seed < 2**32")


def member_seed(seed: int, number: int) -> int:
    """Seed of what is drawn for a member of a mixture; the first has the run's own."""
    if not number:
        return seed
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])


def _check(*, batch_size: int, seed: int, workers: int, process: Process) -> None:
    if batch_size < 1:
        raise ValueError(f"train.batch_size = {batch_size}: expected at least 1")
    check_seed(seed)
    if workers < 0:
        raise ValueError(f"data.workers = {workers}: expected 0 or more")
    place_of(process)
    if batch_size % process.count:
        below = batch_size // process.count * process.count
        raise ValueError(
            f"train.batch_size = {batch_size} does not divide by {process.count} processes "
            f"(nearest: {below or process.count} or {below + process.count})"
        )


def _member_order(number: int, source: Source, seed: int, shuffle: bool) -> grain.MapDataset:
    """(member, window) in the order of a member's epochs, without end."""
    order = grain.MapDataset.range(len(source))
    if shuffle:
        order = order.seed(member_seed(seed, number)).shuffle()
    return order.repeat().map(_Tag(number))


def _prepare_worker(index: int, count: int) -> None:
    """In a worker: it ends when its parent ends it or dies, and not before.

    Terminals and schedulers signal every process, but the parent still has batches to take.
    """
    del index, count
    for number in HEEDED_BY_RUNS:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(PARENT_ASKED_EVERY_S)
    os._exit(1)


@dataclasses.dataclass(frozen=True)
class _Tag(grain.transforms.Map):
    """A window's index with its member's number."""

    member: int

    def map(self, element: int) -> tuple[int, int]:
        return self.member, element


@dataclasses.dataclass(frozen=True)
class _Draw(grain.transforms.RandomMap):
    """Reads a window; Grain's generator depends on the seed and the window's place in the order."""

    sources: Sequence[Source]

    def random_map(self, element: tuple[int, int], rng: np.random.Generator) -> Batch:
        member, index = element
        return self.sources[member].draw(int(index), rng)
