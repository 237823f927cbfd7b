"""Kernel bodies of attention over live blocks; `attention/block_sparse.py` runs them.

A program owns some cells of one block of one head and walks the blocks of the other side that the
topology lets them meet. References after the arrays are to the segments of the own cells and of all
cells of the other side, to the log weights (base 2) and to the lists of live blocks
(`canvas/live_blocks.py`). Full blocks are plain flash attention; partial ones add the log weight of
each pair, gathered from the table of segments.

Source: FlashAttention-2 (Dao 2023, arXiv:2307.08691, algorithms 1 and 2).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jaxtyping import Array

LOG2_E = math.log2(math.e)


@dataclasses.dataclass(frozen=True)
class Setting:
    """What is static in a kernel.

    Args:
        scale: of the scores.
        block: cells of a block, on both sides.
        rows: cells of its own block that a program takes.
        step: cells of the other side that one step of its loop takes.
        dot: product in float32; the second side transposed with `trans_b=True`.
    """

    scale: float
    block: int
    rows: int
    step: int
    dot: Callable


def _walk(
    body: Callable, carry: tuple[Array, ...], lists: list, setting: Setting
) -> tuple[Array, ...]:
    """The carry after all live blocks of this program, a few cells of a block at a time.

    Args:
        body: `body(start, carry, partial=...)`, for the cells from `start` on.
        carry: of the loop.
        lists: references to the fields of `BlockLists`.
        setting: of the kernel.
    """
    live_ref, full_ref, count_ref = lists
    own = lax.div(pl.program_id(0), setting.block // setting.rows)
    parts = setting.block // setting.step

    def at(j, carry, *, partial):
        start = live_ref[own, lax.div(j, parts)] * setting.block
        start += lax.rem(j, parts) * setting.step
        return body(start, carry, partial=partial)

    full, count = full_ref[own] * parts, count_ref[own] * parts
    carry = lax.fori_loop(0, full, functools.partial(at, partial=False), carry)
    return lax.fori_loop(full, count, functools.partial(at, partial=True), carry)


def forward_kernel(
    query_ref, key_ref, value_ref, own_ref, others_ref, weight_ref, *refs, setting: Setting
) -> None:
    """Attended values and the base-2 log-sum-exp of the scores, 0 for queries without keys.

    Args:
        query_ref: (rows, D) of the program's queries.
        key_ref, value_ref: (M, D) and (M, Dv), all of the head.
        own_ref, others_ref, weight_ref: of the topology.
        refs: the lists, then the outputs (rows, Dv) and (rows,).
        setting: what is static.
    """
    *lists, out_ref, log_sum_ref = refs
    query = query_ref[...]

    def body(start, carry, *, partial):
        total, peak, sums = carry
        here = pl.dslice(start, setting.step)
        scores = setting.dot(query, key_ref[here, :], trans_b=True) * (setting.scale * LOG2_E)
        if partial:
            scores += weight_ref[own_ref[...][:, None], others_ref[here][None, :]]
        new_peak = jnp.maximum(peak, scores.max(axis=1))
        # All of a row's keys may be hidden so far; 0 keeps exp2(-inf - peak) = 0 instead of NaN.
        base = jnp.where(new_peak == -jnp.inf, 0.0, new_peak)
        weights = jnp.exp2(scores - base[:, None])
        kept = jnp.exp2(peak - base)
        value = value_ref[here, :]
        sums = sums * kept[:, None] + setting.dot(weights.astype(value.dtype), value)
        return total * kept + weights.sum(axis=1), new_peak, sums

    carry = (
        jnp.zeros(setting.rows, jnp.float32),
        jnp.full(setting.rows, -jnp.inf, jnp.float32),
        jnp.zeros(out_ref.shape, jnp.float32),
    )
    total, peak, sums = _walk(body, carry, lists, setting)
    some = total > 0
    total = jnp.where(some, total, 1.0)
    out_ref[...] = (sums / total[:, None]).astype(out_ref.dtype)
    log_sum_ref[...] = jnp.where(some, peak + jnp.log2(total), 0.0)


def query_kernel(
    query_ref, key_ref, value_ref, change_ref, log_sum_ref, shift_ref, *refs, setting: Setting
) -> None:
    """Gradient of the queries.

    Args:
        query_ref, change_ref: (rows, D) and (rows, Dv) of the program's queries; the change is the
            gradient of the output.
        key_ref, value_ref: (M, D) and (M, Dv), all of the head.
        log_sum_ref, shift_ref: (rows,) float32.
        refs: of the topology, then of the gradient (rows, D).
        setting: what is static.
    """
    own_ref, others_ref, weight_ref, *lists, d_query_ref = refs
    query, change = query_ref[...], change_ref[...]
    log_sum, shift = log_sum_ref[...], shift_ref[...]

    def body(start, carry, *, partial):
        (d_query,) = carry
        here = pl.dslice(start, setting.step)
        key = key_ref[here, :]
        scores = setting.dot(query, key, trans_b=True) * (setting.scale * LOG2_E)
        if partial:
            scores += weight_ref[own_ref[...][:, None], others_ref[here][None, :]]
        weights = jnp.exp2(scores - log_sum[:, None])
        d_weights = setting.dot(change, value_ref[here, :], trans_b=True)
        d_scores = weights * (d_weights - shift[:, None])
        return (d_query + setting.dot(d_scores.astype(key.dtype), key),)

    carry = (jnp.zeros(query.shape, jnp.float32),)
    (d_query,) = _walk(body, carry, lists, setting)
    d_query_ref[...] = (d_query * setting.scale).astype(d_query_ref.dtype)


def key_kernel(
    query_ref, key_ref, value_ref, change_ref, log_sum_ref, shift_ref, *refs, setting: Setting
) -> None:
    """Gradients of keys and values, with scores as keys by queries.

    Args:
        query_ref, change_ref: (N, D) and (N, Dv), all of the head; the change is the gradient of
            the output.
        key_ref, value_ref: (rows, D) and (rows, Dv) of the program's keys.
        log_sum_ref, shift_ref: (N,) float32.
        refs: of the topology, then of the gradients (rows, D) and (rows, Dv).
        setting: what is static.
    """
    own_ref, others_ref, weight_ref, *lists, d_key_ref, d_value_ref = refs
    key, value = key_ref[...], value_ref[...]

    def body(start, carry, *, partial):
        d_key, d_value = carry
        here = pl.dslice(start, setting.step)
        query, change = query_ref[here, :], change_ref[here, :]
        scores = setting.dot(key, query, trans_b=True) * (setting.scale * LOG2_E)
        if partial:
            scores += weight_ref[others_ref[here][None, :], own_ref[...][:, None]]
        weights = jnp.exp2(scores - log_sum_ref[here][None, :])
        d_value += setting.dot(weights.astype(change.dtype), change)
        d_weights = setting.dot(value, change, trans_b=True)
        d_scores = weights * (d_weights - shift_ref[here][None, :])
        return d_key + setting.dot(d_scores.astype(query.dtype), query), d_value

    carry = (jnp.zeros(key.shape, jnp.float32), jnp.zeros(value.shape, jnp.float32))
    d_key, d_value = _walk(body, carry, lists, setting)
    d_key_ref[...] = (d_key * setting.scale).astype(d_key_ref.dtype)
    d_value_ref[...] = d_value.astype(d_value_ref.dtype)
