"""Names of the CogVideoX VAE's tensors: diffusers' `AutoencoderKLCogVideoX` and our tree.

Our path is diffusers' key with list indices joined to their list (`resnets.0` -> `resnets_0`),
without the inner `conv` of its convolution wrapper; changes of resolution lie beside their blocks.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from roam_jax.cogvideox.names import TensorName, norm
from roam_jax.cogvideox.vae_config import VAEConfig


def vae_names(config: VAEConfig) -> tuple[TensorName, ...]:
    """Every tensor of the VAE, encoder first, in the order of the forward pass."""
    return (*_encoder_names(config), *_decoder_names(config))


def _encoder_names(config: VAEConfig) -> Iterator[TensorName]:
    widths = config.block_out_channels
    last = len(widths) - 1
    yield from _conv("encoder.conv_in.conv", config.in_channels, widths[0])
    inputs = widths[0]
    for i, width in enumerate(widths):
        block = f"encoder.down_blocks.{i}"
        for j in range(config.layers_per_block):
            yield from _resnet(f"{block}.resnets.{j}", inputs, width)
            inputs = width
        if i != last:
            yield from _resample(f"{block}.downsamplers.0.conv", f"encoder/downsamplers_{i}", width)
    for j in range(2):
        yield from _resnet(f"encoder.mid_block.resnets.{j}", inputs, inputs)
    yield from norm("encoder.norm_out", "encoder/norm_out", inputs)
    yield from _conv("encoder.conv_out.conv", inputs, 2 * config.latent_channels)


def _decoder_names(config: VAEConfig) -> Iterator[TensorName]:
    widths = config.block_out_channels[::-1]
    last = len(widths) - 1
    latent = config.latent_channels
    yield from _conv("decoder.conv_in.conv", latent, widths[0])
    inputs = widths[0]
    for j in range(2):
        yield from _resnet(f"decoder.mid_block.resnets.{j}", inputs, inputs, latent=latent)
    for i, width in enumerate(widths):
        block = f"decoder.up_blocks.{i}"
        for j in range(config.layers_per_block + 1):
            yield from _resnet(f"{block}.resnets.{j}", inputs, width, latent=latent)
            inputs = width
        if i != last:
            yield from _resample(f"{block}.upsamplers.0.conv", f"decoder/upsamplers_{i}", width)
    yield from _norm("decoder.norm_out", inputs, latent)
    yield from _conv("decoder.conv_out.conv", inputs, config.out_channels)


def _resnet(source: str, inputs: int, outputs: int, *, latent: int = 0) -> Iterator[TensorName]:
    yield from _norm(f"{source}.norm1", inputs, latent)
    yield from _conv(f"{source}.conv1.conv", inputs, outputs)
    yield from _norm(f"{source}.norm2", outputs, latent)
    yield from _conv(f"{source}.conv2.conv", outputs, outputs)
    if inputs != outputs:
        yield from _conv(f"{source}.conv_shortcut", inputs, outputs, kernel=1)


def _norm(source: str, width: int, latent: int) -> Iterator[TensorName]:
    """A GroupNorm, or with `latent` channels one that the latent modulates."""
    if not latent:
        yield from norm(source, _target(source), width)
        return
    yield from norm(f"{source}.norm_layer", _target(f"{source}.norm_layer"), width)
    for name in ("conv_y", "conv_b"):
        yield from _conv(f"{source}.{name}.conv", latent, width, kernel=1)


def _conv(source: str, inputs: int, outputs: int, *, kernel: int = 3) -> Iterator[TensorName]:
    target = _target(source.removesuffix(".conv"))
    shape = (outputs, inputs, kernel, kernel, kernel)
    yield TensorName(f"{source}.weight", f"{target}/kernel", shape, "conv3d")
    yield TensorName(f"{source}.bias", f"{target}/bias", (outputs,))


def _resample(source: str, target: str, width: int) -> Iterator[TensorName]:
    """The per-frame convolution of a change of resolution."""
    yield TensorName(f"{source}.weight", f"{target}/conv/kernel", (width, width, 3, 3), "conv2d")
    yield TensorName(f"{source}.bias", f"{target}/conv/bias", (width,))


def _target(source: str) -> str:
    return re.sub(r"\.(\d+)", r"_\1", source).replace(".", "/")
