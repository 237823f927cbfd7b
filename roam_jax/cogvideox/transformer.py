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
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Num

from roam_jax.attention import dense
from roam_jax.canvas.segments import SegmentTable
from roam_jax.cogvideox.config import TransformerConfig

# Small, as in adaLN-Zero (Peebles & Xie 2023, section 3.2): blocks start near the identity and the
# prediction near 0, which trains best. Not zero, so that a fresh model is no constant, and every
# parameter has a gradient at the first step.
_SMALL = nn.initializers.normal(0.02)


def position_tables(
    config: TransformerConfig, *, frames: int, height: int, width: int
) -> tuple[Float[np.ndarray, "F Dt"], Float[np.ndarray, "H Ds"], Float[np.ndarray, "W Ds"]]:
    """Sinusoidal positions of latent frames, token rows and token columns.

    Computed in float64 from the float32 coordinates that diffusers has, then rounded. A quarter of
    the width codes time, three eighths code columns, three eighths rows.
    """

    def table(count: int, size: int, scale: float) -> np.ndarray:
        coordinates = np.arange(count, dtype=np.float32) / np.float32(scale)
        frequencies = 10000.0 ** -(np.arange(size // 2) / (size / 2))
        angles = np.outer(coordinates.astype(np.float64), frequencies)
        return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)

    temporal, spatial = config.width // 4, 3 * config.width // 8
    return (
        table(frames, temporal, config.temporal_interpolation_scale),
        table(height, spatial, config.spatial_interpolation_scale),
        table(width, spatial, config.spatial_interpolation_scale),
    )


def timestep_frequencies(width: int) -> Float[np.ndarray, " half"]:
    """Frequencies of the time embedding, rounded to float32 from float64 exponentials."""
    half = width // 2
    # The exponents are diffusers' float32 ones. Only exp needs float64: XLA's float32 exp alone
    # would cost 7e-6 of relative error at t = 999.
    exponents = np.float32(-np.log(10000)) * np.arange(half, dtype=np.float32) / np.float32(half)
    return np.exp(exponents.astype(np.float64)).astype(np.float32)


class PatchEmbed(nn.Module):
    """Projects text and 2 x 2 patches of the latents; adds positions to the video tokens.

    Tokens are in (frame, row, column) order.
    """

    config: TransformerConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, latents: Float[Array, "B F C H W"], text: Float[Array, "B S Dt"]
    ) -> tuple[Float[Array, "B S D"], Float[Array, "B N D"]]:
        """Latents and text embeddings -> text and video tokens.

        Raises:
            ValueError: the text has another length or width than the model's, or the latents
                another number of channels, or a height or width that patches do not divide.
        """
        config, patch = self.config, self.config.patch_size
        *_, channels, height, width = latents.shape
        if text.shape[1:] != (config.max_text_seq_length, config.text_embed_dim):
            raise ValueError(
                f"text embeddings have shape {text.shape}, expected (batch, "
                f"{config.max_text_seq_length}, {config.text_embed_dim})"
            )
        if channels != config.in_channels or height % patch or width % patch:
            raise ValueError(
                f"latents have shape {latents.shape}, expected (batch, frames, "
                f"{config.in_channels}, height, width) with multiples of {patch}"
            )
        text = nn.Dense(config.width, dtype=self.dtype, name="text_proj")(text)
        size = (patch, patch)
        project = nn.Conv(config.width, size, size, "VALID", dtype=self.dtype, name="proj")
        video = project(einops.rearrange(latents, "B F C H W -> B F H W C"))
        video = video + self._positions(*video.shape[1:4]).astype(video.dtype)
        return text, einops.rearrange(video, "B F H W D -> B (F H W) D")

    def _positions(self, frames: int, height: int, width: int) -> jax.Array:
        """(F, H, W, D): time, then columns, then rows; joined here so that no large constant is."""
        time, rows, columns = position_tables(
            self.config, frames=frames, height=height, width=width
        )
        shape = (frames, height, width)
        parts = time[:, None, None], columns[None, None], rows[None, :, None]
        return jnp.concatenate([jnp.broadcast_to(x, (*shape, x.shape[-1])) for x in parts], -1)


class TimeEmbedding(nn.Module):
    """Timesteps -> conditioning vectors; who uses one applies the first silu itself."""

    config: TransformerConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, timesteps: Num[Array, "*B"]) -> Float[Array, "*B E"]:
        """Timesteps 0..999 of any shape -> their embeddings."""
        frequencies = timestep_frequencies(self.config.width)
        angles = timesteps.astype(jnp.float32)[..., None] * frequencies
        waves = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)
        dense_layer = functools.partial(nn.Dense, self.config.time_embed_dim, dtype=self.dtype)
        return dense_layer(name="linear_2")(nn.silu(dense_layer(name="linear_1")(waves)))


def _layer_norm(name: str, *, epsilon: float, dtype: Any) -> nn.LayerNorm:
    """LayerNorm with torch's variance, the two-pass one."""
    return nn.LayerNorm(epsilon=epsilon, use_fast_variance=False, dtype=dtype, name=name)


def _modulate(
    tokens: Float[Array, "B N D"], shift: Float[Array, "B D"], scale: Float[Array, "B D"]
) -> Float[Array, "B N D"]:
    return tokens * (1 + scale[:, None]) + shift[:, None]


class AdaNorm(nn.Module):
    """One LayerNorm for both streams, then a shift, scale and gate of each from the timestep."""

    config: TransformerConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        text: Float[Array, "B S D"],
        video: Float[Array, "B N D"],
        temb: Float[Array, "B E"],
    ) -> tuple[Float[Array, "B M D"], Float[Array, "B 1 D"], Float[Array, "B 1 D"]]:
        """The joint sequence [text | video], normed; the text's and the video's gates."""
        linear = nn.Dense(
            6 * self.config.width, dtype=self.dtype, kernel_init=_SMALL, name="linear"
        )
        shift, scale, gate, text_shift, text_scale, text_gate = jnp.split(
            linear(nn.silu(temb)), 6, axis=-1
        )
        norm = _layer_norm("norm", epsilon=self.config.norm_eps, dtype=self.dtype)
        text = _modulate(norm(text), text_shift, text_scale)
        video = _modulate(norm(video), shift, scale)
        return jnp.concatenate([text, video], axis=1), text_gate[:, None], gate[:, None]


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
        return nn.Dense(self.config.width, dtype=self.dtype, name="to_out")(attended)


class FeedForward(nn.Module):
    """Widens four times, tanh-approximate gelu, narrows."""

    config: TransformerConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, tokens: Float[Array, "B N D"]) -> Float[Array, "B N D"]:
        """Each token on its own."""
        width = self.config.width
        hidden = nn.Dense(4 * width, dtype=self.dtype, name="up")(tokens)
        return nn.Dense(width, dtype=self.dtype, name="down")(nn.gelu(hidden, approximate=True))


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
        temb: Float[Array, "B E"],
        table: SegmentTable | None = None,
    ) -> tuple[Float[Array, "B S D"], Float[Array, "B N D"]]:
        """Both streams after the block.

        Args:
            text, video: the two streams.
            temb: conditioning from `TimeEmbedding`.
            table: topology over the joint sequence [text | video]; None = all to all.
        """
        attend = JointAttention(self.config, self.dtype, name="attn1")
        layers = {
            "norm1": functools.partial(attend, table=table),
            "norm2": FeedForward(self.config, self.dtype, name="ff"),
        }
        for name, layer in layers.items():
            norm = AdaNorm(self.config, self.dtype, name=name)
            joint, text_gate, gate = norm(text, video, temb)
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
        self, tokens: Float[Array, "B N D"], temb: Float[Array, "B E"]
    ) -> Float[Array, "B N D"]:
        """Modulated tokens."""
        width = 2 * self.config.width
        linear = nn.Dense(width, dtype=self.dtype, kernel_init=_SMALL, name="linear")
        shift, scale = jnp.split(linear(nn.silu(temb)), 2, axis=-1)
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
        temb: Float[Array, "B E"],
        shape: tuple[int, ...],
    ) -> Float[Array, "B F C H W"]:
        """Tokens of latents with `shape` (B, F, C, H, W) -> velocity of the same size, float32."""
        config, patch = self.config, self.config.patch_size
        norm = _layer_norm("norm_final", epsilon=config.norm_eps, dtype=self.dtype)
        tokens = AdaNormOut(config, self.dtype, name="norm_out")(norm(video), temb)
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
        timesteps: Num[Array, " B"],
    ) -> Float[Array, "B F C H W"]:
        """Predicts the velocity v = sqrt(alpha_bar) noise - sqrt(1 - alpha_bar) x0.

        Args:
            latents: x_t, scaled by the VAE's factor.
            text: embeddings of exactly `max_text_seq_length` tokens, padding included.
            timesteps: 0..999.

        Returns:
            v in float32.

        Raises:
            ValueError: a shape does not fit the config.
        """
        temb = self.time_embedding(timesteps)
        streams = self.patch_embed(latents, text)
        scan = nn.scan(
            lambda block, carry, temb: (block(*carry, temb), None),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=self.config.num_layers,
        )
        (_, video), _ = scan(self.blocks, streams, temb)
        return self.readout(video, temb, latents.shape)
