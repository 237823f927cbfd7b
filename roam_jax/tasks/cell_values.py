"""A scene's streams as the values of cells, and back: one cell a patch, vector, token or number."""

from __future__ import annotations

import math

import einops
from jaxtyping import Array

from roam_jax.data.scene import Stream


def cell_features(stream: Stream) -> int:
    """Numbers of one cell; of tokens, the size of the vocabulary."""
    if stream.kind == "patches":
        return stream.patch**2 * stream.shape[-1]
    return {"vectors": stream.shape[-1], "tokens": stream.vocabulary, "scalars": 1}[stream.kind]


def cell_count(stream: Stream) -> int:
    """Cells that the stream fills.

    Raises:
        ValueError: frames are no whole number of patches.
    """
    if stream.kind != "patches":
        return math.prod(stream.shape[:1])
    frames, height, width, _ = stream.shape
    if height % stream.patch or width % stream.patch:
        raise ValueError(
            f"stream {stream.name!r}: frames of {height} x {width} pixels are no whole number of "
            f"patches of {stream.patch}"
        )
    return frames * (height // stream.patch) * (width // stream.patch)


def to_cells(stream: Stream, values: Array) -> Array:
    """(B, N, A) of patches and vectors, else (B, N), in the order of the region's cells.

    Args:
        stream: what the values are of.
        values: (B, *stream.shape), as a scene makes them.
    """
    if stream.kind != "patches":
        return values
    return einops.rearrange(
        values, "B T (h p) (w q) C -> B (T h w) (p q C)", p=stream.patch, q=stream.patch
    )


def from_cells(stream: Stream, cells: Array) -> Array:
    """(B, *stream.shape) again, or (B, N) of scalars that were decoded as (B, N, 1)."""
    if stream.kind == "scalars":
        return cells.reshape(cells.shape[0], *stream.shape)
    if stream.kind != "patches":
        return cells
    frames, height, _, channels = stream.shape
    return einops.rearrange(
        cells,
        "B (T h w) (p q C) -> B T (h p) (w q) C",
        T=frames,
        h=height // stream.patch,
        p=stream.patch,
        q=stream.patch,
        C=channels,
    )
