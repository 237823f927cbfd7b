"""Sizes of a CogVideoX transformer, read from and written to diffusers' `config.json`.

The class defaults are CogVideoX-2B. Only the 2B architecture is ported, so a file of another
member of the family (5B, image-to-video, 1.5) is refused by what it is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from roam_jax.spelling import did_you_mean

CLASS_NAME = "CogVideoXTransformer3DModel"

# What the port takes for granted, and which model a file that differs is of: the first that differs
# tells, so newer members of the family, which have the marks of older ones too, stand first.
_FIXED = {
    "ofs_embed_dim": (None, "CogVideoX1.5-5B-I2V"),
    "patch_size_t": (None, "CogVideoX1.5-5B"),
    "patch_bias": (True, "CogVideoX1.5-5B"),
    "use_learned_positional_embeddings": (False, "CogVideoX-5B-I2V"),
    "use_rotary_positional_embeddings": (False, "CogVideoX-5B"),
    "attention_bias": (True, "a model with attention without bias"),
    "norm_elementwise_affine": (True, "a model with norms without parameters"),
    "activation_fn": ("gelu-approximate", "a model with another activation"),
    "timestep_activation_fn": ("silu", "a model with another activation of the time embedding"),
    "flip_sin_to_cos": (True, "a model with sin first in the time embedding"),
    "freq_shift": (0, "a model with shifted timestep frequencies"),
    "dropout": (0.0, "a model with dropout"),
}


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """The fields of diffusers' config that may differ from model to model, under its names.

    Args:
        num_attention_heads, attention_head_dim: their product is the width D, a multiple of 16.
        in_channels, out_channels: latent channels C in and out.
        time_embed_dim: width E of the time embedding.
        text_embed_dim: width of the text embedding that enters.
        num_layers: distinct blocks L.
        sample_width, sample_height, sample_frames: latent width and height, and environment
            frames, that the weights were trained at; positions are recomputed at other sizes.
        patch_size: latent pixels that one token spans in each direction.
        temporal_compression_ratio: environment frames of one latent frame.
        max_text_seq_length: text tokens S, exactly.
        norm_eps: epsilon of every LayerNorm but those on queries and keys.
        spatial_interpolation_scale, temporal_interpolation_scale: positions are divided by these.

    Raises:
        ValueError: a size is not positive, or the width is no multiple of 16.
    """

    num_attention_heads: int = 30
    attention_head_dim: int = 64
    in_channels: int = 16
    out_channels: int = 16
    time_embed_dim: int = 512
    text_embed_dim: int = 4096
    num_layers: int = 30
    sample_width: int = 90
    sample_height: int = 60
    sample_frames: int = 49
    patch_size: int = 2
    temporal_compression_ratio: int = 4
    max_text_seq_length: int = 226
    norm_eps: float = 1e-5
    spatial_interpolation_scale: float = 1.875
    temporal_interpolation_scale: float = 1.0

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not value > 0:
                raise ValueError(f"{field.name} = {value!r}: expected a positive {field.type}")
        if self.width % 16:
            raise ValueError(
                f"num_attention_heads x attention_head_dim = {self.width}: expected a multiple of "
                "16, the width is split 1/4, 3/8, 3/8 into sines and cosines of the positions"
            )

    @property
    def width(self) -> int:
        """Width D of a token."""
        return self.num_attention_heads * self.attention_head_dim

    @classmethod
    def from_json(cls, config: Mapping[str, Any]) -> TransformerConfig:
        """Reads diffusers' config; keys that it leaves out have diffusers' defaults.

        Raises:
            ValueError: the config is of another model, or holds a key that diffusers does not have.
        """
        if config.get("_class_name", CLASS_NAME) != CLASS_NAME:
            raise ValueError(f"_class_name = {config['_class_name']!r}: expected {CLASS_NAME}")
        check_fixed(config, _FIXED, ported="the architecture of CogVideoX-2B")
        sizes = {field.name: type(field.default) for field in dataclasses.fields(cls)}
        values = {}
        for key, value in config.items():
            if key in sizes:
                # JSON writes 1.0 as 1 at times; any other type is a fault of the file.
                if isinstance(value, bool) or not isinstance(value, (int, sizes[key])):
                    raise ValueError(f"{key} = {value!r}: expected {sizes[key].__name__}")
                values[key] = sizes[key](value)
            # Keys with an underscore are diffusers' own notes: _class_name, _diffusers_version.
            elif key not in _FIXED and not key.startswith("_"):
                hint = did_you_mean(key, [*sizes, *_FIXED])
                raise ValueError(f"{key} = {value!r}: not a key of {CLASS_NAME}; {hint}")
        result = cls(**values)
        if result.in_channels != result.out_channels:
            raise ValueError(
                f"this is an image-to-video model: in_channels = {result.in_channels}, expected "
                f"out_channels = {result.out_channels}; only text-to-video is ported"
            )
        return result

    def to_json(self) -> dict[str, Any]:
        """All that diffusers' `from_config` needs to build the same model."""
        fixed = {key: value for key, (value, _) in _FIXED.items()}
        return {"_class_name": CLASS_NAME, **dataclasses.asdict(self), **fixed}


def check_fixed(
    config: Mapping[str, Any], fixed: Mapping[str, tuple[Any, str]], *, ported: str
) -> None:
    """Refuses a config in which something has not the one value that is ported.

    Args:
        config: what the file says.
        fixed: key -> the value, and what a file with another one is.
        ported: what is, for the message.

    Raises:
        ValueError: says what the file is of, and lists every key that differs.
    """
    others = [key for key, (value, _) in fixed.items() if config.get(key, value) != value]
    if others:
        found = ", ".join(f"{key} = {config[key]!r} (expected {fixed[key][0]!r})" for key in others)
        raise ValueError(f"this is {fixed[others[0]][1]}: {found}; only {ported} is ported")
