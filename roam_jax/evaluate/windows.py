"""Which windows are measured, in batches of one size, and the noise that each of them gets.

Noise is a function of the window alone: it depends on neither the batch size nor the number of
rounds, so that figures for different rounds are paired.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from roam_jax.contracts import Batch
from roam_jax.data.summary import spread_evenly
from roam_jax.data.windows import WindowSource

SEED = 0
# Streams of noise of one window: 0 for pure noise, 1 + b for timestep bucket b. A stream begins
# with the same values whatever the shape, so all that is noised beside the video needs its own.
PURE_NOISE = 0


def spread_windows(total: int, wanted: int) -> Int[np.ndarray, " windows"]:
    """Indices of `wanted` windows spread evenly over a split of `total`; 0 = all.

    Raises:
        ValueError: a negative number.
    """
    if wanted < 0:
        raise ValueError(f"eval.windows = {wanted}: expected 0 (all) or more")
    return spread_evenly(total, wanted or total)


def map_windows(
    source: WindowSource,
    indices: Int[np.ndarray, " windows"],
    measure: Callable[[Int[np.ndarray, " B"], Batch], Any],
    *,
    batch_size: int,
) -> Any:
    """Measures windows in batches of one size and joins the rows.

    The last batch is filled up with copies of its last window, so that nothing is compiled twice;
    what is measured of the copies is dropped, so every window counts exactly once.

    Args:
        source: windows of a split.
        indices: which of them, in the order of the result.
        measure: from indices and windows of a batch to a tree of arrays with B rows each.
        batch_size: B.

    Returns:
        The tree, as NumPy arrays with a row for each index.

    Raises:
        ValueError: `batch_size` is out of range.
    """
    if batch_size < 1:
        raise ValueError(f"eval.batch_size = {batch_size}: expected at least 1")
    parts = []
    for begin in range(0, len(indices), batch_size):
        chosen = indices[begin : begin + batch_size].astype(np.int32)
        windows = [source[int(i)] for i in chosen]
        copies = batch_size - len(chosen)
        rows = np.pad(chosen, (0, copies), mode="edge")
        windows += windows[-1:] * copies
        batch = Batch(**{name: np.stack([w[name] for w in windows]) for name in windows[0]})
        parts.append(_first_rows(measure(rows, batch), len(chosen)))
    return jax.tree.map(lambda *rows: np.concatenate(rows), *parts)


def _first_rows(tree: Any, count: int) -> Any:
    return jax.tree.map(lambda rows: np.asarray(rows)[:count], tree)


def timestep_buckets(steps: int, buckets: int) -> tuple[tuple[int, int], ...]:
    """Half-open ranges of timesteps, equal to within one step.

    Raises:
        ValueError: no bucket, or more buckets than steps.
    """
    if not 1 <= buckets <= steps:
        raise ValueError(f"eval.buckets = {buckets}: expected 1..{steps}")
    return tuple(itertools.pairwise(number * steps // buckets for number in range(buckets + 1)))


@functools.partial(jax.jit, static_argnames="shape")
def window_noise(
    indices: Int[Array, " B"],
    stream: ArrayLike,
    low: ArrayLike,
    high: ArrayLike,
    *,
    shape: tuple[int, ...],
) -> tuple[Int[Array, " B"], Float[Array, "B ..."]]:
    """A timestep in low..high - 1 and standard normal noise for each window.

    Args:
        indices: of the windows in their split.
        stream: `PURE_NOISE`, or 1 + the bucket; plus an offset for all but the video.
        low, high: half-open range of the timestep.
        shape: of one window's noise.
    """

    def draw(index):
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(SEED), index), stream)
        time_key, noise_key = jax.random.split(key)
        timestep = jax.random.randint(time_key, (), low, high)
        return timestep, jax.random.normal(noise_key, shape)

    return jax.vmap(draw)(indices)
