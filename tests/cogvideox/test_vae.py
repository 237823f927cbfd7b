"""Parity of the VAE with diffusers' `AutoencoderKLCogVideoX`, weights from torch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from roam_jax.cogvideox.vae import VAE
from roam_jax.cogvideox.vae_blocks import GroupNorm, enlarge
from roam_jax.cogvideox.vae_config import VAEConfig
from roam_jax.cogvideox.vae_names import vae_names

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

SMALL = VAEConfig(block_out_channels=(8, 8, 16), layers_per_block=1, norm_num_groups=4)
TWO_LEVELS = VAEConfig(
    block_out_channels=(4, 8),
    layers_per_block=1,
    norm_num_groups=2,
    latent_channels=4,
    temporal_compression_ratio=2,
)
DEEPER = VAEConfig(
    block_out_channels=(8, 16, 24),
    layers_per_block=2,
    norm_num_groups=8,
    latent_channels=6,
    temporal_compression_ratio=2,
    norm_eps=1e-3,
)


# Compiling takes all the time here, and half of it is LLVM's.
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def unflatten(flat):
    tree = {}
    for path, leaf in flat.items():
        *parents, last = path.split("/")
        functools.reduce(lambda node, key: node.setdefault(key, {}), parents, tree)[last] = leaf
    return tree


@functools.cache
def reference(config):
    """A torch VAE with weights that leave no norm or bias at its initial value."""
    torch.manual_seed(0)
    model = diffusers.AutoencoderKLCogVideoX.from_config(config.to_json()).eval()
    for parameter in model.parameters():
        noise = 0.2 * torch.randn_like(parameter)
        parameter.data = noise if parameter.ndim > 1 else parameter.data + noise
    return model


@functools.cache
def ours(config):
    """(params, encode, decode) with the reference's weights."""
    state = {key: value.numpy() for key, value in reference(config).state_dict().items()}
    params = unflatten({n.target: n.to_ours(state[n.source]) for n in vae_names(config)})
    encode, decode = (
        quick_jit(functools.partial(VAE(config).apply, method=method))
        for method in ("encode", "decode")
    )
    return params, encode, decode


def relative(ours, theirs):
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape
    return np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)


@pytest.mark.parametrize(
    ("frames", "latents", "height", "width"),
    [
        (1, 1, 16, 8),
        (5, 2, 17, 24),
        (8, 2, 16, 16),
        (9, 3, 31, 9),
        (13, 4, 8, 16),
        (16, 4, 16, 8),
        (17, 5, 16, 16),
        (25, 7, 8, 8),
    ],
)
def test_encode_equals_diffusers(frames, latents, height, width):
    video = np.random.default_rng(frames).uniform(-1, 1, (2, 3, frames, height, width))
    video = video.astype(np.float32)
    params, encode, _ = ours(SMALL)
    mean, logvar = encode({"params": params}, video)
    with torch.no_grad():
        theirs = reference(SMALL).encode(torch.tensor(video)).latent_dist
    assert mean.shape == (2, 16, latents, height // 4, width // 4)
    assert relative(mean, theirs.mean) <= 1e-5
    assert relative(logvar, theirs.logvar) <= 1e-5


@pytest.mark.parametrize(("latents", "frames"), [(1, 1), (2, 8), (3, 9), (5, 17)])
def test_decode_equals_diffusers(latents, frames):
    z = np.random.default_rng(latents).normal(size=(2, 16, latents, 3, 1)).astype(np.float32)
    params, _, decode = ours(SMALL)
    video = decode({"params": params}, z)
    with torch.no_grad():
        theirs = reference(SMALL).decode(torch.tensor(z)).sample
    assert video.shape == (2, 3, frames, 12, 4)
    assert relative(video, theirs) <= 1e-5


def test_other_depths_ratios_and_epsilons_equal_diffusers():
    video = np.random.default_rng(0).uniform(-1, 1, (1, 3, 5, 12, 9)).astype(np.float32)
    params, encode, decode = ours(DEEPER)
    mean, _ = encode({"params": params}, video)
    with torch.no_grad():
        theirs = reference(DEEPER).encode(torch.tensor(video)).latent_dist.mean
        decoded = reference(DEEPER).decode(theirs).sample
    assert relative(mean, theirs) <= 1e-5
    assert relative(decode({"params": params}, jnp.asarray(theirs.numpy())), decoded) <= 1e-5


def test_log_variance_is_clipped_as_in_diffusers():
    params, encode, _ = ours(SMALL)
    bias = params["encoder"]["conv_out"]["bias"]
    loud = params | {
        "encoder": params["encoder"]
        | {"conv_out": params["encoder"]["conv_out"] | {"bias": bias + 100 * np.sign(bias)}}
    }
    _, logvar = encode({"params": loud}, np.zeros((1, 3, 1, 8, 8), np.float32))
    assert set(np.unique(logvar)) == {np.float32(-30), np.float32(20)}


def test_stored_float16_is_computed_in_float32():
    params, encode, _ = ours(SMALL)
    half = jax.tree.map(lambda x: np.asarray(x, np.float16), params)
    widened = jax.tree.map(lambda x: np.asarray(x, np.float32), half)
    video = np.random.default_rng(0).uniform(-1, 1, (1, 3, 5, 8, 8)).astype(np.float32)
    mean, _ = encode({"params": half}, video)
    assert mean.dtype == jnp.float32
    np.testing.assert_array_equal(mean, encode({"params": widened}, video)[0])


def test_later_frames_reach_earlier_latents_only_through_group_norm_of_their_chunk():
    video = np.random.default_rng(0).uniform(-1, 1, (1, 3, 17, 8, 8)).astype(np.float32)
    changed = video.copy()
    changed[:, :, 9:] = 0
    params, encode, _ = ours(SMALL)
    before, after = (encode({"params": params}, v)[0] for v in (video, changed))
    np.testing.assert_array_equal(before[:, :, :3], after[:, :, :3])
    assert np.abs(before[:, :, 3:] - after[:, :, 3:]).max() > 1e-3


def test_gradients_equal_torch():
    video = np.random.default_rng(0).uniform(-1, 1, (1, 3, 5, 4, 6))
    video = jnp.asarray(video, jnp.float32)
    params, _, _ = ours(TWO_LEVELS)
    vae = VAE(TWO_LEVELS)
    grads = quick_jit(jax.grad(lambda p: jnp.square(vae.apply({"params": p}, video)).mean()))(
        params
    )
    model = reference(TWO_LEVELS)
    mean = model.encode(torch.tensor(np.asarray(video))).latent_dist.mean
    model.decode(mean).sample.square().mean().backward()
    theirs = {key: value.grad.numpy() for key, value in model.named_parameters()}
    largest = max(np.abs(gradient).max() for gradient in theirs.values())
    for name in vae_names(TWO_LEVELS):
        gradient = functools.reduce(lambda node, key: node[key], name.target.split("/"), grads)
        expected = name.to_ours(theirs[name.source])
        np.testing.assert_allclose(gradient, expected, atol=1e-5 * largest, rtol=1e-3)


def test_group_norm_survives_a_large_mean():
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 5, 8)).astype(np.float32) + 1000
    params = {"scale": np.full(8, 2, np.float32), "bias": np.ones(8, np.float32)}
    got = GroupNorm(groups=4, epsilon=1e-6).apply({"params": params}, jnp.asarray(x))
    groups = x.astype(np.float64).reshape(2, -1, 4, 2)
    mean = groups.mean(axis=(1, 3), keepdims=True)
    deviation = np.sqrt(groups.var(axis=(1, 3), keepdims=True) + 1e-6)
    expected = 2 * ((groups - mean) / deviation).reshape(x.shape) + 1
    np.testing.assert_allclose(got, expected, atol=2e-3)


def test_enlarging_an_odd_count_leaves_the_first_frame_single():
    x = jnp.arange(3.0).reshape(1, 3, 1, 1, 1)
    out = enlarge(x, frames=9, height=2, width=1)
    assert out.shape == (1, 9, 2, 1, 1)
    assert [*np.asarray(out[0, :, 1, 0, 0])] == [0, 1, 1, 1, 1, 2, 2, 2, 2]


def test_shapes_that_do_not_fit_are_named():
    params, encode, decode = ours(SMALL)
    with pytest.raises(ValueError, match=r"video of 3x16: expected at least 4"):
        encode({"params": params}, np.zeros((1, 3, 1, 3, 16), np.float32))
    with pytest.raises(ValueError, match=r"latents of shape .*expected \(B, 16, frames"):
        decode({"params": params}, np.zeros((1, 3, 1, 8, 8), np.float32))
