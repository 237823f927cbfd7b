"""Attention by a compiled plan: what the topology forbids is not computed.

One function for every backend, equal to dense attention under the topology's mask to float32
rounding. On a CPU, and wherever nothing else fits, the tiles of the plan run in plain JAX. On
NVIDIA GPUs plain groups in half precision go to cuDNN, everything else to one kernel over live
blocks; on TPUs splash attention takes topologies of plain edges.
"""

from __future__ import annotations

import jax
import numpy as np
from jaxtyping import Array, Float

from roam_jax.attention import dense
from roam_jax.attention.block_sparse import DTYPES, block_sparse_attention
from roam_jax.attention.grouped_cudnn import cudnn_attention, unsupported
from roam_jax.attention.splash import splash_attention
from roam_jax.attention.tiled import tiled_attention
from roam_jax.canvas.plan import AttentionPlan
from roam_jax.spelling import check_choice

IMPLEMENTATIONS = ("tiles", "cudnn", "triton", "splash")
# More calls of cuDNN than this, one a stack of groups, and one kernel is better.
MOST_CALLS = 4


def planned_attention(
    query: Float[Array, "B N K D"],
    key: Float[Array, "B M K D"],
    value: Float[Array, "B M K Dv"],
    plan: AttentionPlan,
    *,
    implementation: str | None = None,
) -> Float[Array, "B N K Dv"]:
    """The softmax edges of a plan: attention with scale 1/sqrt(D), a query without keys gets 0.

    Args:
        query, key, value: projected heads, in the layout's sequence order.
        plan: from `canvas.plan.compile_plan`.
        implementation: one of `IMPLEMENTATIONS`; None = by the platform that JAX runs on.

    Raises:
        ValueError: the plan is for sequences of other lengths, there is no such implementation, or
            the one that is named cannot run this plan.
    """
    cells = query.shape[1], key.shape[1]
    if cells != (plan.query_cells, plan.key_cells):
        raise ValueError(
            f"plan for {plan.query_cells} queries and {plan.key_cells} keys, got {cells[0]} and "
            f"{cells[1]}"
        )
    chosen = implementation or best_implementation(
        plan, query, key, value, platform=jax.default_backend()
    )
    check_choice("implementation", chosen, IMPLEMENTATIONS)
    if chosen == "triton":
        return block_sparse_attention(query, key, value, plan.table, orders=plan.orders)
    if chosen == "splash":
        return splash_attention(query, key, value, plan.table, orders=plan.orders)
    if chosen == "cudnn":
        if plan.is_dense:
            raise ValueError("implementation = 'cudnn': the plan is dense under a mask, no groups")
        return cudnn_attention(query, key, value, plan.stacks)
    if plan.is_dense:
        return dense.attention(query, key, value, table=plan.table)
    return tiled_attention(query, key, value, plan.stacks)


def best_implementation(
    plan: AttentionPlan,
    query: Float[Array, "B N K D"],
    key: Float[Array, "B M K D"],
    value: Float[Array, "B M K Dv"],
    *,
    platform: str,
) -> str:
    """What suits a platform ("cpu", "gpu", "tpu"), these types and widths, and a plan best."""
    if platform == "gpu":
        stacks = plan.stacks or ()
        plain = 0 < len(stacks) <= MOST_CALLS and all(s.log_weight is None for s in stacks)
        fits = unsupported(query[None], key[None], value[None]) is None
        if plain and fits:
            return "cudnn"
        one_dtype = len({x.dtype for x in (query, key, value)}) == 1
        return "triton" if one_dtype and query.dtype in DTYPES else "tiles"
    if platform == "tpu":
        weight = plan.table.log_weight
        return "splash" if not weight[np.isfinite(weight)].any() else "tiles"
    return "tiles"
