"""Windows whose videos were encoded once, before the first step.

Right where all windows fit in memory and nothing augments them: the VAE then costs nothing a step.
The encoder is an argument, so nothing here knows a model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from absl import logging

from roam_jax.contracts import VIDEO_FIELDS, Batch
from roam_jax.data.windows import WindowSource

# Fields of `VIDEO_FIELDS`, each with a batch axis -> the latents of them all, as in `Batch`.
Encoder = Callable[[Mapping[str, np.ndarray]], Mapping[str, Any]]


class LatentSource:
    """Random access to encoded windows: latents in place of every video.

    Args:
        windows: where they come from, in the same order.
        items: one window each.
    """

    def __init__(self, windows: WindowSource, items: tuple[Batch, ...]):
        self.windows = windows
        self._items = items

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Batch:
        """Window `index`, its arrays shared with the source."""
        return self._items[index]

    def draw(self, index: int, rng: np.random.Generator) -> Batch:
        """Window `index`; nothing of it is random."""
        del rng
        return self[index]

    @property
    def fingerprint(self) -> str:
        """That of the windows."""
        return self.windows.fingerprint

    def describe(self) -> dict[str, Any]:
        """As `WindowSource.describe`, with the bytes held in memory."""
        size = sum(np.asarray(array).nbytes for item in self._items for array in item.values())
        return {**self.windows.describe(), "bytes_in_memory": size}


def encode_windows(source: WindowSource, encode: Encoder, *, batch_size: int) -> LatentSource:
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
    items = []
    for start in range(0, len(source), batch_size):
        windows = [source[i] for i in range(start, min(start + batch_size, len(source)))]
        # The last call is filled up with copies of its last window; their latents are dropped.
        filled = windows + windows[-1:] * (batch_size - len(windows))
        videos = [name for name in VIDEO_FIELDS if name in filled[0]]
        latents = encode({name: np.stack([w[name] for w in filled]) for name in videos})
        latents = {name: np.asarray(array, np.float32) for name, array in latents.items()}
        _check(source, latents)
        for row, window in enumerate(windows):
            rest = {name: value for name, value in window.items() if name not in videos}
            # Copies, so that an item does not keep its whole batch in memory.
            own = {name: array[row].copy() for name, array in latents.items()}
            items.append(Batch(**own, **rest))
    return LatentSource(source, tuple(items))


def _check(source: WindowSource, latents: Mapping[str, np.ndarray]) -> None:
    time = source.options.time
    expected = time.t_current, time.latents
    found = tuple(latents[f"{name}_latents"].shape[1] for name in ("observed", "target"))
    if found != expected:
        raise ValueError(
            f"encoder gave {found[0]} observed and {found[1]} latent frames, "
            f"expected {expected[0]} and {expected[1]}"
        )
