"""Configs of the transformer: diffusers' defaults, and models that are not the 2B one."""

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
        ({"use_rotary_positional_embeddings": True}, r"means rotary positions \(CogVideoX-5B\)"),
        ({"patch_size_t": 2}, r"patch_size_t = 2 means patches in time \(CogVideoX 1.5\)"),
        ({"ofs_embed_dim": 512}, "ofs_embed_dim = 512 means an ofs embedding"),
        ({"use_learned_positional_embeddings": True}, "means learned positions"),
        ({"_class_name": "FluxTransformer2DModel"}, "'FluxTransformer2DModel': expected CogVideoX"),
        ({"num_layer": 3}, "num_layer = 3: not a key of .*; the nearest known key is num_layers"),
        ({"num_layers": 0}, "num_layers = 0: expected a positive int"),
        ({"num_layers": 2.5}, "num_layers = 2.5: expected int"),
        ({"norm_eps": "1e-5"}, "norm_eps = '1e-5': expected float"),
        ({"norm_eps": -1.0}, "norm_eps = -1.0: expected a positive float"),
        ({"attention_head_dim": 5}, "= 15: expected a multiple of 16"),
    ],
)
def test_another_model_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        TransformerConfig.from_json(TINY.to_json() | change)
