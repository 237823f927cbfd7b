"""Attention under a topology on TPUs, by the splash attention that JAX ships.

Splash attention walks the live blocks of a mask that it reads block by block; here each block is
gathered from the table of segments, in the order of tokens that leaves fewest blocks
(`canvas/live_blocks.py`). It keeps every distinct partial block, so that many blocks cut by borders
of segments cost memory: `LiveBlocks.partial` x block x block bytes at most.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel as splash_kernel,
)
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as splash_mask
from jaxtyping import Array, Float

from roam_jax.canvas.live_blocks import LiveBlocks, live_blocks
from roam_jax.canvas.segments import SegmentTable

# Lanes of a TPU's vector unit: blocks are multiples of them.
LANES = 128


def splash_attention(
    query: Float[Array, "B N K D"],
    key: Float[Array, "B M K D"],
    value: Float[Array, "B M K Dv"],
    table: SegmentTable,
    *,
    block: int = 512,
    orders: tuple[tuple[int, ...], ...] = (),
    interpret: bool = False,
) -> Float[Array, "B N K Dv"]:
    """Softmax attention under a topology of plain edges with scale 1/sqrt(D), by live blocks.

    Scores, softmax and sums are float32. A query without keys gets 0 and gives no gradient.

    Args:
        query, key, value: projected heads.
        table: which cells attend to which; edges of weight 1 only.
        block: most queries and keys of a block, a multiple of 128; short sequences take less.
        orders: more orders of the segments to try for fewer live blocks.
        interpret: run the kernels as plain JAX, on any backend and slowly, to test them.

    Raises:
        ValueError: the table is for sequences of other lengths, an edge has another weight than 1,
            or the block is no multiple of 128.
    """
    cells = query.shape[1], key.shape[1]
    table.check_lengths(*cells)
    if block < LANES or block % LANES:
        raise ValueError(f"block = {block}: expected a multiple of {LANES}")
    weighted = np.isfinite(table.log_weight) & (table.log_weight != 0)
    if weighted.any():
        weight = float(np.exp(table.log_weight[weighted][0]))
        raise ValueError(f"edge weight {weight:g}: splash attention takes edges of weight 1 only")
    read = _read(table)
    if not read.any():
        return jnp.zeros((*query.shape[:-1], value.shape[-1]), value.dtype)
    blocks = live_blocks(
        _with_a_key_for_all(table, read),
        block_q=_block(cells[0], block),
        block_k=_block(cells[1], block),
        orders=orders,
    )
    query = query * np.asarray(1 / math.sqrt(query.shape[-1]), query.dtype)
    out = jax.vmap(_kernel(blocks, heads=query.shape[2], interpret=interpret))(
        _arranged(query, blocks.query_order, len(blocks.query_segments)),
        _arranged(key, blocks.key_order, len(blocks.key_segments)),
        _arranged(value, blocks.key_order, len(blocks.key_segments)),
    )
    out = out.swapaxes(1, 2)[:, : cells[0]]
    if blocks.query_order is not None:
        out = out[:, np.argsort(blocks.query_order)]
    return jnp.where(read[:, None, None], out, 0)


@dataclasses.dataclass(frozen=True)
class _TableMask(splash_mask.Mask):
    """A mask of which nothing exists but the part that is asked for."""

    blocks: LiveBlocks

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.blocks.query_segments), len(self.blocks.key_segments)

    def __getitem__(self, part: tuple[slice, slice]) -> np.ndarray:
        rows, columns = self.blocks.query_segments[part[0]], self.blocks.key_segments[part[1]]
        return np.isfinite(self.blocks.log_weight).take(columns, axis=1).take(rows, axis=0)


def _read(table: SegmentTable) -> np.ndarray:
    """(N,) bool, whether a query has a key."""
    present = np.zeros(len(table.log_weight), bool)
    present[table.segments] = True
    return (np.isfinite(table.log_weight) & present).any(axis=1)[table.query_segments]


def _with_a_key_for_all(table: SegmentTable, read: np.ndarray) -> SegmentTable:
    """Queries without keys read the first segment: a row without keys is NaN in these kernels."""
    weight = table.log_weight.copy()
    weight[table.query_segments[~read], table.segments[0]] = 0
    return dataclasses.replace(table, log_weight=weight)


def _block(cells: int, most: int) -> int:
    """Cells of a block: the most, or all of a short sequence."""
    return min(most, -(-cells // LANES) * LANES)


def _arranged(cells: Array, order: np.ndarray | None, length: int) -> Array:
    """(B, N, K, D) as (B, K, N, D), in order and filled with zeros to `length` cells."""
    if order is not None:
        cells = cells[:, order]
    missing = length - cells.shape[1]
    return jnp.pad(cells, ((0, 0), (0, missing), (0, 0), (0, 0))).swapaxes(1, 2)


def _kernel(blocks: LiveBlocks, *, heads: int, interpret: bool):
    """Of one example, (K, N, D)."""
    mask = splash_mask.MultiHeadMask([_TableMask(blocks)] * heads)
    rows, keys = blocks.block_q, blocks.block_k
    sizes = splash_kernel.BlockSizes(
        block_q=rows,
        block_kv=keys,
        block_q_dkv=rows,
        block_kv_dkv=keys,
        block_q_dq=rows,
        block_kv_dq=keys,
    )
    return splash_kernel.make_splash_mha(
        mask, block_sizes=sizes, head_shards=1, q_seq_shards=1, interpret=interpret
    )
