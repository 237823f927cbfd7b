"""The CogVideoX VAE (Yang et al. 2024, section 2.1): 4 frames x 8x8 pixels to one latent pixel.

A port of diffusers' `AutoencoderKLCogVideoX` that equals it frame for frame, its chunks included:
frames are encoded 8 at a time and latents decoded 2 at a time, what does not fill a chunk joins the
first one, and the causal convolutions remember two frames between chunks. GroupNorm statistics are
a chunk's own, so another chunking would give other numbers.
"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float

from roam_jax.cogvideox.vae_blocks import (
    Cache,
    CausalConv3D,
    Downsample3D,
    Frames,
    GroupNorm,
    ResnetStack,
    SpatialNorm3D,
    Upsample3D,
)
from roam_jax.cogvideox.vae_config import VAEConfig

FRAME_CHUNK = 8
LATENT_CHUNK = 2
MID_LAYERS = 2
LOGVAR_RANGE = (-30.0, 20.0)


class Encoder3D(nn.Module):
    """One chunk of frames to the moments of its latents, mean then log-variance in channels."""

    config: VAEConfig
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, cache: Cache, frames: Frames) -> tuple[Cache, Float[Array, "B F h w C2"]]:
        """`cache` is {} for the first chunk; returns the next chunk's and the moments."""
        config, dtype, new_cache = self.config, self.dtype, {}
        widths, groups = config.block_out_channels, config.norm_num_groups
        conv = CausalConv3D(widths[0], dtype, name="conv_in")
        hidden, new_cache["conv_in"] = conv(frames, cache.get("conv_in"))
        stages = [(f"down_blocks_{i}", w, config.layers_per_block) for i, w in enumerate(widths)]
        for i, (name, width, layers) in enumerate([*stages, ("mid_block", widths[-1], MID_LAYERS)]):
            stage = ResnetStack(width, layers, groups, config.norm_eps, dtype, name=name)
            hidden, new_cache[name] = stage(hidden, cache.get(name, {}))
            if i < len(widths) - 1:
                down = Downsample3D(i < config.temporal_levels, dtype, name=f"downsamplers_{i}")
                hidden = down(hidden)
        hidden = nn.silu(GroupNorm(groups, name="norm_out")(hidden))
        conv = CausalConv3D(2 * config.latent_channels, dtype, name="conv_out")
        moments, new_cache["conv_out"] = conv(hidden, cache.get("conv_out"))
        return new_cache, moments


class Decoder3D(nn.Module):
    """One chunk of latents to frames; the latents also modulate every norm."""

    config: VAEConfig
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, cache: Cache, latents: Float[Array, "B F h w C"]
    ) -> tuple[Cache, Float[Array, "B T H W c"]]:
        """`cache` is {} for the first chunk; returns the next chunk's and the frames."""
        config, dtype, new_cache = self.config, self.dtype, {}
        widths, groups = config.block_out_channels[::-1], config.norm_num_groups
        conv = CausalConv3D(widths[0], dtype, name="conv_in")
        hidden, new_cache["conv_in"] = conv(latents, cache.get("conv_in"))
        layers = config.layers_per_block + 1
        stages = [(f"up_blocks_{i}", width, layers) for i, width in enumerate(widths)]
        for i, (name, width, layers) in enumerate([("mid_block", widths[0], MID_LAYERS), *stages]):
            stage = ResnetStack(width, layers, groups, config.norm_eps, dtype, name=name)
            hidden, new_cache[name] = stage(hidden, cache.get(name, {}), latents)
            if 0 < i < len(widths):
                up = Upsample3D(i <= config.temporal_levels, dtype, name=f"upsamplers_{i - 1}")
                hidden = up(hidden)
        hidden = nn.silu(SpatialNorm3D(groups, dtype, name="norm_out")(hidden, latents))
        conv = CausalConv3D(config.out_channels, dtype, name="conv_out")
        frames, new_cache["conv_out"] = conv(hidden, cache.get("conv_out"))
        return new_cache, frames


class VAE(nn.Module):
    """The whole autoencoder, in diffusers' axis order.

    Args:
        config: sizes.
        dtype: compute type; norm statistics are float32 whatever it is.
    """

    config: VAEConfig = VAEConfig()
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        """Names the two halves."""
        self.encoder = Encoder3D(self.config, self.dtype)
        self.decoder = Decoder3D(self.config, self.dtype)

    def __call__(self, video: Float[Array, "B C T H W"]) -> Float[Array, "B C _ _ _"]:
        """Decodes the posterior mean; visits every parameter, for `init`."""
        mean, _ = self.encode(video)
        return self.decode(mean)

    def encode(
        self, video: Float[Array, "B C T H W"]
    ) -> tuple[Float[Array, "B c F h w"], Float[Array, "B c F h w"]]:
        """The posterior of the latents.

        Args:
            video: RGB in [-1, 1]. T = 4n + 1 frames give n + 1 latents; other counts give what
                diffusers gives (5 and 8 frames both 2).

        Returns:
            Mean and log-variance, not scaled by `config.scaling_factor`.

        Raises:
            ValueError: another number of channels, or frames smaller than one latent pixel.
        """
        self._check("video", video.shape, self.config.in_channels)
        smallest = self.config.spatial_compression_ratio
        if min(video.shape[-2:]) < smallest:
            height, width = video.shape[-2:]
            raise ValueError(f"video of {height}x{width}: expected at least {smallest} pixels each")
        frames = rearrange(video, "B C T H W -> B T H W C")
        moments = _in_chunks(self.encoder, frames, size=FRAME_CHUNK)
        mean, logvar = jnp.split(rearrange(moments, "B F H W C -> B C F H W"), 2, axis=1)
        return mean, jnp.clip(logvar, *LOGVAR_RANGE)

    def decode(self, latents: Float[Array, "B C F h w"]) -> Float[Array, "B c T H W"]:
        """The video of unscaled latents, RGB in about [-1, 1] (not clipped).

        Raises:
            ValueError: another number of channels.
        """
        self._check("latents", latents.shape, self.config.latent_channels)
        latents = rearrange(latents, "B C F H W -> B F H W C")
        frames = _in_chunks(self.decoder, latents, size=LATENT_CHUNK)
        return rearrange(frames, "B T H W C -> B C T H W")

    def _check(self, name: str, shape: tuple[int, ...], channels: int):
        if shape[1] != channels or not all(shape):
            raise ValueError(f"{name} of shape {shape}: expected (B, {channels}, frames, H, W)")


def _in_chunks(module: nn.Module, x: Frames, *, size: int) -> Float[Array, "B _ _ _ _"]:
    """Applies `module(cache, chunk) -> (cache, y)` along time; the remainder joins chunk 0."""
    count = x.shape[1]
    first = size + count % size if count >= size else count
    cache, y = module({}, x[:, :first])
    if first == count:
        return y
    # The chunks after the first are alike: scanned, a long clip compiles as fast as two chunks.
    scan = nn.scan(
        lambda module, cache, chunk: module(cache, chunk),
        variable_broadcast="params",
        split_rngs={"params": False},
        in_axes=1,
        out_axes=1,
    )
    rest = rearrange(x[:, first:], "B (chunks T) H W C -> B chunks T H W C", T=size)
    _, ys = scan(module, cache, rest)
    return jnp.concatenate([y, rearrange(ys, "B chunks T H W C -> B (chunks T) H W C")], axis=1)
