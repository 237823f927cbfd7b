"""Decoders: from backbone output, cells or activations to robot actions and other streams.

A ladder of capacity. `PooledDecoder` sees one vector, `PerFrameDecoder` one a latent frame,
`TokensDecoder` one cell for every vector that it predicts, `CrossAttentionDecoder` all activations
of chosen blocks.
"""

from __future__ import annotations

import functools

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from roam_jax.attention import dense
from roam_jax.contracts import FRAMES_PER_LATENT

# The published head: 16 -> 8 -> 7.
POOLED_HIDDEN = 8
TOKENS_HIDDEN = 64
CROSS_WIDTH, CROSS_HEADS = 256, 4

_layer_norm = functools.partial(nn.LayerNorm, epsilon=1e-5, use_fast_variance=False)
_zeros = nn.initializers.zeros_init()


class PooledDecoder(nn.Module):
    """Mean of the backbone output over frames and space -> MLP -> the action at `t_current`.

    Source: `ActionHead` of canvas-engineering, 199 parameters on CogVideoX-2B.
    """

    actions: int

    @nn.compact
    def __call__(self, output: Float[Array, "B F C H W"]) -> Float[Array, "B 1 A"]:
        """Backbone output (velocity) to one action, normalised units."""
        pooled = output.mean(axis=(1, 3, 4))
        hidden = jax.nn.gelu(nn.Dense(POOLED_HIDDEN, name="hidden")(pooled), approximate=False)
        return nn.Dense(self.actions, name="out")(hidden)[:, None]


class PerFrameDecoder(nn.Module):
    """Mean of the backbone output over space -> MLP -> the four actions of each latent frame."""

    actions: int

    @nn.compact
    def __call__(self, output: Float[Array, "B F C H W"]) -> Float[Array, "B P A"]:
        """Backbone output of the predicted frames to their actions, normalised units."""
        pooled = output.mean(axis=(3, 4))
        hidden = jax.nn.gelu(nn.Dense(POOLED_HIDDEN, name="hidden")(pooled), approximate=False)
        out = nn.Dense(FRAMES_PER_LATENT * self.actions, name="out")(hidden)
        return einops.rearrange(out, "B F (P A) -> B (F P) A", A=self.actions)


class TokensDecoder(nn.Module):
    """Each cell -> LayerNorm -> MLP -> its vector.

    The last layer starts at zero, so that the first prediction is the bias, whatever the backbone.
    """

    features: int

    @nn.compact
    def __call__(self, cells: Float[Array, "B N D"]) -> Float[Array, "B N A"]:
        """Cells after the last block to vectors, normalised units."""
        cells = _layer_norm(name="norm")(cells)
        hidden = jax.nn.gelu(nn.Dense(TOKENS_HIDDEN, name="hidden")(cells))
        return nn.Dense(self.features, name="out", kernel_init=_zeros)(hidden)


class CrossAttentionDecoder(nn.Module):
    """One learned query an action reads the video activations of chosen blocks.

    Each block's activations are normed and narrowed on their own, then all of them are keys of one
    pre-norm transformer layer without self-attention. The last layer starts at zero.

    Args:
        actions: action dimensions A.
        chunk: actions P that are predicted.
    """

    actions: int
    chunk: int

    @nn.compact
    def __call__(self, activations: Float[Array, "taps B N D"]) -> Float[Array, "B P A"]:
        """Activations of the chosen blocks, (blocks, batch, cells, width), to a chunk."""
        narrow = functools.partial(nn.Dense, CROSS_WIDTH)
        memory = jnp.concatenate(
            [
                narrow(name=f"narrow_{i}")(_layer_norm(name=f"norm_{i}")(cells))
                for i, cells in enumerate(activations)
            ],
            axis=1,
        )
        start = nn.initializers.normal(0.02)
        query = self.param("query", start, (self.chunk, CROSS_WIDTH))
        state = jnp.broadcast_to(query, (memory.shape[0], *query.shape))

        def heads(name, tokens):
            return einops.rearrange(
                narrow(name=name)(tokens), "B N (K D) -> B N K D", K=CROSS_HEADS
            )

        attended = dense.attention(
            heads("to_q", _layer_norm(name="norm_query")(state)),
            heads("to_k", memory),
            heads("to_v", memory),
        )
        state += narrow(name="to_out")(einops.rearrange(attended, "B N K D -> B N (K D)"))
        hidden = nn.Dense(4 * CROSS_WIDTH, name="up")(_layer_norm(name="norm_up")(state))
        state += narrow(name="down")(jax.nn.gelu(hidden))
        state = _layer_norm(name="norm_out")(state)
        return nn.Dense(self.actions, name="out", kernel_init=_zeros)(state)
