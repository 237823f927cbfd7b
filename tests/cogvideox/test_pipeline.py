"""The whole pipeline frame by frame against diffusers', from the same noise; continuation."""

import pathlib

import diffusers.schedulers.scheduling_dpm_cogvideox as their_dpm
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from absl import logging
from diffusers import CogVideoXDDIMScheduler, CogVideoXDPMScheduler

from roam_jax.cogvideox.pipeline import Pipeline, to_pixels
from roam_jax.cogvideox.video_size import VideoSize
from roam_jax.diffusion.samplers import Sampler, guidance_scales
from tests.cogvideox.diffusers_models import relative_error
from tests.cogvideox.pipelines import LATENTS, SIZE, texts, write_pipeline
from tests.diffusion.test_schedule import SETTINGS

THEIRS = {"ddim": CogVideoXDDIMScheduler, "dpm": CogVideoXDPMScheduler}
EMPTY, TEXT = texts()
DRAWN = np.random.default_rng(5).standard_normal(LATENTS, np.float32)
STEPS = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("pipeline")


@pytest.fixture(scope="module")
def theirs(folder):
    return write_pipeline(folder)


@pytest.fixture(scope="module")
def ours(theirs, folder):
    return Pipeline.load(folder / "converted", steps=STEPS)


def draws(steps=STEPS, seed=1):
    rng = np.random.default_rng(seed)
    return rng.standard_normal(LATENTS, np.float32), rng.standard_normal(
        (steps, *LATENTS), np.float32
    )


def their_video(monkeypatch, pipeline, kind, noise, step_noise, *, guidance, dynamic):
    """Their frames, latents and scales; the scheduler draws from `step_noise`."""
    pipeline.scheduler = THEIRS[kind].from_config(pipeline.scheduler.config)
    place = {"step": 0}
    monkeypatch.setattr(
        their_dpm, "randn_tensor", lambda *_, **__: torch.from_numpy(step_noise[place["step"]])
    )
    scales, latents = [], []

    def follow(pipeline, step, _, tensors):
        place["step"] = step + 1
        scales.append(pipeline.guidance_scale)
        latents.append(tensors["latents"].numpy())
        return {}

    found = pipeline(
        prompt_embeds=torch.from_numpy(TEXT),
        negative_prompt_embeds=torch.from_numpy(EMPTY),
        latents=torch.from_numpy(noise),
        num_inference_steps=len(step_noise),
        guidance_scale=guidance,
        use_dynamic_cfg=dynamic,
        callback_on_step_end=follow,
        output_type="np",
        **SIZE,
    )
    return found.frames, latents[-1], scales


@pytest.mark.parametrize(
    "kind, guidance, dynamic",
    [
        ("ddim", 6.0, False),
        ("ddim", 6.0, True),
        ("dpm", 6.0, False),
        ("dpm", 6.0, True),
        ("ddim", 1.0, False),
    ],
)
def test_every_frame_equals_diffusers(monkeypatch, theirs, ours, kind, guidance, dynamic):
    noise, step_noise = draws()
    frames, latents, scales = their_video(
        monkeypatch, theirs, kind, noise, step_noise, guidance=guidance, dynamic=dynamic
    )
    sampler = Sampler(kind, STEPS)
    if guidance > 1:
        expected = guidance_scales(sampler, guidance, dynamic=dynamic)
        np.testing.assert_allclose(scales, expected, rtol=1e-6)
    found = ours.sample(
        TEXT,
        sampler=sampler,
        guidance=guidance,
        dynamic_guidance=dynamic,
        empty_text=EMPTY if guidance > 1 else None,
        noise=noise,
        step_noise=step_noise,
    )
    assert relative_error(found, latents) <= 1e-4
    video = ours.decode(found)
    assert video.shape == frames.shape == (1, 9, 48, 80, 3)
    # A picture with something in it, not grey and not clipped.
    assert frames.std() > 0.02 and ((frames > 0) & (frames < 1)).mean() > 0.5
    assert np.abs(video - frames).max() <= 1e-3
    pictures = np.stack(theirs.video_processor.numpy_to_pil(frames[0]))
    np.testing.assert_array_equal(to_pixels(frames[0]), pictures)


def test_large_frames_are_decoded_in_tiles_as_diffusers_does(theirs, ours):
    latents, tile = draws()[0][:, :1], (48, 40)
    theirs.vae.enable_tiling(*tile, 1 / 6, 1 / 5)
    try:
        with torch.no_grad():
            expected = theirs.decode_latents(torch.from_numpy(latents))
    finally:
        theirs.vae.disable_tiling()
    expected = theirs.video_processor.postprocess_video(expected, output_type="np")
    found = ours.decode(latents, tile=tile)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.abs(found - ours.decode(latents)).max() > 1e-3


def test_one_compilation_whatever_the_number_of_steps(ours, caplog):
    """Steps, scale and timesteps are arguments; progress counts from the compiled step on."""
    with caplog.at_level("INFO", logger=logging.get_absl_logger().name):
        for steps, guidance, dynamic in [(2, 5.0, False), (3, 7.5, True)]:
            seen = []
            ours.sample(
                TEXT,
                empty_text=EMPTY,
                sampler=Sampler("dpm", steps),
                size=VideoSize(5, 16, 16),
                guidance=guidance,
                dynamic_guidance=dynamic,
                progress=seen.append,
            )
            assert seen == list(range(steps + 1))
    lines = [r.getMessage() for r in caplog.records if "compiling" in r.getMessage()]
    assert lines == ["compiling one denoising step: 1 x 2 latent frames of 2x2, 2 passes"]


def test_the_seed_decides_all_noise(ours):
    def sample(kind, **arguments):
        size = VideoSize(5, 16, 16)
        return np.asarray(
            ours.sample(TEXT, empty_text=EMPTY, sampler=Sampler(kind, 2), size=size, **arguments)
        )

    for kind in THEIRS:
        found = sample(kind, seed=3)
        np.testing.assert_array_equal(found, sample(kind, seed=3))
        assert relative_error(sample(kind, seed=4), found) > 0.1
    # With the start given, the seed is of the noise on the way.
    noise = np.random.default_rng(0).standard_normal(found.shape, np.float32)
    assert relative_error(sample("dpm", noise=noise), sample("dpm", noise=noise, seed=1)) > 0.01
    np.testing.assert_array_equal(sample("ddim", noise=noise), sample("ddim", noise=noise, seed=1))


@pytest.fixture(scope="module")
def first_frames():
    y, x = np.mgrid[:48, :80]
    frame = np.stack([2 * x, 3 * y, 200 - x - y], axis=-1)
    return np.stack([frame + 4 * t for t in range(5)]).astype(np.uint8)[None]


def their_clean_latents(vae, frames):
    video = torch.from_numpy(np.moveaxis(frames / np.float32(127.5) - 1, -1, 1))
    with torch.no_grad():
        mean = vae.encode(video.float()).latent_dist.mean
    return mean.permute(0, 2, 1, 3, 4) * vae.config.scaling_factor


def test_a_continuation_keeps_given_frames_clean_in_every_step(theirs, ours, first_frames):
    """Diffusers' transformer and scheduler, with the latents of five given frames held."""
    noise, _ = draws()
    clean = their_clean_latents(theirs.vae, first_frames)
    assert clean.shape[1] == 2
    scheduler = CogVideoXDDIMScheduler(**SETTINGS)
    scheduler.set_timesteps(STEPS)
    future, text = torch.from_numpy(noise[:, 2:]), torch.from_numpy(np.concatenate([EMPTY, TEXT]))
    with torch.no_grad():
        for t in scheduler.timesteps:
            latents = torch.cat([clean, future], dim=1)
            velocity = theirs.transformer(torch.cat([latents] * 2), text, t.expand(2)).sample
            without, given = velocity[:, 2:].chunk(2)
            future = scheduler.step(without + 6 * (given - without), t, future, return_dict=False)[
                0
            ]
    found = ours.sample(TEXT, empty_text=EMPTY, noise=noise, first_frames=first_frames)
    assert relative_error(found[:, :2], clean) <= 1e-5
    assert relative_error(found[:, 2:], future) <= 1e-4


def test_given_frames_may_have_a_timestep_of_their_own(ours, first_frames):
    noise, _ = draws()
    clean = ours.encode(first_frames)
    sampler = Sampler("ddim", 2)
    state = sampler.start(noise[:, 2:])
    for index, t in enumerate(sampler.timesteps):
        latents = jnp.concatenate([clean, state.x], axis=1)
        velocity = ours.transformer.apply(
            {"params": ours._params}, latents, jnp.asarray(TEXT), jnp.array([[0, 0, t]])
        )
        state = sampler.step(state, velocity[:, 2:], index)
    arguments = {"guidance": 1.0, "sampler": sampler, "noise": noise, "first_frames": first_frames}
    found = ours.sample(TEXT, clean_timestep="zero", **arguments)
    assert relative_error(found[:, 2:], state.x) <= 1e-4
    assert relative_error(ours.sample(TEXT, **arguments)[:, 2:], state.x) > 1e-3


def test_given_latents_are_the_first_and_unchanged(ours, first_frames):
    found = ours.sample(TEXT, guidance=1.0, sampler=Sampler("ddim", 1), first_frames=first_frames)
    np.testing.assert_array_equal(found[:, :2], ours.encode(first_frames))


def test_parameters_stay_memory_mapped(ours, folder):
    """On a CPU the device's arrays lie within the mapped file."""
    found = {}
    for line in pathlib.Path("/proc/self/maps").read_text().splitlines():
        if "weights.safetensors" in line and str(folder) in line:
            start, _, end = line.split()[0].partition("-")
            found[int(start, 16)] = int(end, 16)
    large = [leaf for leaf in jax.tree.leaves(ours._params) if leaf.nbytes % 64 == 0]
    assert len(large) > 10
    for leaf in large:
        place = leaf.unsafe_buffer_pointer()
        assert any(start <= place < end for start, end in found.items())


def test_sizes_come_from_the_model(ours):
    assert ours.default_size == VideoSize(9, 48, 80)
    assert ours.text_shape == TEXT.shape[1:]
    assert ours.sampler == Sampler("ddim", STEPS)


@pytest.mark.parametrize(
    "size, message",
    [
        ((48, 48, 80), "frames = 48: the VAE has 4n + 1 frames, the nearest is 45 or 49"),
        ((0, 48, 80), "frames = 0: the VAE has 4n + 1 frames, the nearest is 1"),
        ((9, 50, 80), "height = 50: expected a multiple of 16 pixels, the nearest is 48 or 64"),
        ((9, 48, 8), "width = 8: expected a multiple of 16 pixels, the nearest is 16"),
    ],
)
def test_a_size_that_the_model_does_not_have_is_refused(ours, size, message):
    with pytest.raises(ValueError) as error:
        ours.sample(TEXT, guidance=1.0, size=VideoSize(*size))
    assert message in str(error.value)


@pytest.mark.parametrize(
    "shape, message",
    [
        ((1, 4, 48, 80, 3), "first frames = 4: the VAE has 4n + 1 frames, the nearest is 1 or 5"),
        ((1, 9, 48, 80, 3), "first frames = 9 of a video of 9: expected at most 5"),
        ((1, 5, 48, 64, 3), "first frames of 48x64 pixels: expected 48x80"),
        ((2, 5, 48, 80, 3), "first_frames of 2 videos, expected 1"),
    ],
)
def test_first_frames_that_do_not_fit_are_refused(ours, shape, message):
    with pytest.raises(ValueError, match=message.replace("+", r"\+")):
        ours.sample(TEXT, guidance=1.0, first_frames=np.zeros(shape, np.uint8))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({}, r"guidance = 6.0 without empty_text"),
        ({"empty_text": EMPTY[:, :2]}, r"empty_text of shape \(1, 2, 24\): expected \(1, 5, 24\)"),
        ({"text": TEXT[..., :9]}, r"text of shape \(1, 5, 9\): expected \(1, 5, 24\)"),
        (
            {"empty_text": EMPTY, "noise": DRAWN[:, :2]},
            r"noise of shape \(1, 2, 16, 6, 10\): expected \(1, 3, 16, 6, 10\)",
        ),
        ({"clean_timestep": "one"}, r"clean_timestep = 'one': expected one of global, zero"),
    ],
)
def test_what_does_not_fit_the_model_is_refused(ours, arguments, message):
    with pytest.raises(ValueError, match=message):
        ours.sample(**{"text": TEXT, **arguments})
