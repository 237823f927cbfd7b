"""Blocks of the CogVideoX VAE (Yang et al. 2024, section 2.1), equal to diffusers' chunk by chunk.

A video passes in chunks of frames. Each causal convolution keeps its last input frames for the next
chunk, so every block takes and returns a cache: a nested dict of those frames, empty before the
first chunk. GroupNorm has no memory: its statistics are the chunk's own.

Axes inside the VAE are (B, T, H, W, C). Parameters may be stored in any float type; they are
computed in `dtype`, statistics in float32.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Cache = dict[str, Any]
Frames = Float[Array, "B T H W C"]
Latents = Float[Array, "B F h w c"]

# Epsilon of every norm that diffusers does not build from the config's `norm_eps`.
NORM_EPS = 1e-6
TIME_TAPS = 3
# Up to this many input channels one 2-D convolution over all time taps beats one a tap.
_FEW_CHANNELS = 16

_kernel_init = nn.initializers.lecun_normal(in_axis=(0, 1, 2, 3), out_axis=4)


class CausalConv3D(nn.Module):
    """A 3x3x3 convolution that sees two earlier frames and none later.

    Space is padded with zeros, time with the two frames before this chunk, at the start of the
    video with its first frame twice.
    """

    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, frames: Frames, past: Float[Array, "B 2 H W C"] | None = None
    ) -> tuple[Float[Array, "B T H W D"], Float[Array, "B 2 H W C"]]:
        """Returns the output, as many frames as came in, and the last two input frames."""
        shape = (TIME_TAPS, 3, 3, frames.shape[-1], self.features)
        kernel = self.param("kernel", _kernel_init, shape).astype(self.dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.features,)).astype(self.dtype)
        if past is None:
            past = jnp.repeat(frames[:, :1], TIME_TAPS - 1, axis=1)
        frames = jnp.concatenate([past, frames], axis=1).astype(self.dtype)
        return _sum_of_taps(frames, kernel) + bias, frames[:, 1 - TIME_TAPS :]


def _sum_of_taps(frames: Frames, kernel: Float[Array, "3 3 3 C D"]) -> Float[Array, "B T-2 H W D"]:
    """A 3-D convolution as 2-D ones, valid in time and same in space.

    On XLA's CPU backend this is 1.3 to 4 times faster than the 3-D call, and as good on a GPU:
    8 clips of 9x64x64 with 16 channels 99 ms against 307 (gradients 0.45 s against 1.26), one of
    8x64x64 with 128 channels 264 against 453.
    """
    count = frames.shape[1] - (TIME_TAPS - 1)
    taps = [frames[:, tap : tap + count] for tap in range(TIME_TAPS)]
    if frames.shape[-1] <= _FEW_CHANNELS:
        return _per_frame_conv(jnp.concatenate(taps, axis=-1), jnp.concatenate([*kernel], axis=2))
    return sum(_per_frame_conv(tap, weights) for tap, weights in zip(taps, kernel, strict=True))


def _per_frame_conv(frames: Frames, kernel: Float[Array, "3 3 C D"]) -> Float[Array, "B T H W D"]:
    merged = frames.reshape(-1, *frames.shape[2:])
    out = jax.lax.conv_general_dilated(
        merged, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return out.reshape(*frames.shape[:2], *out.shape[1:])


class PointwiseConv3D(nn.Module):
    """A 1x1x1 convolution."""

    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, frames: Frames) -> Float[Array, "B T H W D"]:
        """Maps channels to `features`, each pixel on its own."""
        shape = (1, 1, 1, frames.shape[-1], self.features)
        kernel = self.param("kernel", _kernel_init, shape).astype(self.dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.features,)).astype(self.dtype)
        return frames.astype(self.dtype) @ kernel[0, 0, 0] + bias


class GroupNorm(nn.Module):
    """GroupNorm over the frames and pixels of the chunk, statistics in float32."""

    groups: int
    epsilon: float = NORM_EPS

    @nn.compact
    def __call__(self, frames: Frames) -> Frames:
        """Normalises each group of channels, then scales and shifts each channel."""
        channels = frames.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,)).astype(jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (channels,)).astype(jnp.float32)
        x = frames.astype(jnp.float32)
        mean = self._group_mean(x.mean(axis=(1, 2, 3)))
        variance = self._group_mean(jnp.square(x - mean).mean(axis=(1, 2, 3)))
        gain = scale * jax.lax.rsqrt(variance + self.epsilon)
        return ((x - mean) * gain + bias).astype(frames.dtype)

    def _group_mean(self, per_channel: Float[Array, "B C"]) -> Float[Array, "B 1 1 1 C"]:
        batch, channels = per_channel.shape
        members = channels // self.groups
        means = per_channel.reshape(batch, self.groups, members).mean(axis=-1)
        return jnp.repeat(means, members, axis=-1)[:, None, None, None]


class SpatialNorm3D(nn.Module):
    """GroupNorm scaled and shifted by the latent at each pixel (Zheng et al. 2022, MoVQ)."""

    groups: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, frames: Frames, latents: Latents) -> Frames:
        """Normalises `frames`, then applies two linear maps of the nearest latent pixel."""
        _, count, height, width, channels = frames.shape
        # Mapping latents before they are enlarged is the same, with fewer pixels to map.
        gain = PointwiseConv3D(channels, self.dtype, name="conv_y")(latents)
        shift = PointwiseConv3D(channels, self.dtype, name="conv_b")(latents)
        gain, shift = (enlarge(x, frames=count, height=height, width=width) for x in (gain, shift))
        return GroupNorm(self.groups, name="norm_layer")(frames) * gain + shift


def enlarge(x: Frames, *, frames: int, height: int, width: int) -> Float[Array, "B _ _ _ C"]:
    """Nearest-neighbour enlargement by whole factors; an odd count leaves frame 0 single."""
    first = frames % 2
    rest = x[:, first:]
    if rest.shape[1]:
        rest = jnp.repeat(rest, (frames - first) // rest.shape[1], axis=1)
    x = jnp.concatenate([x[:, :first], rest], axis=1)
    x = jnp.repeat(x, height // x.shape[2], axis=2)
    return jnp.repeat(x, width // x.shape[3], axis=3)


def halve_frames(frames: Frames) -> Float[Array, "B _ H W C"]:
    """Means of pairs of frames; an odd count leaves frame 0 single."""
    first = frames.shape[1] % 2
    rest = frames[:, first:]
    pairs = rest.reshape(rest.shape[0], -1, 2, *rest.shape[2:]).mean(axis=2)
    return jnp.concatenate([frames[:, :first], pairs], axis=1)


class ResnetBlock3D(nn.Module):
    """Two norms, SiLUs and causal convolutions beside a skip path.

    The norms are `SpatialNorm3D` where latents are passed (decoder), else GroupNorm (encoder).
    """

    features: int
    groups: int
    epsilon: float
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, frames: Frames, cache: Cache, latents: Latents | None = None
    ) -> tuple[Float[Array, "B T H W D"], Cache]:
        """Returns the block's output and the cache for the next chunk."""
        hidden, new_cache = frames, {}
        for norm, conv in (("norm1", "conv1"), ("norm2", "conv2")):
            if latents is None:
                hidden = GroupNorm(self.groups, self.epsilon, name=norm)(hidden)
            else:
                hidden = SpatialNorm3D(self.groups, self.dtype, name=norm)(hidden, latents)
            layer = CausalConv3D(self.features, self.dtype, name=conv)
            hidden, new_cache[conv] = layer(nn.silu(hidden), cache.get(conv))
        if frames.shape[-1] != self.features:
            frames = PointwiseConv3D(self.features, self.dtype, name="conv_shortcut")(frames)
        return frames + hidden, new_cache


class ResnetStack(nn.Module):
    """Residual blocks one after another at one resolution."""

    features: int
    layers: int
    groups: int
    epsilon: float = NORM_EPS
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, frames: Frames, cache: Cache, latents: Latents | None = None
    ) -> tuple[Float[Array, "B T H W D"], Cache]:
        """Returns the last block's output and the cache for the next chunk."""
        new_cache = {}
        for i in range(self.layers):
            name = f"resnets_{i}"
            block = ResnetBlock3D(self.features, self.groups, self.epsilon, self.dtype, name=name)
            frames, new_cache[name] = block(frames, cache.get(name, {}), latents)
        return frames, new_cache


class Downsample3D(nn.Module):
    """Halves height and width by a strided convolution, and before it the frames if asked to."""

    compress_time: bool
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, frames: Frames) -> Float[Array, "B _ _ _ C"]:
        """Pads below and on the right only."""
        if self.compress_time:
            frames = halve_frames(frames)
        conv = nn.Conv(
            frames.shape[-1], (3, 3), (2, 2), ((0, 1), (0, 1)), dtype=self.dtype, name="conv"
        )
        return conv(frames)


class Upsample3D(nn.Module):
    """Doubles height and width, and the frames if asked to, then convolves each frame."""

    compress_time: bool
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, frames: Frames) -> Float[Array, "B _ _ _ C"]:
        """An odd number of frames keeps frame 0 single."""
        _, count, height, width, channels = frames.shape
        if self.compress_time:
            count = 2 * count - count % 2
        frames = enlarge(frames, frames=count, height=2 * height, width=2 * width)
        return nn.Conv(channels, (3, 3), dtype=self.dtype, name="conv")(frames)
