"""The small VAE's task: loss, augmentation, start, and the weights that the package ships."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from roam_jax.cogvideox.vae_config import VAEConfig
from roam_jax.tasks import vae as tasks
from roam_jax.tasks.vae import TINY, VAEModel, augment, to_video, vae_task

SMALL = VAEModel(
    VAEConfig(
        block_out_channels=(4, 4),
        layers_per_block=1,
        norm_num_groups=2,
        latent_channels=4,
        temporal_compression_ratio=2,
    )
)


@pytest.fixture(scope="module")
def params():
    return jax.jit(SMALL.init)(jax.random.key(0))


def random_frames(shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def test_pixels_become_the_range_and_axes_of_the_vae():
    frames = random_frames((2, 5, 4, 6, 3))
    video = to_video(jnp.asarray(frames))
    expected = frames.transpose(0, 4, 1, 2, 3).astype(np.float64) / 127.5 - 1
    np.testing.assert_allclose(video, expected, atol=1e-6)


def test_the_start_is_nearly_noiseless_and_norms_have_gain_one(params):
    video = to_video(jnp.asarray(random_frames((2, 5, 8, 8, 3))))
    mean, logvar = SMALL.vae.apply({"params": params}, video, method="encode")
    assert abs(float(logvar.mean()) - tasks.FIRST_LOGVAR) < 1.5
    assert 0.1 < float(mean.std()) < 3
    flat = traverse_util.flatten_dict(params, sep="/")
    kernels = {name: leaf for name, leaf in flat.items() if name.endswith("conv1/kernel")}
    for name, leaf in kernels.items():
        fan_in = leaf.size / leaf.shape[-1]
        assert float(leaf.std()) == pytest.approx(fan_in**-0.5, rel=0.25), name
    assert all((leaf == 1).all() for name, leaf in flat.items() if name.endswith("conv_y/bias"))
    # No two tensors share their noise.
    first = [float(leaf.ravel()[0]) for leaf in kernels.values()]
    assert len(set(first)) == len(first)


def test_loss_is_its_parts_from_an_independent_sum(params):
    batch = {"frames": jnp.asarray(random_frames((2, 5, 8, 8, 3)))}
    rng = jax.random.key(1)
    total, metrics = jax.jit(SMALL.loss, static_argnums=3)(params, batch, rng, 1)
    clip_rng, noise_rng = jax.random.split(rng)
    video = augment(to_video(batch["frames"]), clip_rng)
    mean, logvar = SMALL.vae.apply({"params": params}, video, method="encode")
    noise = np.asarray(jax.random.normal(noise_rng, mean.shape), np.float64)
    variance = np.exp(np.asarray(logvar, np.float64))
    latents = np.asarray(mean, np.float64) + np.sqrt(variance) * noise
    decoded = SMALL.vae.apply({"params": params}, jnp.asarray(latents), method="decode")
    error = np.asarray(decoded, np.float64) - np.asarray(video)
    divergence = (np.asarray(mean, np.float64) ** 2 + variance - 1 - np.log(variance)).mean() / 2
    parts = (np.abs(error).mean(), (error**2).mean(), divergence)
    names = ("loss/absolute", "loss/squared", "loss/divergence")
    np.testing.assert_allclose([metrics[name] for name in names], parts, rtol=1e-4)
    np.testing.assert_allclose(total, parts[0] + parts[1] + tasks.KL_WEIGHT * parts[2], rtol=1e-4)


def test_augmentation_keeps_a_still_clip_still_and_in_range():
    frame = random_frames((4, 1, 48, 40, 3))
    video = to_video(jnp.asarray(np.repeat(frame, 5, axis=1)))
    clips = np.asarray(augment(video, jax.random.key(0)))
    assert clips.shape == (4, 3, 5, 32, 32)
    assert np.abs(clips).max() <= 1
    np.testing.assert_allclose(clips, np.repeat(clips[:, :, :1], 5, axis=2), atol=1e-6)
    other = np.asarray(augment(video, jax.random.key(1)))
    assert (np.abs(other - clips).mean(axis=(1, 2, 3, 4)) > 0.05).all()


def test_crops_are_windows_of_the_clip():
    clip = jnp.arange(3 * 2 * 6 * 5, dtype=jnp.float32).reshape(3, 2, 6, 5)
    corners = set()
    for seed in range(40):
        crop = np.asarray(tasks._crop(clip, jax.random.key(seed), 4))
        top, left = divmod(int(crop[0, 0, 0, 0]), 5)
        np.testing.assert_array_equal(crop, clip[:, :, top : top + 4, left : left + 4])
        corners.add((top, left))
    assert corners == {(top, left) for top in range(3) for left in range(2)}


def test_recolouring_is_one_affine_map_of_colours_a_clip():
    clips = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (2, 3, 1, 4, 4)), jnp.float32)
    changed = np.asarray(
        tasks._recolour(clips, jax.random.key(0), draws=tasks.ClipDraws(len(clips)))
    )
    for before, after in zip(np.asarray(clips), changed, strict=True):
        colours = np.concatenate([before.reshape(3, -1), np.ones((1, 16))]).T
        fit, residual, *_ = np.linalg.lstsq(colours, after.reshape(3, -1).T, rcond=None)
        assert residual.max() < 1e-8
        assert np.abs(np.linalg.det(fit[:3])) > 1e-3


def test_task_trains_every_parameter_and_refuses_other_clips():
    from configs import tiny_vae

    config = tiny_vae.get_config()
    model, task = vae_task(config, batch_spec={})
    assert task.trainable == (".*",)
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) * 2 < 2e6
    assert model.config == TINY
    config.data.clip_frames = 5
    with pytest.raises(ValueError, match="data.clip_frames = 5: expected 1 or data.frames = 9"):
        vae_task(config, batch_spec={})
    with pytest.raises(ValueError, match="no variant 'big'"):
        tiny_vae.get_config("big")


def test_single_frames_are_clips_of_their_own():
    frames = jnp.asarray(random_frames((2, 9, 40, 40, 3)))
    apart = VAEModel(SMALL.config, single_frames=True)
    params = jax.jit(SMALL.init)(jax.random.key(0))
    flat = frames[:, ::4].reshape(6, 1, 40, 40, 3)
    loss = [
        jax.jit(model.loss, static_argnums=3)(params, {"frames": x}, jax.random.key(1), 1)[0]
        for model, x in ((apart, frames), (SMALL, flat))
    ]
    np.testing.assert_allclose(*loss, rtol=1e-5)
