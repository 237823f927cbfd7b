"""Names of the text encoder's tensors: transformers' `T5EncoderModel` and our tree.

All layers are stacked on axis 0, and matrices keep torch's axes (`text_encoder.Linear` says why):
every tensor moves as it is. The position bias, which the checkpoint keeps in its first layer and
every layer uses, stands beside the stack.
"""

from __future__ import annotations

from collections.abc import Iterator

from roam_jax.cogvideox.names import LAYER, TensorName
from roam_jax.cogvideox.text_config import TextEncoderConfig

# Copies that a checkpoint may hold beside the tensor: key -> whose copy it is.
ALIASES = {"encoder.embed_tokens.weight": "shared.weight"}


def text_encoder_names(config: TextEncoderConfig) -> tuple[TensorName, ...]:
    """Every tensor of `T5EncoderModel`, in the order of the forward pass."""
    bias = (config.relative_attention_num_buckets, config.num_heads)
    return (
        TensorName(
            "shared.weight", "token_embedding/embedding", (config.vocab_size, config.d_model)
        ),
        TensorName(
            "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
            "relative_attention_bias/embedding",
            bias,
        ),
        *_layer_names(config),
        TensorName("encoder.final_layer_norm.weight", "norm/scale", (config.d_model,)),
    )


def _layer_names(config: TextEncoderConfig) -> Iterator[TensorName]:
    width, inner, hidden = config.d_model, config.inner_width, config.d_ff

    def matrix(source, target, *, inputs, outputs):
        key, path = f"{_block(source)}.weight", f"layers/{target}/kernel"
        return TensorName(key, path, (outputs, inputs), "same", config.num_layers)

    def norm(source, target):
        key, path = f"{_block(source)}.weight", f"layers/{target}/scale"
        return TensorName(key, path, (width,), "same", config.num_layers)

    yield norm("0.layer_norm", "attention_norm")
    for name in ("q", "k", "v"):
        source, target = f"0.SelfAttention.{name}", f"attention/{name}"
        yield matrix(source, target, inputs=width, outputs=inner)
    yield matrix("0.SelfAttention.o", "attention/o", inputs=inner, outputs=width)
    yield norm("1.layer_norm", "ff_norm")
    for name in ("wi_0", "wi_1"):
        source, target = f"1.DenseReluDense.{name}", f"ff/{name}"
        yield matrix(source, target, inputs=width, outputs=hidden)
    yield matrix("1.DenseReluDense.wo", "ff/wo", inputs=hidden, outputs=width)


def _block(source: str) -> str:
    return f"encoder.block.{LAYER}.layer.{source}"
