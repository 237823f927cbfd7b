"""Configs of the transformer: diffusers' defaults, and models that are not the 2B one."""

import re

import pytest

from roam_jax.cogvideox.config import TransformerConfig
from tests.cogvideox.diffusers_models import TINY


def test_defaults_are_the_2b_model():
    diffusers = pytest.importorskip("diffusers")
    torch = pytest.importorskip("torch")
    with torch.device("meta"):
        theirs = dict(diffusers.CogVideoXTransformer3DModel().config)
    assert TransformerConfig.from_json(theirs) == TransformerConfig()
    assert TransformerConfig().width == 1920
    ours = TransformerConfig().to_json()
    ours.pop("_class_name")
    assert ours == {key: value for key, value in theirs.items() if not key.startswith("_")}


def test_json_goes_both_ways():
    assert TransformerConfig.from_json(TINY.to_json()) == TINY
    assert TransformerConfig.from_json({}) == TransformerConfig()
    assert TransformerConfig.from_json({"temporal_interpolation_scale": 1}) == TransformerConfig()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"_class_name": "FluxTransformer2DModel"}, "'FluxTransformer2DModel': expected CogVideoX"),
        ({"num_layer": 3}, "num_layer = 3: not a key of .*; did you mean 'num_layers'"),
        ({"num_layers": 0}, "num_layers = 0: expected a positive int"),
        ({"num_layers": 2.5}, "num_layers = 2.5: expected int"),
        ({"norm_eps": "1e-5"}, "norm_eps = '1e-5': expected float"),
        ({"norm_eps": -1.0}, "norm_eps = -1.0: expected a positive float"),
        ({"attention_head_dim": 5}, "= 15: expected a multiple of 16"),
        ({"attention_bias": False}, "this is a model with attention without bias: attention_bias"),
        ({"in_channels": 33}, "this is an image-to-video model: in_channels = 33, expected out_"),
    ],
)
def test_another_model_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        TransformerConfig.from_json(TINY.to_json() | change)


ROTARY = {"use_rotary_positional_embeddings": True}
IMAGE = {"in_channels": 32}
VERSION_1_5 = ROTARY | {"patch_size_t": 2, "patch_bias": False}


@pytest.mark.parametrize(
    "name, change, listed",
    [
        ("CogVideoX-5B", ROTARY, "use_rotary_positional_embeddings = True (expected False)"),
        (
            "CogVideoX-5B-I2V",
            IMAGE | ROTARY | {"use_learned_positional_embeddings": True},
            "use_learned_positional_embeddings = True (expected False), "
            "use_rotary_positional_embeddings = True (expected False)",
        ),
        (
            "CogVideoX1.5-5B",
            VERSION_1_5,
            "patch_size_t = 2 (expected None), patch_bias = False (expected True), "
            "use_rotary_positional_embeddings = True (expected False)",
        ),
        (
            "CogVideoX1.5-5B-I2V",
            VERSION_1_5 | IMAGE | {"ofs_embed_dim": 512},
            "ofs_embed_dim = 512 (expected None), patch_size_t = 2 (expected None), "
            "patch_bias = False (expected True), use_rotary_positional_embeddings = True (expected "
            "False)",
        ),
    ],
)
def test_other_members_of_the_family_are_named(name, change, listed):
    """What their published configs say, whatever the order of the keys."""
    config = TransformerConfig().to_json() | {"num_layers": 42, "num_attention_heads": 48} | change
    message = f"this is {name}: {listed}; only the architecture of CogVideoX-2B is ported"
    for items in (sorted(config.items()), sorted(config.items(), reverse=True)):
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            TransformerConfig.from_json(dict(items))
