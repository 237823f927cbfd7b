"""Windows whose videos were encoded once, before the first step.

Right where all windows fit in memory and nothing augments them: the VAE then costs nothing a step.
The encoder is an argument, so nothing here knows a model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from absl import logging
from jaxtyping import Float

from roam_jax.contracts import Batch
from roam_jax.data.windows import WindowSource

# frames (B, T, H, W, 3) uint8 -> observed (B, t_current, C, h, w), target (B, F, C, h, w) float32
Encoder = Callable[[np.ndarray], tuple[Any, Any]]


class LatentSource:
    """Random access to encoded windows: `observed_latents` and `target_latents`, no `frames`.

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

    def describe(self) -> dict[str, Any]:
        """As `WindowSource.describe`, with the bytes held in memory."""
        size = sum(np.asarray(array).nbytes for item in self._items for array in item.values())
        return {**self.windows.describe(), "bytes_in_memory": size}


def encode_windows(source: WindowSource, encode: Encoder, *, batch_size: int) -> LatentSource:
    """Encodes every window of a source once.

    Args:
        source: windows with frames.
        encode: frames (B, T, H, W, 3) uint8 to the latents of the observed frames alone and of the
            whole window, as in `Batch`; always called with B = `batch_size`, so it compiles once.
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
        latents = encode(np.stack([window["frames"] for window in filled]))
        observed, target = (np.asarray(array, np.float32) for array in latents)
        _check(source, observed, target)
        for window, seen, whole in zip(windows, observed, target, strict=False):
            rest = {name: value for name, value in window.items() if name != "frames"}
            # Copies, so that an item does not keep its whole batch in memory.
            items.append(Batch(observed_latents=seen.copy(), target_latents=whole.copy(), **rest))
    return LatentSource(source, tuple(items))


def _check(
    source: WindowSource,
    observed: Float[np.ndarray, "B t_current C h w"],
    target: Float[np.ndarray, "B F C h w"],
) -> None:
    expected = source.time.t_current, source.time.latents
    if (observed.shape[1], target.shape[1]) != expected:
        raise ValueError(
            f"encoder gave {observed.shape[1]} observed and {target.shape[1]} latent frames, "
            f"expected {expected[0]} and {expected[1]}"
        )
