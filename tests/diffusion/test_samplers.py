"""Both samplers step for step against diffusers' schedulers, set as the published 2B model's."""

import math

import diffusers.schedulers.scheduling_dpm_cogvideox as their_dpm
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import CogVideoXDDIMScheduler, CogVideoXDPMScheduler

from roam_jax.diffusion.samplers import SAMPLERS, Sampler, guidance_scales
from roam_jax.diffusion.schedule import NoiseSchedule
from tests.diffusion.test_schedule import SETTINGS

SHAPE = (2, 3, 4, 5)
THEIRS = {"ddim": CogVideoXDDIMScheduler, "dpm": CogVideoXDPMScheduler}
# 3 and 7 do not divide 1000: diffusers' steps then lead beside the next timestep.
STEPS = (1, 2, 3, 4, 7, 50, 1000)


def draws(steps, seed=0):
    """Where a run starts, and of each step the velocity and the noise."""
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((*n, *SHAPE)).astype("f4") for n in ((), (steps,), (steps,)))


def their_trajectory(monkeypatch, kind, start, velocities, noises):
    steps = len(velocities)
    scheduler = THEIRS[kind](**SETTINGS)
    scheduler.set_timesteps(steps)
    x, x0, found = torch.from_numpy(start), None, []
    for i, t in enumerate(scheduler.timesteps):
        velocity, noise = torch.from_numpy(velocities[i]), torch.from_numpy(noises[i])
        if kind == "ddim":
            x = scheduler.step(velocity, t, x, return_dict=False)[0]
        else:
            # A second-order step draws twice and uses the second draw.
            monkeypatch.setattr(their_dpm, "randn_tensor", lambda *_, noise=noise, **__: noise)
            before = scheduler.timesteps[i - 1] if i else None
            x, x0 = scheduler.step(velocity, x0, t, before, x)
        found.append(x.numpy())
    return scheduler.timesteps.numpy(), np.stack(found)


def our_trajectory(sampler, start, velocities, noises):
    """The whole run in one scan, with a traced index."""

    @jax.jit
    def run(start, velocities, noises):
        def step(state, inputs):
            state = sampler.step(state, *inputs)
            return state, state.x

        inputs = velocities, jnp.arange(sampler.steps), noises
        return jax.lax.scan(step, sampler.start(start), inputs)[1]

    return np.asarray(run(start, velocities, noises))


@pytest.mark.exact
@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("kind", SAMPLERS)
def test_a_trajectory_equals_diffusers(monkeypatch, kind, steps):
    given = tuple(draws(steps))
    timesteps, expected = their_trajectory(monkeypatch, kind, *given)
    sampler = Sampler(kind, steps)
    np.testing.assert_array_equal(sampler.timesteps, timesteps)
    found = our_trajectory(sampler, *given)
    assert np.isfinite(found).all()
    error = np.linalg.norm((found - expected).reshape(steps, -1), axis=1)
    assert (error <= 1e-6 * np.linalg.norm(expected.reshape(steps, -1), axis=1)).all()


def test_another_schedule_equals_diffusers(monkeypatch):
    """5B's signal-to-noise ratio is not shifted."""
    monkeypatch.setitem(SETTINGS, "snr_shift_scale", 1.0)
    given = tuple(draws(4))
    _, expected = their_trajectory(monkeypatch, "dpm", *given)
    found = our_trajectory(Sampler("dpm", 4, NoiseSchedule(snr_shift_scale=1.0)), *given)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", SAMPLERS)
def test_the_true_velocity_gives_the_data_back(kind):
    """Of one data point: the velocity is a function of x and t, and the way there does not matter.

    Velocity v = (sqrt(alpha_bar) x - x0) / sqrt(1 - alpha_bar).
    """
    sampler = Sampler(kind, 20)
    noise, _, (x0, *noises) = draws(20, seed=1)
    state = sampler.start(noise)
    for i, t in enumerate(sampler.timesteps):
        alpha = sampler.schedule.alphas_cumprod[t]
        velocity = (alpha**0.5 * state.x - x0) / (1 - alpha) ** 0.5
        state = sampler.step(state, velocity, i, noises[min(i, 18)])
    np.testing.assert_allclose(state.x, x0, atol=1e-5)


def test_noise_only_matters_to_dpm_before_its_last_step():
    x, velocities, noises = draws(2)
    for kind, index, differs in [("ddim", 0, False), ("dpm", 0, True), ("dpm", 1, False)]:
        sampler = Sampler(kind, 2)
        state = sampler.start(x)
        one, other = (sampler.step(state, velocities[0], index, n).x for n in noises)
        assert (np.asarray(one) != np.asarray(other)).any() == differs


def test_guidance_scales_in_closed_form():
    """tests/cogvideox/test_pipeline.py compares them with those of diffusers' own loop."""
    sampler = Sampler("ddim", 1000)
    np.testing.assert_array_equal(guidance_scales(sampler, 6.0, dynamic=False), np.full(1000, 6.0))
    found = guidance_scales(sampler, 6.0, dynamic=True)
    # With 1000 steps u runs from 1/1000 to 1: the scale rises from 1 to 7 as a cosine.
    assert found[0] == pytest.approx(1) and found[-1] == 7 and (np.diff(found) >= 0).all()
    assert found[499] == pytest.approx(1 + 3 * (1 - math.cos(math.pi / 32)), rel=1e-6)


@pytest.mark.parametrize(
    "kind, steps, message",
    [
        ("dmp", 4, "sampler = 'dmp': expected one of ddim, dpm; did you mean 'dpm'?"),
        ("dpm", 0, r"sampling steps = 0: expected 1..1000"),
        ("ddim", 1001, r"sampling steps = 1001: expected 1..1000"),
    ],
)
def test_a_bad_run_is_refused(kind, steps, message):
    with pytest.raises(ValueError, match=message):
        Sampler(kind, steps)


def test_dpm_without_noise_is_refused():
    sampler = Sampler("dpm", 2)
    zeros = jnp.zeros(3)
    with pytest.raises(ValueError, match="sampler 'dpm' without noise"):
        sampler.step(sampler.start(zeros), zeros, 0)
