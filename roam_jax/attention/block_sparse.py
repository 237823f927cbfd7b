"""Attention over live blocks for NVIDIA GPUs: one Pallas kernel a pass, lowered through Triton.

What a topology forbids in whole blocks is never loaded (`canvas/live_blocks.py`). The forward pass
keeps the log-sum-exp of every query; the backward pass makes the weights again, once by blocks of
queries for their gradient, once by blocks of keys for that of keys and values.

Source: FlashAttention-2 (Dao 2023, arXiv:2307.08691, algorithms 1 and 2).
"""

from __future__ import annotations

import dataclasses
import functools
import math

import einops
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float

from roam_jax.attention.block_kernels import (
    LOG2_E,
    Setting,
    forward_kernel,
    key_kernel,
    query_kernel,
)
from roam_jax.canvas.live_blocks import BlockLists, LiveBlocks, live_blocks
from roam_jax.canvas.segments import SegmentTable

DTYPES = tuple(map(np.dtype, (jnp.float32, jnp.bfloat16, jnp.float16)))
# The narrowest head that Triton multiplies.
LEAST_WIDTH = 16


@dataclasses.dataclass(frozen=True)
class _Launch:
    """How a kernel is cut, so that scores and sums stay in registers.

    Args:
        rows: cells of its own block that a program takes.
        step: cells of the other side that one step of its loop takes.
        num_warps, num_stages: of Triton.
    """

    rows: int
    step: int
    num_warps: int
    num_stages: int


# By bytes of an operand and whether heads are wider than 64. Half precision with heads up to 64 has
# the fastest of eight cuts on an H200 (`benchmarks/attention_gpu.py --tune`); the others are what
# ptxas compiles for A100 and H100 with next to no spilled registers.
FORWARD = {
    (2, False): _Launch(128, 64, 4, 3),
    (2, True): _Launch(128, 32, 8, 2),
    (4, False): _Launch(64, 32, 8, 1),
    (4, True): _Launch(32, 32, 8, 1),
}
BACKWARD = {
    (2, False): _Launch(64, 64, 4, 3),
    (2, True): _Launch(64, 32, 8, 2),
    (4, False): _Launch(32, 32, 4, 1),
    (4, True): _Launch(32, 32, 8, 1),
}


def block_sparse_attention(
    query: Float[Array, "B N K D"],
    key: Float[Array, "B M K D"],
    value: Float[Array, "B M K Dv"],
    table: SegmentTable,
    *,
    block: int = 128,
    orders: tuple[tuple[int, ...], ...] = (),
    interpret: bool = False,
) -> Float[Array, "B N K Dv"]:
    """Softmax attention under a topology with scale 1/sqrt(D), by live blocks.

    Scores, softmax and sums are float32; products take operands of the dtype of the inputs,
    float32 at the precision of float32. A query without keys gets 0 and gives no gradient.

    Args:
        query, key, value: projected heads of one dtype, float32, bfloat16 or float16. Widths that
            are no power of two, or below 16, are filled with zeros.
        table: which cells attend to which, and how strongly.
        block: queries and keys of a block, a power of two from 16 on.
        orders: more orders of the segments to try for fewer live blocks.
        interpret: run the kernels as plain JAX, on any backend and slowly, to test them.

    Raises:
        ValueError: the table is for sequences of other lengths, dtypes differ or are others, or
            the block is no power of two from 16 on.
    """
    cells = query.shape[1], key.shape[1]
    table.check_lengths(*cells)
    dtypes = {x.dtype for x in (query, key, value)}
    if len(dtypes) > 1 or not dtypes <= set(DTYPES):
        raise ValueError(
            f"query, key and value are {query.dtype}, {key.dtype} and {value.dtype}: expected all "
            "float32, bfloat16 or float16"
        )
    if block < 16 or block & (block - 1):
        raise ValueError(f"block = {block}: expected a power of two from 16 on")
    blocks = _live_blocks(table, block, orders)
    scale = 1 / math.sqrt(query.shape[-1])
    inputs = (
        _arranged(query, blocks.query_order, len(blocks.query_segments)),
        _arranged(key, blocks.key_order, len(blocks.key_segments)),
        _arranged(value, blocks.key_order, len(blocks.key_segments)),
    )
    out = _attend(blocks, scale, interpret, *inputs)[:, : cells[0], :, : value.shape[-1]]
    if blocks.query_order is not None:
        out = out[:, np.argsort(blocks.query_order)]
    return out


@functools.lru_cache(maxsize=256)
def _live_blocks(table: SegmentTable, block: int, orders: tuple) -> LiveBlocks:
    return live_blocks(table, block_q=block, block_k=block, orders=orders)


def _arranged(cells: Array, order: np.ndarray | None, length: int) -> Array:
    """A sequence in order, filled with zeros to `length` cells and to a width for Triton."""
    if order is not None:
        cells = cells[:, order]
    width = max(LEAST_WIDTH, pl.next_power_of_2(cells.shape[-1]))
    missing = (length - cells.shape[1], width - cells.shape[-1])
    if any(missing):
        cells = jnp.pad(cells, ((0, 0), (0, missing[0]), (0, 0), (0, missing[1])))
    return cells


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _attend(blocks, scale, interpret, query: Array, key: Array, value: Array) -> Array:
    return _forward(blocks, scale, interpret, query, key, value)[0]


def _attend_and_keep(blocks, scale, interpret, query, key, value):
    out, log_sum = _forward(blocks, scale, interpret, query, key, value)
    return out, (query, key, value, out, log_sum)


def _forward(blocks, scale, interpret, query, key, value) -> tuple[Array, Array]:
    """(B, N, K, Dv) and the base-2 log-sum-exp of the scores (B, K, N) float32."""
    batch, cells, heads, _ = query.shape
    setting, params = _setting(FORWARD, query, value, blocks.block_q, scale, interpret)
    rows = setting.rows
    call = pl.pallas_call(
        functools.partial(forward_kernel, setting=setting),
        grid=(cells // rows, batch, heads),
        in_specs=[_part(query, rows), _all(key), _all(value), *_table_specs(rows)],
        out_specs=[_part(value, rows), _row_part(rows)],
        out_shape=[
            jax.ShapeDtypeStruct((batch, cells, heads, value.shape[-1]), value.dtype),
            jax.ShapeDtypeStruct((batch, heads, cells), jnp.float32),
        ],
        compiler_params=params,
        interpret=interpret,
        cost_estimate=_cost(blocks, query, value, (1, 1)),
        name="block_sparse_forward",
    )
    segments = blocks.query_segments, blocks.key_segments
    return tuple(call(query, key, value, *_table(blocks, *segments, blocks.keys_of)))


def _gradients(blocks, scale, interpret, kept, change) -> tuple[Array, Array, Array]:
    """Gradients of query, key and value from that of the output."""
    query, key, value, out, log_sum = kept
    # What a row's weights lose to each other: the gradient of the softmax's division.
    shift = jnp.sum(change.astype(jnp.float32) * out.astype(jnp.float32), axis=-1)
    inputs = (query, key, value, change, log_sum, einops.rearrange(shift, "B N K -> B K N"))
    batch, cells, heads, _ = query.shape
    setting, params = _setting(BACKWARD, query, value, blocks.block_q, scale, interpret)
    rows = setting.rows
    call = functools.partial(pl.pallas_call, compiler_params=params, interpret=interpret)
    in_specs = [_part(query, rows), _all(key), _all(value), _part(change, rows)]
    d_query = call(
        functools.partial(query_kernel, setting=setting),
        grid=(cells // rows, batch, heads),
        in_specs=[*in_specs, _row_part(rows), _row_part(rows), *_table_specs(rows)],
        out_specs=_part(query, rows),
        out_shape=jax.ShapeDtypeStruct(query.shape, query.dtype),
        cost_estimate=_cost(blocks, query, value, (2, 1)),
        name="block_sparse_query_gradient",
    )(*inputs, *_table(blocks, blocks.query_segments, blocks.key_segments, blocks.keys_of))
    in_specs = [_all(query), _part(key, rows), _part(value, rows), _all(change)]
    d_key, d_value = call(
        functools.partial(key_kernel, setting=setting),
        grid=(key.shape[1] // rows, batch, heads),
        in_specs=[*in_specs, _row_all(cells), _row_all(cells), *_table_specs(rows)],
        out_specs=[_part(key, rows), _part(value, rows)],
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (key, value)],
        cost_estimate=_cost(blocks, query, value, (2, 2)),
        name="block_sparse_key_gradient",
    )(*inputs, *_table(blocks, blocks.key_segments, blocks.query_segments, blocks.queries_of))
    return d_query, d_key, d_value


_attend.defvjp(_attend_and_keep, _gradients)


def _cost(
    blocks: LiveBlocks, query: Array, value: Array, products: tuple[int, int]
) -> pl.CostEstimate:
    """What a kernel computes, for whoever counts it; Triton does not read it.

    Args:
        blocks: their live pairs are multiplied, masked or not.
        query, value: (B, N, K, D) and (B, M, K, Dv).
        products: of every pair, how many are D wide and how many Dv.
    """
    batch, _, heads, width = query.shape
    pairs = int(blocks.keys_of.count.sum()) * blocks.block_q * blocks.block_k * batch * heads
    wide = products[0] * width + products[1] * value.shape[-1]
    moved = 4 * query.size * query.dtype.itemsize
    return pl.CostEstimate(flops=2 * pairs * wide, transcendentals=pairs, bytes_accessed=moved)


def _table(blocks: LiveBlocks, own: np.ndarray, others: np.ndarray, lists: BlockLists) -> tuple:
    """What a kernel reads of the topology; log weights to the base 2."""
    weight = (blocks.log_weight * LOG2_E).astype(np.float32)
    return tuple(map(jnp.asarray, (own, others, weight, lists.live, lists.full, lists.count)))


def _table_specs(own: int) -> list[pl.BlockSpec]:
    """Of `_table`: a program reads the segments of its own block and anything of the rest."""
    return [pl.BlockSpec((own,), lambda i, b, h: (i,)), *[pl.BlockSpec() for _ in range(5)]]


def _part(cells: Array, block: int) -> pl.BlockSpec:
    """A program's own block of one head of (B, N, K, D)."""
    return pl.BlockSpec((None, block, None, cells.shape[-1]), lambda i, b, h: (b, i, h, 0))


def _all(cells: Array) -> pl.BlockSpec:
    """All cells of one head; the kernel loads what it wants."""
    shape = (None, cells.shape[1], None, cells.shape[-1])
    return pl.BlockSpec(shape, lambda i, b, h: (b, 0, h, 0))


def _row_part(block: int) -> pl.BlockSpec:
    """A program's own block of one head of (B, K, N)."""
    return pl.BlockSpec((None, None, block), lambda i, b, h: (b, h, i))


def _row_all(cells: int) -> pl.BlockSpec:
    return pl.BlockSpec((None, None, cells), lambda i, b, h: (b, h, 0))


def _setting(
    launches: dict[tuple[int, bool], _Launch],
    query: Array,
    value: Array,
    block: int,
    scale: float,
    interpret: bool,
) -> tuple[Setting, plgpu.CompilerParams]:
    """What is static in a kernel for these dtypes and widths; a small block is one part."""
    launch = launches[query.dtype.itemsize, max(query.shape[-1], value.shape[-1]) > 64]
    # Products of float32 as exact as float32 are, by three of TF32: without tensor cores, operands
    # would fill the registers many times over. The interpreter has float32 itself.
    split = query.dtype == jnp.float32 and not interpret
    precision = lax.DotAlgorithmPreset.TF32_TF32_F32_X3 if split else lax.Precision.HIGHEST
    setting = Setting(
        scale=scale,
        block=block,
        rows=min(launch.rows, block),
        step=min(launch.step, block),
        dot=functools.partial(plgpu.dot, precision=precision),
    )
    params = plgpu.CompilerParams(num_warps=launch.num_warps, num_stages=launch.num_stages)
    return setting, params
