"""Windows whose videos were encoded before the first step: the VAE then costs nothing a step.

Here they are held in memory, which is right where all of them fit; `latent_cache.py` reads them
from disk. The encoder is an argument, so nothing here knows a model.
"""

from __future__ import annotations

import abc
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from absl import logging

from roam_jax.contracts import VIDEO_FIELDS, Batch, TimeSpec
from roam_jax.data.windows import WindowSource

# What says of an augmented copy which one it is: seed of the draws, its window and its number.
COPY = "copy"
# Fields of `VIDEO_FIELDS`, each with a batch axis, and `COPY` of those that are to be augmented ->
# the latents of them all, as in `Batch`.
Encoder = Callable[[Mapping[str, np.ndarray]], Mapping[str, Any]]


class LatentSource(abc.ABC):
    """Random access to encoded windows: latents in place of every video.

    Args:
        windows: where they come from.
    """

    def __init__(self, windows: WindowSource):
        self.windows = windows

    @abc.abstractmethod
    def __len__(self) -> int:
        """Number of windows."""

    @abc.abstractmethod
    def __getitem__(self, index: int) -> Batch:
        """Window `index`, always the same."""

    def draw(self, index: int, rng: np.random.Generator) -> Batch:
        """Window `index`; `rng` chooses where there are several copies of it."""
        del rng
        return self[index]

    @property
    @abc.abstractmethod
    def fingerprint(self) -> str:
        """Hash of all that the numbers depend on."""

    def describe(self) -> dict[str, Any]:
        """As `WindowSource.describe`, and where the latents are."""
        return self.windows.describe()


class HeldLatents(LatentSource):
    """Encoded windows in memory.

    Args:
        windows: where they come from, in the same order.
        items: one window each.
    """

    def __init__(self, windows: WindowSource, items: tuple[Batch, ...]):
        super().__init__(windows)
        self._items = items

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Batch:
        """Window `index`, its arrays shared with the source."""
        return self._items[index]

    @property
    def fingerprint(self) -> str:
        """That of the windows."""
        return self.windows.fingerprint

    def describe(self) -> dict[str, Any]:
        """As `WindowSource.describe`, with the bytes held in memory."""
        size = sum(np.asarray(array).nbytes for item in self._items for array in item.values())
        return {**super().describe(), "bytes_in_memory": size}


def encode_windows(source: WindowSource, encode: Encoder, *, batch_size: int) -> HeldLatents:
    """Encodes every window of a source once.

    Args:
        source: windows with frames.
        encode: videos of a batch to its latents; always called with B = `batch_size`, so it
            compiles once.
        batch_size: windows of one call.

    Raises:
        ValueError: the encoder gives another number of latent frames than the window's time has.
    """
    logging.info("encoding %d windows once", len(source))
    windows = (source[i] for i in range(len(source)))
    items = encoded(windows, encode, batch_size=batch_size, time=source.options.time)
    return HeldLatents(source, tuple(items))


def encoded(
    windows: Iterable[Batch], encode: Encoder, *, batch_size: int, time: TimeSpec
) -> Iterator[Batch]:
    """Each window with latents in place of its videos, float32.

    The next windows are read while the encoder, which may return before it has finished, works.

    Args:
        windows: with frames, in any number.
        encode, batch_size: as for `encode_windows`.
        time: what the latents must have frames of.

    Raises:
        ValueError: as for `encode_windows`.
    """
    windows, before = iter(windows), None
    while some := list(itertools.islice(windows, batch_size)):
        # The last call is filled up with copies of its last window; their latents are dropped.
        filled = some + some[-1:] * (batch_size - len(some))
        given = [name for name in (*VIDEO_FIELDS, COPY) if name in filled[0]]
        latents = encode({name: np.stack([w[name] for w in filled]) for name in given})
        if before is not None:
            yield from _finished(*before, time)
        before = some, latents
    if before is not None:
        yield from _finished(*before, time)


def _finished(windows: list[Batch], latents: Mapping[str, Any], time: TimeSpec) -> Iterator[Batch]:
    """One batch, window by window."""
    latents = {name: np.asarray(array, np.float32) for name, array in latents.items()}
    _check(time, latents)
    for row, window in enumerate(windows):
        rest = {name: value for name, value in window.items() if name not in VIDEO_FIELDS}
        # Copies, so that an item does not keep its whole batch in memory.
        own = {name: array[row].copy() for name, array in latents.items()}
        yield Batch(**own, **rest)


def _check(time: TimeSpec, latents: Mapping[str, np.ndarray]) -> None:
    expected = time.t_current, time.latents
    found = tuple(latents[f"{name}_latents"].shape[1] for name in ("observed", "target"))
    if found != expected:
        raise ValueError(
            f"encoder gave {found[0]} observed and {found[1]} latent frames, "
            f"expected {expected[0]} and {expected[1]}"
        )
