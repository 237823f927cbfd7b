"""The two sides of `attention.py`: planned attention, and torch's fused attention."""

from __future__ import annotations

import functools

import jax
import numpy as np
import torch
from attention_cases import HEAD_WIDTH, HEADS

from roam_jax.attention.planned import planned_attention
from roam_jax.canvas.plan import AttentionPlan

# The passes that are timed.
FORWARD, BOTH = "forward", "forward+backward"
MIB = 2**20


def draw_heads(cells: int) -> tuple[np.ndarray, ...]:
    """Query, key, value and the gradient of the output, (1, N, K, D) float32."""
    rng = np.random.default_rng(0)
    return tuple(rng.standard_normal((1, cells, HEADS, HEAD_WIDTH), np.float32) for _ in range(4))


class OurAttention:
    """Attention under a plan, compiled for both passes.

    Args:
        plan: of a topology.
        heads: from `draw_heads`.
    """

    def __init__(self, plan: AttentionPlan, heads: tuple[np.ndarray, ...]):
        attend = functools.partial(planned_attention, plan=plan)

        def both(query, key, value, change):
            out, pull = jax.vjp(attend, query, key, value)
            return out, *pull(change)

        self.heads = jax.device_put(heads)
        self.compiled = {
            FORWARD: jax.jit(attend).lower(*self.heads[:3]).compile(),
            BOTH: jax.jit(both).lower(*self.heads).compile(),
        }

    def forward(self) -> jax.Array:
        """The output."""
        return jax.block_until_ready(self.compiled[FORWARD](*self.heads[:3]))

    def both(self) -> tuple[jax.Array, ...]:
        """The output, and gradients of query, key and value."""
        return jax.block_until_ready(self.compiled[BOTH](*self.heads))

    def temporaries(self) -> float:
        """MiB that forward and backward need beside inputs and outputs."""
        return self.compiled[BOTH].memory_analysis().temp_size_in_bytes / MIB


class TorchAttention:
    """`scaled_dot_product_attention`, which is dense without a mask.

    Args:
        heads: from `draw_heads`.
        mask: (N, N) bool, which pairs are allowed.
    """

    def __init__(self, heads: tuple[np.ndarray, ...], mask: np.ndarray | None = None):
        # The order that torch's kernel wants, contiguous.
        *inputs, self.change = (torch.tensor(x).transpose(1, 2).contiguous() for x in heads)
        self.inputs = [x.requires_grad_() for x in inputs]
        self.mask = None if mask is None else torch.tensor(mask)

    def _attend(self) -> torch.Tensor:
        attend = torch.nn.functional.scaled_dot_product_attention
        return attend(*self.inputs, attn_mask=self.mask)

    def forward(self) -> torch.Tensor:
        """The output."""
        with torch.no_grad():
            return self._attend()

    def both(self) -> tuple[torch.Tensor, ...]:
        """The output, and gradients of query, key and value."""
        out = self._attend()
        return out, *torch.autograd.grad(out, self.inputs, self.change)


def in_our_order(made: tuple[torch.Tensor, ...]) -> list[np.ndarray]:
    """(1, N, K, D) arrays of what `TorchAttention.both` gives."""
    return [x.detach().transpose(1, 2).numpy() for x in made]
