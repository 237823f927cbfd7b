"""Configs of the text encoder: the published file, transformers' own, and other models."""

import dataclasses
import re

import pytest

from roam_jax.cogvideox.text_config import TextEncoderConfig

# What CogVideoX-2B's text_encoder/config.json says.
PUBLISHED = {
    "_name_or_path": "google/t5-v1_1-xxl",
    "architectures": ["T5EncoderModel"],
    "classifier_dropout": 0.0,
    "d_ff": 10240,
    "d_kv": 64,
    "d_model": 4096,
    "decoder_start_token_id": 0,
    "dense_act_fn": "gelu_new",
    "dropout_rate": 0.1,
    "eos_token_id": 1,
    "feed_forward_proj": "gated-gelu",
    "initializer_factor": 1.0,
    "is_encoder_decoder": True,
    "is_gated_act": True,
    "layer_norm_epsilon": 1e-06,
    "model_type": "t5",
    "num_decoder_layers": 24,
    "num_heads": 64,
    "num_layers": 24,
    "output_past": True,
    "pad_token_id": 0,
    "relative_attention_max_distance": 128,
    "relative_attention_num_buckets": 32,
    "task_specific_params": {"summarization": {"max_length": 200}},
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.41.2",
    "use_cache": True,
    "vocab_size": 32128,
}
SMALL = TextEncoderConfig(
    vocab_size=40,
    d_model=24,
    d_kv=8,
    d_ff=32,
    num_layers=2,
    num_heads=2,
    relative_attention_num_buckets=8,
    relative_attention_max_distance=20,
    layer_norm_epsilon=1e-5,
)


def test_the_default_is_the_published_encoder():
    assert TextEncoderConfig.from_json(PUBLISHED) == TextEncoderConfig()
    assert TextEncoderConfig().inner_width == 4096
    written = TextEncoderConfig().to_json()
    assert {key: PUBLISHED[key] for key in written if key in PUBLISHED} | {
        "is_decoder": False
    } == written


def test_a_file_may_leave_out_what_every_t5_has():
    optional = {"relative_attention_num_buckets", "relative_attention_max_distance"}
    optional |= {"layer_norm_epsilon", "dense_act_fn", "is_gated_act"}
    config = {key: value for key, value in PUBLISHED.items() if key not in optional}
    assert TextEncoderConfig.from_json(config) == TextEncoderConfig()


def test_config_survives_the_round_trip_through_transformers():
    transformers = pytest.importorskip("transformers")
    theirs = transformers.T5Config(**SMALL.to_json())
    assert theirs.dense_act_fn == "gelu_new" and theirs.is_gated_act
    assert TextEncoderConfig.from_json(theirs.to_dict()) == SMALL
    # The diff that save_pretrained writes.
    assert TextEncoderConfig.from_json(theirs.to_diff_dict()) == SMALL


@pytest.mark.parametrize(
    "change, message",
    [
        ({"feed_forward_proj": "relu"}, "this is T5 v1.0: feed_forward_proj = 'relu' (expected"),
        ({"model_type": "mt5"}, "this is mT5, of other token ids: model_type = 'mt5' (expected"),
        ({"model_type": "umt5"}, "this is UMT5, with a position bias in every layer: model_type"),
        ({"model_type": "clip_text_model"}, "this is another model: model_type = 'clip_text_model"),
        ({"model_type": None}, "this is another model: model_type = None (expected 't5'); only"),
        ({"model_type": {}}, "this is another model: model_type = {} (expected 't5')"),
        ({"feed_forward_proj": []}, "this is a T5 with another activation: feed_forward_proj = []"),
        ({"feed_forward_proj": "gated-silu"}, "this is a T5 with another activation: feed_forw"),
        ({"dense_act_fn": "relu"}, "this is a T5 with another activation: dense_act_fn = 'relu'"),
        ({"is_decoder": True}, "this is a decoder: is_decoder = True (expected False)"),
        ({"quantization_config": {"bits": 8}}, "this is a quantised model: quantization_config"),
        ({"d_model": 0}, "d_model = 0: expected a positive int"),
        ({"d_ff": 2.5}, "d_ff = 2.5: expected int"),
        ({"num_heads": True}, "num_heads = True: expected int"),
        ({"layer_norm_epsilon": "1e-6"}, "layer_norm_epsilon = '1e-6': expected float"),
        ({"relative_attention_num_buckets": 7}, "= 7: expected an even number, 4 or more"),
        ({"relative_attention_max_distance": 8}, "= 8: expected more than 8, a quarter of"),
    ],
)
def test_another_model_is_refused(change, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        TextEncoderConfig.from_json(PUBLISHED | change)


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("feed_forward_proj", None, "this is T5 v1.0"),
        ("num_heads", None, "no num_heads: expected it in the config of a T5"),
        ("num_layers", "num_layer", "num_layer = 24: not a key of T5; did you mean 'num_layers'?"),
        (
            "relative_attention_num_buckets",
            "relative_attention_num_bucket",
            "relative_attention_num_bucket = 32: not a key of T5; did you mean",
        ),
    ],
)
def test_a_missing_key_is_named(old, new, message):
    config = dict(PUBLISHED)
    value = config.pop(old)
    if new:
        config[new] = value
    with pytest.raises(ValueError, match=re.escape(message)):
        TextEncoderConfig.from_json(config)


def test_every_size_is_read():
    for field in dataclasses.fields(TextEncoderConfig):
        value = getattr(SMALL, field.name)
        read = TextEncoderConfig.from_json(PUBLISHED | {field.name: value})
        assert read == dataclasses.replace(TextEncoderConfig(), **{field.name: value})
