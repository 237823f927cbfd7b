"""Attention under a mesh: every device on its own rows, heads and cells.

Kernels such as cuDNN's and Triton's see whole arrays, and XLA cannot split the loops over tiles.
So attention runs within a `shard_map`: the rows of the batch over "data" and "fsdp", heads over
"tensor". Where cells are split as well, devices are sent the keys that they read
(`attention/sequence.py`). Without a mesh this is planned or dense attention itself.
"""

from __future__ import annotations

import functools

import jax
from jaxtyping import Array, Float

from roam_jax import logical
from roam_jax.attention import dense
from roam_jax.attention.planned import planned_attention
from roam_jax.attention.sequence import split_attention
from roam_jax.canvas.plan import AttentionPlan
from roam_jax.canvas.shards import CellSplit, free_plan


def attention(
    query: Float[Array, "B N K D"],
    key: Float[Array, "B M K D"],
    value: Float[Array, "B M K Dv"],
    plan: AttentionPlan | None = None,
    *,
    split: CellSplit | None = None,
) -> Float[Array, "B N K Dv"]:
    """The softmax edges of a plan, on the devices of the mesh that the arrays are traced under.

    Args:
        query, key, value: projected heads, in the layout's sequence order; with `split` as it lays
            the cells out, device after device.
        plan: from `canvas.plan.compile_plan`; None = all to all.
        split: of the cells over "sequence"; None = every device has all.

    Raises:
        ValueError: the heads do not divide by the devices along "tensor", or as
            `planned_attention` and `canvas.shards.key_exchange`.
    """
    run = functools.partial(_whole, plan=plan)
    mesh = logical.mesh_of(query)
    if mesh is None:
        return run(query, key, value)
    devices, heads = logical.devices_along(mesh.shape, logical.HEADS), query.shape[2]
    if heads % devices:
        raise ValueError(
            f"{heads} attention heads do not divide by mesh.tensor = {devices}; expected a divisor "
            "of the heads"
        )
    cells = None
    if split is not None:
        cells = logical.CELLS
        whole = free_plan(sum(split.lengths)) if plan is None else plan
        run = functools.partial(split_attention, plan=whole, split=split)
    spec = logical.spec(query, logical.BATCH, cells, logical.HEADS, None)
    return jax.shard_map(
        run, mesh=mesh, in_specs=(spec, spec, spec), out_specs=spec, check_vma=False
    )(query, key, value)


def _whole(query: Array, key: Array, value: Array, *, plan: AttentionPlan | None) -> Array:
    """Attention of a device that has all cells."""
    if plan is None:
        return dense.attention(query, key, value)
    return planned_attention(query, key, value, plan)
