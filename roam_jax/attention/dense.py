"""Dense attention, free or under a topology's mask, in pieces that stay in cache.

The oracle of planned attention, and what runs where a plan is not worth its loops. Free attention
is one group of tiles (`attention/tiled.py`), and on GPUs in half precision cuDNN's. Under a mask,
groups of heads and tiles of queries are mapped one after another, each with its part of the mask
gathered from the segment table, and are rematerialised in the backward pass. No N x N array of
scores ever exists but on small canvases.
"""

from __future__ import annotations

import functools

import einops
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from roam_jax.attention.grouped_cudnn import attend_groups, unsupported
from roam_jax.attention.tiled import tiled_attention
from roam_jax.canvas.plan import DENSE_ROWS
from roam_jax.canvas.segments import SegmentTable
from roam_jax.canvas.tiles import largest_divisor, whole

# Most scores of a piece: the same tile of as many heads as fit.
PIECE_SCORES = 1 << 19
# Scores (all heads) below which pieces cost more than they save.
SMALL_SCORES = 1 << 17
# The same where nothing is masked, and over the whole batch: 8 MiB, which XLA's CPU backend takes
# through a softmax in one go faster than it computes tiles again in the backward pass (21 against
# 28 ms forward and backward at 512 cells and 8 heads, one core).
FREE_SCORES = 1 << 21


def attention(
    query: Float[Array, "B N K D"],
    key: Float[Array, "B M K D"],
    value: Float[Array, "B M K Dv"],
    *,
    table: SegmentTable | None = None,
) -> Float[Array, "B N K Dv"]:
    """Softmax attention with scale 1/sqrt(D), scores and softmax in float32.

    Args:
        query, key, value: projected heads.
        table: which cells attend to which; None = all to all. A query without keys gets 0.

    Returns:
        The attended values, in the dtype of `value`.

    Raises:
        ValueError: the table was made for another number of cells.
    """
    cells = query.shape[1], key.shape[1]
    if table is not None:
        table.check_lengths(*cells)
    small = cells[0] * cells[1] * query.shape[2] <= SMALL_SCORES
    if table is None:
        small = small or free_in_one_go(query, key)
    if table is None and not small:
        heads = (query[None], key[None], value[None])
        if jax.default_backend() == "gpu" and unsupported(*heads) is None:
            return attend_groups(*heads)[0]
        return tiled_attention(query, key, value, whole(*cells))
    # Here and not on the scores, of which there are many more.
    query = query * np.asarray(1 / np.sqrt(query.shape[-1]), query.dtype)
    heads = (einops.rearrange(x, "B N K D -> B K N D") for x in (query, key, value))
    if small:
        bias = None if table is None else _bias(table, jnp.asarray(table.query_segments))
        out = _softmax_attention(*heads, bias)
    else:
        out = _in_pieces(*heads, table)
    return einops.rearrange(out, "B K N D -> B N K D")


def free_in_one_go(query: Float[Array, "B N K D"], key: Float[Array, "B M K D"]) -> bool:
    """Whether all scores of free attention are best computed at once, as measured on CPUs."""
    size, cells, heads, _ = query.shape
    few = size * cells * heads * key.shape[1] <= FREE_SCORES
    return few and jax.default_backend() == "cpu"


def attention_rows(
    query: Float[Array, "B N K D"],
    key: Float[Array, "B M K D"],
    value: Float[Array, "B M K Dv"],
    *,
    rows: Int[Array, "B N"],
    table: SegmentTable,
) -> Float[Array, "B N K Dv"]:
    """`attention` of some queries, other ones in each row of the batch.

    Args:
        query: of these queries alone.
        key, value: of all cells.
        rows: places of the queries in the whole sequence.
        table: which cells attend to which.

    Raises:
        ValueError: the table was made for another number of cells.
    """
    table.check_lengths(len(table.query_segments), key.shape[1])
    query = query * np.asarray(1 / np.sqrt(query.shape[-1]), query.dtype)
    key, value = (einops.rearrange(x, "B M K D -> B K M D") for x in (key, value))
    segments = jnp.asarray(table.query_segments)

    def tile(inputs):
        queries, places = inputs
        queries = einops.rearrange(queries, "B N K D -> B K N D")
        out = _softmax_attention(queries, key, value, _bias(table, segments[places])[:, None])
        return einops.rearrange(out, "B K N D -> B N K D")

    # A tile's scores stay in cache.
    most = max(1, PIECE_SCORES // (query.shape[0] * query.shape[2] * key.shape[2]))
    tiles = query.shape[1] // largest_divisor(query.shape[1], most=most)
    if tiles == 1:
        return tile((query, rows))
    split = functools.partial(einops.rearrange, pattern="B (tiles N) ... -> tiles B N ...")
    out = jax.lax.map(tile, (split(query, tiles=tiles), split(rows, tiles=tiles)))
    return einops.rearrange(out, "tiles B N K D -> B (tiles N) K D")


def _bias(table: SegmentTable, query_segments: jax.Array) -> jax.Array:
    """Log weights (..., M), gathered for a few query cells."""
    rows = jnp.asarray(table.log_weight, jnp.float32)[query_segments]
    return rows[..., table.segments]


def _softmax_attention(query, key, value, bias) -> jax.Array:
    """(B, K, N, D) scaled queries over all keys; the oracle that the pieces equal."""
    scores = jnp.einsum("BKND,BKMD->BKNM", query, key, preferred_element_type=jnp.float32)
    if bias is not None:
        scores = scores + bias
    peak = jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True))
    # A row without keys has a peak of -inf; 0 keeps exp(-inf - peak) = 0 instead of NaN.
    weights = jnp.exp(scores - jnp.where(jnp.isfinite(peak), peak, 0))
    total = weights.sum(axis=-1, keepdims=True)
    sums = jnp.einsum(
        "BKNM,BKMD->BKND", weights.astype(value.dtype), value, preferred_element_type=jnp.float32
    )
    # Divided last: a row has D sums and M weights. Its gradient needs the sums again, a product
    # that is cheaper than a pass over all weights and their gradients.
    return (sums / jnp.where(total > 0, total, 1)).astype(value.dtype)


def _in_pieces(query, key, value, table: SegmentTable) -> jax.Array:
    """The same under a mask, mapped over groups of heads and tiles of queries."""
    batch, heads, cells, _ = query.shape
    tiles = -(-cells // DENSE_ROWS)
    rows = -(-cells // tiles)
    padding = tiles * rows - cells
    groups = heads // largest_divisor(heads, most=PIECE_SCORES // (batch * rows * key.shape[2]))
    query = jnp.pad(query, ((0, 0), (0, 0), (0, padding), (0, 0)))
    query = einops.rearrange(
        query, "B (groups K) (tiles N) D -> groups tiles B K N D", groups=groups, tiles=tiles
    )
    key, value = (
        einops.rearrange(x, "B (groups K) M D -> groups B K M D", groups=groups)
        for x in (key, value)
    )
    segments = jnp.asarray(np.pad(table.query_segments, (0, padding)).reshape(tiles, rows))

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def piece(query, key, value, tile_segments):
        return _softmax_attention(query, key, value, _bias(table, tile_segments))

    def group(inputs):
        query, key, value = inputs
        return jax.lax.map(lambda tile: piece(tile[0], key, value, tile[1]), (query, segments))

    out = jax.lax.map(group, (query, key, value))
    out = einops.rearrange(out, "groups tiles B K N D -> B (groups K) (tiles N) D")
    return out[:, :, :cells]
