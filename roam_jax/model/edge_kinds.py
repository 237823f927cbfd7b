"""Attention under a plan whose edges are of several kinds, and what these kinds learn.

By this rule kinds mix: the softmax edges of a query act as one joint masked softmax; every other
edge gives one output; these outputs are averaged, each weighted by its edge's weight, the joint
softmax by the sum of the weights of the softmax edges that give the query a key.
"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from roam_jax.attention.kinds import DOT_PRODUCT_KINDS, LATENTS, run_edge
from roam_jax.attention.sharded import attention
from roam_jax.canvas.plan import AttentionPlan, EdgePlan
from roam_jax.canvas.shards import CellSplit

# Cosine attention starts as sharp as canvas-engineering's.
TEMPERATURE = 10.0


class KindedAttention(nn.Module):
    """Planned attention, with the edges of other kinds beside it.

    Without such edges it is planned attention and has no parameters. With them it owns
    `temperature_I` (), `gate_I` () and `latents_I` (heads, 8, D) of the edges of kind
    `cosine_attention`, `gated` and `perceiver`; I is the edge's index in the topology, so that
    plans for parts of a layout find the same ones.
    """

    @nn.compact
    def __call__(
        self,
        query: Float[Array, "B N K Ds"],
        key: Float[Array, "B M K Ds"],
        value: Float[Array, "B M K D"],
        plan: AttentionPlan,
        *,
        plain: tuple[Float[Array, "B N K D"], Float[Array, "B M K D"]] | None = None,
        split: CellSplit | None = None,
    ) -> Float[Array, "B N K D"]:
        """What every query reads, in the dtype of `value`; 0 where no edge gives it a key.

        Args:
            query, key: of scores q . k / sqrt(Ds); they may hold positions or a temperature.
            value: what is read.
            plan: for these sequences.
            plain: queries and keys of the kinds that are not in `kinds.DOT_PRODUCT_KINDS`; None =
                the same.
            split: of the cells over devices; None = each has all.
        """
        out = attention(query, key, value, plan, split=split)
        if not plan.edges:
            return out
        plain = (query, key) if plain is None else plain
        mixed = plan.shares[0][:, None, None] * out.astype(jnp.float32)
        for share, edge in zip(plan.shares[1:], plan.edges, strict=True):
            read = (query, key) if edge.kind in DOT_PRODUCT_KINDS else plain
            parameter = self._parameter(edge, heads=value.shape[2], width=value.shape[3])
            mixed += share[:, None, None] * run_edge(edge, *read, value, parameter)
        return mixed.astype(value.dtype)

    def _parameter(self, edge: EdgePlan, *, heads: int, width: int) -> Array | None:
        """What an edge has learned, for the kinds that do."""
        if edge.kind == "cosine_attention":
            start = nn.initializers.constant(TEMPERATURE)
            return self.param(f"temperature_{edge.index}", start, ())
        if edge.kind == "gated":
            return self.param(f"gate_{edge.index}", nn.initializers.zeros_init(), ())
        if edge.kind == "perceiver":
            start = nn.initializers.normal(0.02)
            return self.param(f"latents_{edge.index}", start, (heads, LATENTS, width))
        return None
