"""Names and sizes of the VAE against diffusers, both ways and at full size."""

import jax
import numpy as np
import pytest

from roam_jax.cogvideox.names import account
from roam_jax.cogvideox.vae import VAE
from roam_jax.cogvideox.vae_config import VAEConfig
from roam_jax.cogvideox.vae_names import vae_names

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

TINY = VAEConfig(block_out_channels=(8, 8, 16), layers_per_block=2, norm_num_groups=4)


def tree_shapes(config):
    video = jax.ShapeDtypeStruct((1, config.in_channels, 1, 16, 16), np.float32)
    tree = jax.eval_shape(VAE(config).init, jax.random.key(0), video)["params"]
    flat, _ = jax.tree.flatten_with_path(tree)
    return {"/".join(entry.key for entry in path): leaf.shape for path, leaf in flat}


def test_the_default_is_the_2b_vae():
    names = vae_names(VAEConfig())
    assert len(names) == 436
    assert sum(int(np.prod(name.shape)) for name in names) == 215_583_907
    with torch.device("meta"):
        theirs = diffusers.AutoencoderKLCogVideoX().state_dict()
    account(names, {key: tuple(value.shape) for key, value in theirs.items()}, where="diffusers")
    assert tree_shapes(VAEConfig()) == {name.target: name.target_shape for name in names}


@pytest.mark.parametrize("config", [TINY, VAEConfig(block_out_channels=(32, 64, 32, 96))])
def test_names_fit_both_sides(config):
    names = vae_names(config)
    with torch.device("meta"):
        theirs = diffusers.AutoencoderKLCogVideoX.from_config(config.to_json()).state_dict()
    account(names, {key: tuple(value.shape) for key, value in theirs.items()}, where="diffusers")
    assert tree_shapes(config) == {name.target: name.target_shape for name in names}


def test_tensors_survive_the_round_trip_bit_for_bit():
    torch.manual_seed(0)
    state = diffusers.AutoencoderKLCogVideoX.from_config(TINY.to_json()).half().state_dict()
    back = {}
    for name in vae_names(TINY):
        mine = name.to_ours(state[name.source].numpy())
        assert mine.shape == name.target_shape
        back |= name.to_theirs(mine)
    assert back.keys() == state.keys()
    for key, tensor in state.items():
        assert back[key].dtype == np.float16
        np.testing.assert_array_equal(back[key], tensor.numpy())


def test_config_survives_the_round_trip_through_diffusers():
    config = VAEConfig(
        block_out_channels=(8, 16),
        norm_num_groups=8,
        temporal_compression_ratio=2,
        scaling_factor=0.7,
    )
    theirs = diffusers.AutoencoderKLCogVideoX.from_config(config.to_json())
    assert VAEConfig.from_json(dict(theirs.config)) == config
    assert VAEConfig.from_json({}) == VAEConfig()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_quant_conv": True}, "this is a VAE with a convolution after the encoder: use_quant"),
        (
            {"invert_scale_latents": True},
            "this is the VAE of CogVideoX1.5: invert_scale_latents = True",
        ),
        ({"act_fn": "relu"}, r"another activation: act_fn = 'relu' \(expected 'silu'\)"),
        ({"layer_per_block": 2}, "did you mean 'layers_per_block'"),
        ({"_class_name": "AutoencoderKL"}, "expected AutoencoderKLCogVideoX"),
        ({"norm_num_groups": 24}, "128 is no multiple of norm_num_groups = 24"),
        ({"temporal_compression_ratio": 3}, r"expected one of \[1, 2, 4, 8\]"),
        ({"layers_per_block": 0}, "layers_per_block = 0: expected positive int"),
        ({"down_block_types": ["DownBlock2D"] * 4}, r"down_block_types = .*CogVideoXDownBlock3D"),
        ({"block_out_channels": [64, 64]}, "expected one of"),
    ],
)
def test_what_is_not_honoured_is_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message):
        VAEConfig.from_json(changes)
