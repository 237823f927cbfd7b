"""The CogVideoX-2B transformer: text and video tokens in one sequence, modulated by the timestep.

A port of diffusers' `CogVideoXTransformer3DModel` (Yang et al. 2024, arXiv:2408.06072), equal to
it to float32 rounding. The depth is one scan over parameters stacked on axis 0, so that one block
is compiled once, and parameters that are stored in half precision are promoted one at a time, where
they are used, never as a whole stack.
"""

from __future__ import annotations

from typing import Any

import einops
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Int, Num

from roam_jax import logical
from roam_jax.canvas.shards import CellSplit
from roam_jax.cogvideox.block import (
    SMALL,
    Block,
    JointCells,
    TwoStreams,
    layer_norm,
    modulate,
    of_video,
)
from roam_jax.cogvideox.config import TransformerConfig
from roam_jax.cogvideox.embedding import Conditioning, PatchEmbed, TimeEmbedding, condition


class AdaNormOut(nn.Module):
    """LayerNorm, then a shift and scale from the timestep (in this order)."""

    config: TransformerConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        tokens: Float[Array, "B N D"],
        temb: Conditioning,
        frames: Int[np.ndarray, " N"] | None = None,
    ) -> Float[Array, "B N D"]:
        """Modulated tokens."""
        width = 2 * self.config.width
        linear = nn.Dense(width, dtype=self.dtype, kernel_init=SMALL, name="linear")
        shift, scale = jnp.split(of_video(linear(nn.silu(temb)), frames), 2, axis=-1)
        norm = layer_norm("norm", epsilon=self.config.norm_eps, dtype=self.dtype)
        return modulate(norm(tokens), shift, scale)


class Readout(nn.Module):
    """Video tokens -> velocity.

    A model that shares its scope holds `norm_final`, `norm_out` and `proj_out` at its own level, as
    diffusers does.
    """

    config: TransformerConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        video: Float[Array, "B N D"],
        temb: Conditioning,
        shape: tuple[int, ...],
        frames: Int[np.ndarray, " N"] | None = None,
    ) -> Float[Array, "B F C H W"]:
        """Tokens of latents with `shape` (B, F, C, H, W) -> velocity of the same size, float32.

        `temb` and `frames` are those of `Block`.
        """
        config, patch = self.config, self.config.patch_size
        norm = layer_norm("norm_final", epsilon=config.norm_eps, dtype=self.dtype)
        tokens = AdaNormOut(config, self.dtype, name="norm_out")(norm(video), temb, frames)
        project = nn.Dense(
            config.out_channels * patch**2, dtype=self.dtype, kernel_init=SMALL, name="proj_out"
        )
        return einops.rearrange(
            project(tokens).astype(jnp.float32),
            "B (F H W) (C p q) -> B F C (H p) (W q)",
            F=shape[1],
            H=shape[3] // patch,
            p=patch,
            q=patch,
        )


class Transformer(nn.Module):
    """Noisy latents, text and timestep -> velocity.

    Args:
        config: sizes.
        dtype: compute dtype; parameters may be stored in another.
    """

    config: TransformerConfig
    dtype: Any = jnp.float32

    def setup(self):
        """Declares the parts; those of the readout keep their names at this level."""
        self.patch_embed = PatchEmbed(self.config, self.dtype)
        self.time_embedding = TimeEmbedding(self.config, self.dtype)
        self.blocks = Block(self.config, self.dtype)
        self.readout = Readout(self.config, self.dtype)
        nn.share_scope(self, self.readout)

    def __call__(
        self,
        latents: Float[Array, "B F C H W"],
        text: Float[Array, "B S Dt"],
        timesteps: Num[Array, " B"] | Num[Array, "B F"],
    ) -> Float[Array, "B F C H W"]:
        """Predicts the velocity v = sqrt(alpha_bar) noise - sqrt(1 - alpha_bar) x0.

        Args:
            latents: x_t, scaled by the VAE's factor.
            text: embeddings of exactly `max_text_seq_length` tokens, padding included.
            timesteps: 0..999, one a row (B,) as in diffusers, or one a latent frame (B, F).

        Returns:
            v in float32.

        Raises:
            ValueError: a shape does not fit the config.
        """
        streams = self.patch_embed(latents, text)
        cells = np.repeat(np.arange(latents.shape[1]), streams[1].shape[1] // latents.shape[1])
        temb, frames = condition(self.time_embedding, timesteps, cells)
        inner, streams = _split(streams, frames)
        scan = nn.scan(
            lambda block, carry, temb: (block(*carry, temb, inner), None),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=self.config.num_layers,
        )
        (_, video), _ = scan(self.blocks, streams, temb)
        return self.readout(video[:, : len(cells)], temb, latents.shape, frames)


def _split(
    streams: TwoStreams, frames: Int[np.ndarray, " N"] | None
) -> tuple[JointCells, TwoStreams]:
    """Cells and streams of the blocks, over the devices of the mesh along "sequence"."""
    shards = logical.shards(streams[1], logical.CELLS)
    if shards == 1:
        return JointCells(frames=frames), streams
    split = CellSplit(tuple(x.shape[1] for x in streams), shards)
    if frames is not None:
        frames = split.padded_stream(frames, 1)
    cells = JointCells(frames=frames, split=split)
    padded = cells.padded(dict(zip(("text", "video"), streams, strict=True)))
    return cells, (padded["text"], padded["video"])
