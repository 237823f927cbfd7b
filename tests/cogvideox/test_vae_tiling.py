"""Tiled encoding and decoding against diffusers' `enable_tiling`."""

import functools

import numpy as np
import pytest

from roam_jax.cogvideox import vae_tiling
from roam_jax.cogvideox.vae import VAE
from roam_jax.cogvideox.vae_config import VAEConfig
from roam_jax.cogvideox.vae_names import vae_names
from roam_jax.cogvideox.vae_tiling import decode_tiled, encode_tiled
from tests.cogvideox.diffusers_models import relative_error, state
from tests.cogvideox.test_vae import reference, unflatten

torch = pytest.importorskip("torch")

# Two pixels a latent pixel; tiles of diffusers' default are half the sample size.
CONFIG = VAEConfig(
    block_out_channels=(4, 8),
    layers_per_block=1,
    norm_num_groups=2,
    latent_channels=4,
    temporal_compression_ratio=2,
    sample_height=24,
    sample_width=20,
)


@functools.cache
def params():
    tensors = state(reference(CONFIG))
    return unflatten(
        {name.target: np.array(name.to_ours(tensors[name.source])) for name in vae_names(CONFIG)}
    )


@pytest.fixture
def tiled():
    """Diffusers' model with `enable_tiling(*tile, *overlap)`; its own defaults at the start."""
    model = reference(CONFIG)
    defaults = (12, 10, 1 / 6, 1 / 5)

    def enable(*settings):
        model.enable_tiling(*(settings or defaults))
        return model

    yield enable
    model.enable_tiling(*defaults)
    model.disable_tiling()


def random(*shape):
    return np.random.default_rng(0).standard_normal(shape, np.float32)


@torch.no_grad()
def test_decoding(tiled):
    """Tiles start at 0, 5, 10 and at 0, 4, 8: heights 6, 6, 1 and widths 5, 5, 1."""
    latents = random(2, 4, 1, 11, 9)
    whole = reference(CONFIG).decode(torch.tensor(latents)).sample.numpy()
    expected = tiled().decode(torch.tensor(latents)).sample.numpy()
    vae_tiling.decode_whole.clear_cache()
    ours = decode_tiled(VAE(CONFIG), params(), latents)
    assert ours.dtype == np.float32
    assert relative_error(ours, expected) < 1e-5
    # Another result than that of the whole frame, or this test would say nothing.
    assert relative_error(ours, whole) > 1e-2
    # Once for each shape of a tile, whatever their number and the clips'.
    assert vae_tiling.decode_whole._cache_size() == 4
    smallest = latents[:, :, :, :6, :5]
    expected = tiled().decode(torch.tensor(smallest)).sample.numpy()
    assert relative_error(decode_tiled(VAE(CONFIG), params(), smallest), expected) < 1e-5
    assert vae_tiling.decode_whole._cache_size() == 4


@torch.no_grad()
def test_decoding_a_clip_in_other_tiles(tiled):
    """Only the height is more than a tile's."""
    latents = random(1, 4, 3, 5, 4)
    expected = tiled(8, 16, 0.25, 0.5).decode(torch.tensor(latents)).sample.numpy()
    ours = decode_tiled(VAE(CONFIG), params(), latents, tile=(8, 16), overlap=(0.25, 0.5))
    assert relative_error(ours, expected) < 1e-5


@torch.no_grad()
def test_encoding(tiled):
    """Only the width is more than a tile's: 10, 10 and 2 pixels."""
    video = random(1, 3, 5, 10, 18)
    theirs = tiled().encode(torch.tensor(video)).latent_dist
    mean, logvar = encode_tiled(VAE(CONFIG), params(), video)
    assert mean.shape == (1, 4, 3, 5, 9)
    assert relative_error(mean, theirs.mean.numpy()) < 1e-5
    assert relative_error(logvar, theirs.logvar.numpy()) < 1e-5


def test_the_published_sizes_have_four_shapes_of_tiles():
    decoding, encoding = vae_tiling._tiling(VAEConfig(), None, None)
    assert [(steps.tile, steps.step, steps.kept, steps.blended) for steps in decoding] == [
        (30, 25, 200, 40),
        (45, 36, 288, 72),
    ]
    assert [(steps.tile, steps.step, steps.kept, steps.blended) for steps in encoding] == [
        (240, 200, 25, 5),
        (360, 288, 36, 9),
    ]


@pytest.mark.parametrize(
    "tile, overlap",
    [((12, 10), (0.3, 0.2)), ((1, 10), (1 / 6, 1 / 5)), ((12, 10), (1.0, 0.2)), ((9, 10), None)],
)
def test_tiles_that_do_not_fit_are_refused(tile, overlap):
    latents = np.zeros((1, 4, 1, 8, 8), np.float32)
    with pytest.raises(ValueError, match=r"tile = \(.*expected shares of the tile that are whole"):
        decode_tiled(VAE(CONFIG), params(), latents, tile=tile, overlap=overlap)


def test_frames_of_half_a_latent_pixel_are_refused():
    with pytest.raises(ValueError, match="video of 25x18: expected multiples of 2"):
        encode_tiled(VAE(CONFIG), params(), np.zeros((1, 3, 1, 25, 18), np.float32))
