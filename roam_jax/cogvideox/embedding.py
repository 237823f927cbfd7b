"""What goes into the CogVideoX transformer: tokens of text and video, embedding of the timestep.

Positions are sinusoidal and computed for any size. A timestep may be one of a batch row, as in
diffusers, or one of each latent frame.
"""

from __future__ import annotations

import functools
from typing import Any

import einops
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Int, Num

from roam_jax.cogvideox.config import TransformerConfig

# Time embedding of each batch row, or of the text and each latent frame of a row.
Conditioning = Float[Array, "B *F E"]


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

    def setup(self):
        """Declares both projections under the names that checkpoints are converted to."""
        self.text_proj = nn.Dense(self.config.width, dtype=self.dtype)
        size = (self.config.patch_size,) * 2
        self.proj = nn.Conv(self.config.width, size, size, "VALID", dtype=self.dtype)

    def __call__(
        self, latents: Float[Array, "B F C H W"], text: Float[Array, "B S Dt"]
    ) -> tuple[Float[Array, "B S D"], Float[Array, "B N D"]]:
        """Latents and text embeddings -> text and video tokens.

        Raises:
            ValueError: the text has another length or width than the model's, or the latents do not
                fit it, see `video`.
        """
        config = self.config
        if text.shape[1:] != (config.max_text_seq_length, config.text_embed_dim):
            raise ValueError(
                f"text embeddings have shape {text.shape}, expected (batch, "
                f"{config.max_text_seq_length}, {config.text_embed_dim})"
            )
        return self.text_proj(text), self.video(latents)

    def video(self, latents: Float[Array, "B F C H W"]) -> Float[Array, "B N D"]:
        """Latents -> video tokens.

        Raises:
            ValueError: the latents have another number of channels, or a height or width that
                patches do not divide.
        """
        config, patch = self.config, self.config.patch_size
        *_, channels, height, width = latents.shape
        if channels != config.in_channels or height % patch or width % patch:
            raise ValueError(
                f"latents have shape {latents.shape}, expected (batch, frames, "
                f"{config.in_channels}, height, width) with multiples of {patch}"
            )
        video = self.proj(einops.rearrange(latents, "B F C H W -> B F H W C"))
        video = video + self._positions(*video.shape[1:4]).astype(video.dtype)
        return einops.rearrange(video, "B F H W D -> B (F H W) D")

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


def condition(
    embed: TimeEmbedding,
    timesteps: Num[Array, " B"] | Num[Array, "B F"],
    frames: Int[np.ndarray, " N"],
) -> tuple[Conditioning, Int[np.ndarray, " N"] | None]:
    """Conditioning of the blocks by one timestep a row (B,), or one a latent frame (B, F).

    Args:
        embed: the model's time embedding.
        timesteps: 0..999.
        frames: latent frame of each video cell.

    Returns:
        `temb` and `frames` as `Block` takes them. With timesteps (B, F) the first row of `temb` is
        the text's, which gets the largest timestep of its batch row.

    Raises:
        ValueError: another number of timesteps than of latent frames.
    """
    if timesteps.ndim == 1:
        return embed(timesteps), None
    latents = int(frames.max()) + 1
    if timesteps.shape[1] != latents:
        raise ValueError(
            f"timesteps have shape {timesteps.shape}, expected (batch,), or (batch, {latents}) for "
            f"{latents} latent frames"
        )
    largest = timesteps.max(axis=1, keepdims=True)
    return embed(jnp.concatenate([largest, timesteps], axis=1)), frames
