"""Attention by a compiled plan: what the topology forbids is not computed.

One function for every backend. On a CPU, and wherever nothing else fits, the tiles of the plan run
in plain JAX. It equals dense attention under the topology's mask to float32 rounding.
"""

from __future__ import annotations

from jaxtyping import Array, Float

from roam_jax.attention import dense
from roam_jax.attention.tiled import tiled_attention
from roam_jax.canvas.plan import AttentionPlan


def planned_attention(
    query: Float[Array, "B N K D"],
    key: Float[Array, "B M K D"],
    value: Float[Array, "B M K Dv"],
    plan: AttentionPlan,
) -> Float[Array, "B N K Dv"]:
    """The softmax edges of a plan: attention with scale 1/sqrt(D), a query without keys gets 0.

    Args:
        query, key, value: projected heads, in the layout's sequence order.
        plan: from `canvas.plan.compile_plan`.

    Raises:
        ValueError: the plan is for sequences of other lengths.
    """
    cells = query.shape[1], key.shape[1]
    if cells != (plan.query_cells, plan.key_cells):
        raise ValueError(
            f"plan for {plan.query_cells} queries and {plan.key_cells} keys, got {cells[0]} and "
            f"{cells[1]}"
        )
    if plan.is_dense:
        return dense.attention(query, key, value, table=plan.table)
    return tiled_attention(query, key, value, plan.stacks)
