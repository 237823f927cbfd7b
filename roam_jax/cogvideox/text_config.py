"""Sizes of the text encoder, read from and written to the `config.json` of transformers.

The class defaults are the encoder of T5 v1.1 XXL, which CogVideoX reads text with. Only the v1.1
architecture is ported (a gated GELU, no biases), so a file of another T5 is refused by what it is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from roam_jax.cogvideox.config import check_fixed
from roam_jax.spelling import nearest

CLASS_NAME = "T5EncoderModel"
MODEL_TYPE = "t5"
_PORTED = "the encoder of T5 v1.1"

_OTHER_MODELS = {
    "mt5": "mT5, of other token ids",
    "umt5": "UMT5, with a position bias in every layer",
    "longt5": "LongT5, with local attention",
    "switch_transformers": "a Switch Transformer, with experts",
}
_OTHER_FEED_FORWARDS = {
    "relu": "T5 v1.0",
    "gated-relu": "a T5 with another activation",
    "gated-silu": "a T5 with another activation",
}
# What the port takes for granted beside those two, and what a file that differs is of.
_FIXED = {
    "dense_act_fn": ("gelu_new", "a T5 with another activation"),
    "is_gated_act": (True, "a T5 without gates"),
    "is_decoder": (False, "a decoder"),
    "quantization_config": (None, "a quantised model"),
}
# What transformers wants to know of any T5, the decoder that it leaves out included.
_NOTES = {
    "architectures": [CLASS_NAME],
    "classifier_dropout": 0.0,
    "decoder_start_token_id": 0,
    "dropout_rate": 0.1,
    "eos_token_id": 1,
    "initializer_factor": 1.0,
    "is_encoder_decoder": True,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
    "use_cache": True,
}
# A key this like one of ours is a misspelt one.
_MISSPELT = 0.85


@dataclasses.dataclass(frozen=True)
class TextEncoderConfig:
    """The fields of T5's config that are about the encoder's sizes, under its names.

    Args:
        vocab_size: rows of the token embedding; the tokenizer may use fewer.
        d_model: width D of a token.
        d_kv: width of a head; heads x d_kv need not be D.
        d_ff: width inside the feed-forward layers.
        num_layers: distinct blocks L.
        num_heads: attention heads K.
        relative_attention_num_buckets: distances that the position bias tells apart, a half each
            way; an even number.
        relative_attention_max_distance: tokens from which on all distances are alike; more than a
            quarter of the buckets.
        layer_norm_epsilon: epsilon of every norm.

    Raises:
        ValueError: a size is not positive, or the buckets do not fit the distance.
    """

    vocab_size: int = 32128
    d_model: int = 4096
    d_kv: int = 64
    d_ff: int = 10240
    num_layers: int = 24
    num_heads: int = 64
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    layer_norm_epsilon: float = 1e-6

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not value > 0:
                raise ValueError(f"{field.name} = {value!r}: expected a positive {field.type}")
        buckets = self.relative_attention_num_buckets
        if buckets % 2 or buckets < 4:
            raise ValueError(
                f"relative_attention_num_buckets = {buckets}: expected an even number, 4 or more"
            )
        if self.relative_attention_max_distance <= buckets // 4:
            raise ValueError(
                f"relative_attention_max_distance = {self.relative_attention_max_distance}: "
                f"expected more than {buckets // 4}, a quarter of relative_attention_num_buckets"
            )

    @property
    def inner_width(self) -> int:
        """Width of all heads together."""
        return self.num_heads * self.d_kv

    @classmethod
    def from_json(cls, config: Mapping[str, Any]) -> TextEncoderConfig:
        """Reads transformers' config of a T5; keys that are not about sizes are passed over.

        Raises:
            ValueError: the config is of another model, or a size is missing, misspelt or no number.
        """
        _check_model(config)
        values = {}
        for field in dataclasses.fields(cls):
            if field.name in config:
                values[field.name] = _number(field.name, config[field.name], type(field.default))
                continue
            close = nearest(field.name, config.keys() - _known(), cutoff=_MISSPELT)
            if close:
                raise ValueError(
                    f"{close} = {config[close]!r}: not a key of T5; did you mean {field.name!r}?"
                )
            # T5Config itself has the sizes of a small T5 v1.0 where a file leaves them out.
            if not field.name.startswith(("relative_", "layer_norm_")):
                raise ValueError(f"no {field.name}: expected it in the config of a T5")
        return cls(**values)

    def to_json(self) -> dict[str, Any]:
        """All that transformers' `T5EncoderModel.from_pretrained` needs to build the same model."""
        fixed = {key: value for key, (value, _) in _FIXED.items() if value is not None}
        return {
            **dataclasses.asdict(self),
            **fixed,
            **_NOTES,
            "feed_forward_proj": "gated-gelu",
            "model_type": MODEL_TYPE,
            "num_decoder_layers": self.num_layers,
        }


def _number(key: str, value: Any, kind: type) -> int | float:
    # JSON writes 1.0 as 1 at times; any other type is a fault of the file.
    if isinstance(value, bool) or not isinstance(value, (int, kind)):
        raise ValueError(f"{key} = {value!r}: expected {kind.__name__}")
    return kind(value)


def _known() -> set[str]:
    return {field.name for field in dataclasses.fields(TextEncoderConfig)} | {
        *_FIXED,
        *_NOTES,
        "num_decoder_layers",
    }


def _check_model(config: Mapping[str, Any]) -> None:
    """Refuses a config that is not of a T5 v1.1."""
    model = config.get("model_type")
    feed_forward = config.get("feed_forward_proj", "relu")
    fixed = {
        "model_type": (MODEL_TYPE, _OTHER_MODELS.get(str(model), "another model")),
        "feed_forward_proj": (
            "gated-gelu",
            _OTHER_FEED_FORWARDS.get(str(feed_forward), "a T5 with another activation"),
        ),
        **_FIXED,
    }
    # What T5Config takes where the key is missing.
    stated = {**config, "model_type": model, "feed_forward_proj": feed_forward}
    check_fixed(stated, fixed, ported=_PORTED)
