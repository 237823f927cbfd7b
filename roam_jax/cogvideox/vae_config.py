"""Sizes of a CogVideoX VAE, read from and written to diffusers' `config.json`.

The class defaults are the VAE of CogVideoX-2B. The 5B model's VAE has the same architecture with
another scaling factor; what version 1.5 adds is refused by what it is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from roam_jax.cogvideox.config import check_fixed
from roam_jax.spelling import did_you_mean

CLASS_NAME = "AutoencoderKLCogVideoX"

# What the port takes for granted, and what a file that differs is of.
_FIXED = {
    "invert_scale_latents": (False, "the VAE of CogVideoX1.5"),
    "act_fn": ("silu", "a VAE with another activation"),
    "shift_factor": (None, "a VAE with shifted latents"),
    "latents_mean": (None, "a VAE with a mean a channel"),
    "latents_std": (None, "a VAE with a scale a channel"),
    "force_upcast": (True, "a VAE with weights trained in half precision"),
    "use_quant_conv": (False, "a VAE with a convolution after the encoder"),
    "use_post_quant_conv": (False, "a VAE with a convolution before the decoder"),
}
_BLOCK_TYPES = {
    "down_block_types": "CogVideoXDownBlock3D",
    "up_block_types": "CogVideoXUpBlock3D",
}


@dataclasses.dataclass(frozen=True)
class VAEConfig:
    """The fields of diffusers' config that may differ from model to model, under its names.

    Args:
        in_channels, out_channels: channels of the video.
        block_out_channels: width of each resolution, finest first; every block but the last halves
            height and width.
        latent_channels: channels C of the latents.
        layers_per_block: residual blocks a resolution in the encoder; the decoder has one more.
        norm_eps: epsilon of the encoder blocks' GroupNorm (all others have 1e-6).
        norm_num_groups: groups of every GroupNorm.
        temporal_compression_ratio: environment frames of one latent frame.
        sample_height, sample_width: frame size; tiles are half of it by default
            (`vae_tiling.py`).
        scaling_factor: latents times this have unit standard deviation.

    Raises:
        ValueError: a size is not positive, a width is no multiple of the groups, or the temporal
            ratio is not reachable.
    """

    in_channels: int = 3
    out_channels: int = 3
    block_out_channels: tuple[int, ...] = (128, 256, 256, 512)
    latent_channels: int = 16
    layers_per_block: int = 3
    norm_eps: float = 1e-6
    norm_num_groups: int = 32
    temporal_compression_ratio: int = 4
    sample_height: int = 480
    sample_width: int = 720
    scaling_factor: float = 1.15258426

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            values = value if isinstance(value, tuple) else (value,)
            kind = (int, float) if isinstance(field.default, float) else int
            for item in values:
                if isinstance(item, bool) or not isinstance(item, kind) or item <= 0:
                    raise ValueError(f"{field.name} = {value!r}: expected positive {field.type}")
        if not self.block_out_channels:
            raise ValueError("block_out_channels = (): expected a width for each resolution")
        for width in self.block_out_channels:
            if width % self.norm_num_groups:
                raise ValueError(
                    f"block_out_channels = {self.block_out_channels}: {width} is no multiple of "
                    f"norm_num_groups = {self.norm_num_groups}"
                )
        reachable = [2**level for level in range(4) if level < len(self.block_out_channels)]
        if self.temporal_compression_ratio not in reachable:
            raise ValueError(
                f"temporal_compression_ratio = {self.temporal_compression_ratio}: expected one of "
                f"{reachable} with {len(self.block_out_channels)} resolutions"
            )

    @property
    def temporal_levels(self) -> int:
        """How many of the blocks halve (or double) the frames: the first ones of each half."""
        return self.temporal_compression_ratio.bit_length() - 1

    @property
    def spatial_compression_ratio(self) -> int:
        """Pixels of one latent pixel in each direction."""
        return 2 ** (len(self.block_out_channels) - 1)

    @classmethod
    def from_json(cls, config: Mapping[str, Any]) -> VAEConfig:
        """Reads diffusers' config; keys that it leaves out have diffusers' defaults.

        Raises:
            ValueError: the config is of another model, or holds a key that diffusers does not have.
        """
        if config.get("_class_name", CLASS_NAME) != CLASS_NAME:
            raise ValueError(f"_class_name = {config['_class_name']!r}: expected {CLASS_NAME}")
        check_fixed(config, _FIXED, ported="the VAE of CogVideoX-2B and 5B")
        sizes = {field.name for field in dataclasses.fields(cls)}
        values = {}
        for key, value in config.items():
            if key in sizes:
                values[key] = tuple(value) if isinstance(value, list) else value
            elif key not in {*_FIXED, *_BLOCK_TYPES} and not key.startswith("_"):
                known = [*sizes, *_FIXED, *_BLOCK_TYPES]
                hint = did_you_mean(key, known)
                raise ValueError(f"{key} = {value!r}: not a key of {CLASS_NAME}; {hint}")
        result = cls(**values)
        for key, expected in result._block_types().items():
            if key in config and list(config[key]) != expected:
                raise ValueError(f"{key} = {config[key]!r}: expected {expected!r}")
        return result

    def to_json(self) -> dict[str, Any]:
        """All that diffusers' `from_config` needs to build the same model."""
        fixed = {key: value for key, (value, _) in _FIXED.items()}
        sizes = dataclasses.asdict(self) | {"block_out_channels": [*self.block_out_channels]}
        return {"_class_name": CLASS_NAME, **sizes, **self._block_types(), **fixed}

    def _block_types(self) -> dict[str, list[str]]:
        return {key: [name] * len(self.block_out_channels) for key, name in _BLOCK_TYPES.items()}
