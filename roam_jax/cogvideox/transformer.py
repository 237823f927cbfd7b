"""The CogVideoX-2B transformer: text and video tokens in one sequence, modulated by the timestep.

A port of diffusers' `CogVideoXTransformer3DModel` (Yang et al. 2024, arXiv:2408.06072), equal to
it to float32 rounding. The depth is one scan over parameters stacked on axis 0, so that one block
is compiled once, and parameters that are stored in half precision are promoted one at a time, where
they are used, never as a whole stack. Norm statistics and softmax are float32 in every dtype.
"""

from __future__ import annotations

import functools
from typing import Any

import einops
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int, Num

from roam_jax.attention import dense
from roam_jax.canvas.segments import SegmentTable
from roam_jax.cogvideox.config import TransformerConfig
from roam_jax.cogvideox.embedding import Conditioning, PatchEmbed, TimeEmbedding, condition

# Small, as in adaLN-Zero (Peebles & Xie 2023, section 3.2): blocks start near the identity and the
# prediction near 0, which trains best. Not zero, so that a fresh model is no constant, and every
# parameter has a gradient at the first step.
_SMALL = nn.initializers.normal(0.02)

# What attention and feed-forward layers add to the streams. A loop that keeps these two arrays for
# the backward pass runs neither attention nor the narrowing product a second time.
LAYER_OUTPUT = "layer_output"


def _layer_norm(name: str, *, epsilon: float, dtype: Any) -> nn.LayerNorm:
    """LayerNorm with torch's variance, the two-pass one."""
    return nn.LayerNorm(epsilon=epsilon, use_fast_variance=False, dtype=dtype, name=name)


def _of_text(values: Float[Array, "B *F D"]) -> Float[Array, "B 1 D"]:
    """The text's row of what was computed from `temb`."""
    return values[:, None] if values.ndim == 2 else values[:, :1]


def _of_video(
    values: Float[Array, "B *F D"], frames: Int[np.ndarray, " N"] | None
) -> Float[Array, "B N_or_1 D"]:
    """The same for every video cell, by its latent frame."""
    return values[:, None] if frames is None else values[:, 1 + frames]


def _modulate(
    tokens: Float[Array, "B N D"],
    shift: Float[Array, "B N_or_1 D"],
    scale: Float[Array, "B N_or_1 D"],
) -> Float[Array, "B N D"]:
    return tokens * (1 + scale) + shift


class AdaNorm(nn.Module):
    """One LayerNorm for both streams, then a shift, scale and gate of each from the timestep."""

    config: TransformerConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        text: Float[Array, "B S D"],
        video: Float[Array, "B N D"],
        temb: Conditioning,
        frames: Int[np.ndarray, " N"] | None = None,
    ) -> tuple[Float[Array, "B M D"], Float[Array, "B 1 D"], Float[Array, "B N_or_1 D"]]:
        """The joint sequence [text | video], normed; the text's and the video's gates."""
        linear = nn.Dense(
            6 * self.config.width, dtype=self.dtype, kernel_init=_SMALL, name="linear"
        )
        of_video, of_text = jnp.split(linear(nn.silu(temb)), 2, axis=-1)
        shift, scale, gate = jnp.split(_of_video(of_video, frames), 3, axis=-1)
        text_shift, text_scale, text_gate = jnp.split(_of_text(of_text), 3, axis=-1)
        norm = _layer_norm("norm", epsilon=self.config.norm_eps, dtype=self.dtype)
        text = _modulate(norm(text), text_shift, text_scale)
        video = _modulate(norm(video), shift, scale)
        return jnp.concatenate([text, video], axis=1), text_gate, gate


class JointAttention(nn.Module):
    """Self-attention of the joint sequence, queries and keys normed per head."""

    config: TransformerConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, tokens: Float[Array, "B N D"], table: SegmentTable | None = None
    ) -> Float[Array, "B N D"]:
        """Attends under `table`, or all to all."""

        def project(name):
            heads = nn.Dense(self.config.width, dtype=self.dtype, name=f"to_{name}")(tokens)
            heads = einops.rearrange(
                heads, "B N (K D) -> B N K D", K=self.config.num_attention_heads
            )
            if name == "v":
                return heads
            return _layer_norm(f"norm_{name}", epsilon=1e-6, dtype=self.dtype)(heads)

        attended = dense.attention(project("q"), project("k"), project("v"), table=table)
        attended = einops.rearrange(attended, "B N K D -> B N (K D)")
        to_out = nn.Dense(self.config.width, dtype=self.dtype, name="to_out")
        return checkpoint_name(to_out(attended), LAYER_OUTPUT)


class FeedForward(nn.Module):
    """Widens four times, tanh-approximate gelu, narrows."""

    config: TransformerConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, tokens: Float[Array, "B N D"]) -> Float[Array, "B N D"]:
        """Each token on its own."""
        width = self.config.width
        hidden = nn.Dense(4 * width, dtype=self.dtype, name="up")(tokens)
        down = nn.Dense(width, dtype=self.dtype, name="down")
        return checkpoint_name(down(nn.gelu(hidden, approximate=True)), LAYER_OUTPUT)


class Block(nn.Module):
    """Joint attention, then a feed-forward layer, each gated onto both streams.

    What the cells of `video` are is the caller's affair: all of them go through the video stream's
    modulation.
    """

    config: TransformerConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        text: Float[Array, "B S D"],
        video: Float[Array, "B N D"],
        temb: Conditioning,
        table: SegmentTable | None = None,
        frames: Int[np.ndarray, " N"] | None = None,
    ) -> tuple[Float[Array, "B S D"], Float[Array, "B N D"]]:
        """Both streams after the block.

        Args:
            text, video: the two streams.
            temb: time embedding of each batch row (B, E); or, with `frames`, of the text and of
                every latent frame (B, 1 + F, E).
            table: topology over the joint sequence [text | video]; None = all to all.
            frames: latent frame of each video cell, where frames have timesteps of their own.
        """
        attend = JointAttention(self.config, self.dtype, name="attn1")
        layers = {
            "norm1": functools.partial(attend, table=table),
            "norm2": FeedForward(self.config, self.dtype, name="ff"),
        }
        for name, layer in layers.items():
            norm = AdaNorm(self.config, self.dtype, name=name)
            joint, text_gate, gate = norm(text, video, temb, frames)
            change = layer(joint)
            text, video = (
                text + text_gate * change[:, : text.shape[1]],
                video + gate * change[:, text.shape[1] :],
            )
        return text, video


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
        linear = nn.Dense(width, dtype=self.dtype, kernel_init=_SMALL, name="linear")
        shift, scale = jnp.split(_of_video(linear(nn.silu(temb)), frames), 2, axis=-1)
        norm = _layer_norm("norm", epsilon=self.config.norm_eps, dtype=self.dtype)
        return _modulate(norm(tokens), shift, scale)


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
        norm = _layer_norm("norm_final", epsilon=config.norm_eps, dtype=self.dtype)
        tokens = AdaNormOut(config, self.dtype, name="norm_out")(norm(video), temb, frames)
        project = nn.Dense(
            config.out_channels * patch**2, dtype=self.dtype, kernel_init=_SMALL, name="proj_out"
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
        scan = nn.scan(
            lambda block, carry, temb: (block(*carry, temb, frames=frames), None),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=self.config.num_layers,
        )
        (_, video), _ = scan(self.blocks, streams, temb)
        return self.readout(video, temb, latents.shape, frames)
