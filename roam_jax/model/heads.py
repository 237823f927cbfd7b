"""Action decoders: from backbone output or action cells to robot actions."""

from __future__ import annotations

import flax.linen as nn
import jax
from jaxtyping import Array, Float

# The published head: 16 -> 8 -> 7.
POOLED_HIDDEN = 8
TOKENS_HIDDEN = 64


class PooledDecoder(nn.Module):
    """Mean of the backbone output over frames and space -> MLP -> the action at `t_current`.

    Source: the published ROAM action head, 199 parameters on CogVideoX-2B.
    """

    actions: int

    @nn.compact
    def __call__(self, output: Float[Array, "B F C H W"]) -> Float[Array, "B 1 A"]:
        """Backbone output (velocity) to one action, normalised units."""
        pooled = output.mean(axis=(1, 3, 4))
        hidden = nn.relu(nn.Dense(POOLED_HIDDEN, name="hidden")(pooled))
        return nn.Dense(self.actions, name="out")(hidden)[:, None]


class TokensDecoder(nn.Module):
    """Each future-action cell -> LayerNorm -> MLP -> its action.

    The last layer starts at zero, so that the first prediction is the bias, whatever the backbone.
    """

    actions: int

    @nn.compact
    def __call__(self, cells: Float[Array, "B P D"]) -> Float[Array, "B P A"]:
        """Action cells after the last block to a chunk, normalised units."""
        cells = nn.LayerNorm(epsilon=1e-5, use_fast_variance=False, name="norm")(cells)
        hidden = jax.nn.gelu(nn.Dense(TOKENS_HIDDEN, name="hidden")(cells))
        return nn.Dense(self.actions, name="out", kernel_init=nn.initializers.zeros_init())(hidden)
