"""From a dataset's folder to batches in a reproducible order: batch k is a function of (seed, k).

Grain shuffles windows anew in every epoch and repeats before it batches, so that no window is lost
where epochs and batches do not divide. The state of the iterator is one number beside what it is a
state of; a resume under other settings is refused, because it would change the order in silence.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

import grain

from roam_jax.contracts import Batch, TimeSpec
from roam_jax.data.dataset import EpisodeReader
from roam_jax.data.statistics import RobotStatistics, cached_statistics
from roam_jax.data.windows import LANGUAGE_EMBEDDING, WindowSource

# Two threads decode ahead of the step; four batches bound the memory.
THREADS = 2
BATCHES_AHEAD = 4


def split_windows(
    root: str | os.PathLike,
    *,
    camera: str,
    image_size: int,
    time: TimeSpec,
    text: str | os.PathLike = LANGUAGE_EMBEDDING,
) -> tuple[WindowSource, WindowSource, RobotStatistics]:
    """Windows of the train and val splits, both scaled by statistics of the train split alone.

    Raises:
        FileNotFoundError, ValueError: as `EpisodeReader`, `WindowSource`, `cached_statistics`;
            or an episode lies in both splits.
    """
    train, val = (EpisodeReader(root, split, camera=camera) for split in ("train", "val"))
    shared = {h.name for h in train.headers} & {h.name for h in val.headers}
    if shared:
        raise ValueError(
            f"{train.root}: {len(shared)} episodes lie in both train and val, such as "
            f"{min(shared)}; expected splits without a common episode"
        )
    statistics = cached_statistics(train)
    sources = (
        WindowSource(reader, time, image_size=image_size, statistics=statistics, text=text)
        for reader in (train, val)
    )
    return *sources, statistics


class Loader(Iterator[Batch]):
    """An endless iterator of batches whose position can be saved and restored.

    Use `make_loader`.
    """

    def __init__(self, batches: grain.MapDataset, *, identity: dict[str, Any]):
        self._identity = identity
        options = grain.ReadOptions(num_threads=THREADS, prefetch_buffer_size=BATCHES_AHEAD)
        self._batches = iter(batches.to_iter_dataset(options))

    def __next__(self) -> Batch:
        return next(self._batches)

    def get_state(self) -> dict[str, Any]:
        """JSON-serialisable position: `set_state` with it makes the same next batch."""
        return {**self._identity, "iterator": self._batches.get_state()}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes to a saved position.

        Raises:
            ValueError: the state is of a loader with another seed, batch size or data.
        """
        differing = [
            f"{name}: saved {state.get(name)!r}, now {value!r}"
            for name, value in self._identity.items()
            if state.get(name) != value
        ]
        if differing:
            raise ValueError(f"data state of another loader: {'; '.join(differing)}")
        self._batches.set_state(state["iterator"])


def make_loader(
    source: grain.sources.RandomAccessDataSource,
    *,
    batch_size: int,
    seed: int,
    shuffle: bool = True,
) -> Loader:
    """Endless batches of windows, read ahead by threads.

    Args:
        source: `WindowSource`, or what `encode_windows` made of one.
        batch_size: windows of a batch; may exceed the windows that there are.
        seed: fixes the order, 0 <= seed < 2**32.
        shuffle: False keeps the order of the source.

    Raises:
        ValueError: `batch_size` or `seed` is out of range.
    """
    if batch_size < 1:
        raise ValueError(f"train.batch_size = {batch_size}: expected at least 1")
    if not 0 <= seed < 1 << 32:
        raise ValueError(f"seed = {seed}: expected 0 <= seed < 2**32")
    dataset = grain.MapDataset.source(source).seed(seed)
    if shuffle:
        dataset = dataset.shuffle()
    dataset = dataset.repeat().batch(batch_size, drop_remainder=True)
    identity = {
        "seed": seed,
        "batch_size": batch_size,
        "shuffle": shuffle,
        "windows": len(source),
        "fingerprint": source.describe()["fingerprint"],
    }
    return Loader(dataset, identity=identity)
