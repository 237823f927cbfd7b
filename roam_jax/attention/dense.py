"""Dense attention under a declared topology, in tiles that stay in cache.

Heads and tiles of queries are mapped one after another and each tile is rematerialised in the
backward pass, so no N x N array of scores ever exists. On a CPU this is also the fastest plain-JAX
form, because the row softmax then runs on scores that are still in cache.
"""

from __future__ import annotations

import functools

import einops
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from roam_jax.canvas.segments import SegmentTable

# Queries of one tile, and scores (all heads) below which tiling costs more than it saves.
TILE = 256
SMALL_SCORES = 1 << 17


def attention(
    query: Float[Array, "B N K D"],
    key: Float[Array, "B M K D"],
    value: Float[Array, "B M K D"],
    *,
    table: SegmentTable | None = None,
) -> Float[Array, "B N K D"]:
    """Softmax attention with scale 1/sqrt(D), scores and softmax in float32.

    Args:
        query, key, value: projected heads.
        table: which cells attend to which; None = all to all. A query without keys gets 0.

    Returns:
        The attended values, in the dtype of `value`.

    Raises:
        ValueError: the table was made for another number of cells.
    """
    cells = query.shape[1]
    if table is not None and not cells == key.shape[1] == table.cells:
        raise ValueError(
            f"topology table has {table.cells} cells, expected queries ({cells}) and keys "
            f"({key.shape[1]}) of the same number"
        )
    # Here and not on the scores, of which there are many more.
    query = query * np.asarray(1 / np.sqrt(query.shape[-1]), query.dtype)
    if cells * key.shape[1] * query.shape[2] <= SMALL_SCORES:
        bias = None if table is None else _bias(table, jnp.asarray(table.segments))
        return _softmax_attention(query, key, value, bias)
    return _tiled(query, key, value, table)


def _bias(table: SegmentTable, query_segments: jax.Array) -> jax.Array:
    """Log weights (queries, M), gathered for a few query cells."""
    rows = jnp.asarray(table.log_weight, jnp.float32)[query_segments]
    return rows[:, table.segments]


def _softmax_attention(query, key, value, bias) -> jax.Array:
    """(B, N, K, D) scaled queries over all keys; the oracle that the tiled form equals."""
    scores = jnp.einsum("BNKD,BMKD->BKNM", query, key, preferred_element_type=jnp.float32)
    if bias is not None:
        scores = scores + bias
    peak = jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True))
    # A row without keys has a peak of -inf; 0 keeps exp(-inf - peak) = 0 instead of NaN.
    weights = jnp.exp(scores - jnp.where(jnp.isfinite(peak), peak, 0))
    total = weights.sum(axis=-1, keepdims=True)
    weights = weights / jnp.where(total > 0, total, 1)
    return jnp.einsum("BKNM,BMKD->BNKD", weights.astype(value.dtype), value)


def _tiled(query, key, value, table) -> jax.Array:
    """The same, mapped over heads and tiles of `TILE` queries."""
    cells = query.shape[1]
    tiles = -(-cells // TILE)
    padding = tiles * TILE - cells
    query = jnp.pad(query, ((0, 0), (0, padding), (0, 0), (0, 0)))
    query = einops.rearrange(query, "B (tiles N) K D -> K tiles B N D", tiles=tiles)
    key, value = (einops.rearrange(x, "B M K D -> K B M 1 D") for x in (key, value))
    segments = None
    if table is not None:
        segments = jnp.asarray(np.pad(table.segments, (0, padding)).reshape(tiles, TILE))

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def tile(head_query, head_key, head_value, tile_segments):
        bias = None if table is None else _bias(table, tile_segments)
        return _softmax_attention(head_query[:, :, None], head_key, head_value, bias)[:, :, 0]

    def head(inputs):
        head_query, head_key, head_value = inputs
        return jax.lax.map(lambda t: tile(t[0], head_key, head_value, t[1]), (head_query, segments))

    out = jax.lax.map(head, (query, key, value))
    out = einops.rearrange(out, "K tiles B N D -> B (tiles N) K D")
    return out[:, :cells]
