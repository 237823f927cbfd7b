"""The sampler against diffusers' CogVideoX scheduler, and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import CogVideoXDDIMScheduler

from roam_jax.diffusion.sampler import ddim_step, next_timesteps, trailing_timesteps
from roam_jax.diffusion.schedule import NoiseSchedule

SCHEDULE = NoiseSchedule()


def reference(steps):
    scheduler = CogVideoXDDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        snr_shift_scale=3.0,
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
    )
    scheduler.set_timesteps(steps)
    return scheduler


@pytest.mark.parametrize("steps", [1, 3, 4, 7, 50, 1000])
def test_timesteps_equal_diffusers(steps):
    found = trailing_timesteps(SCHEDULE, steps)
    np.testing.assert_array_equal(found, reference(steps).timesteps.numpy())
    assert next_timesteps(found)[-1] == -1


@pytest.mark.parametrize("steps", [1, 4, 10])
def test_a_sampling_run_equals_diffusers(steps):
    """A model whose velocity is a fixed function of x: the whole trajectory is compared."""
    start = np.random.default_rng(0).standard_normal((2, 5, 7)).astype(np.float32)
    scheduler = reference(steps)
    expected = torch.from_numpy(start)
    for t in scheduler.timesteps:
        expected = scheduler.step(torch.tanh(expected) - 0.3, int(t), expected).prev_sample

    @jax.jit
    def run(x):
        timesteps = trailing_timesteps(SCHEDULE, steps)
        pairs = jnp.stack([timesteps, next_timesteps(timesteps)], axis=1)

        def step(x, pair):
            return ddim_step(SCHEDULE, x, jnp.tanh(x) - 0.3, pair[0], pair[1]), None

        return jax.lax.scan(step, x, pairs)[0]

    np.testing.assert_allclose(run(start), expected.numpy(), rtol=2e-5, atol=2e-6)


def test_the_true_velocity_gives_the_data_back():
    rng = np.random.default_rng(1)
    x0, noise = jnp.asarray(rng.standard_normal((2, 3, 4)), jnp.float32)
    for t in (999, 500, 3):
        times = jnp.array([t] * 3)
        xt = SCHEDULE.add_noise(x0, noise, times)
        v = SCHEDULE.velocity(x0, noise, times)
        np.testing.assert_allclose(
            ddim_step(SCHEDULE, xt, v, jnp.array(t), jnp.array(-1)), x0, rtol=1e-4, atol=1e-5
        )
        earlier = SCHEDULE.add_noise(x0, noise, jnp.array([t // 2] * 3))
        found = ddim_step(SCHEDULE, xt, v, jnp.array(t), jnp.array(t // 2))
        np.testing.assert_allclose(found, earlier, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("steps", [0, 1001])
def test_a_number_of_steps_out_of_range_is_refused(steps):
    with pytest.raises(ValueError, match=rf"sampling steps = {steps}: expected 1..1000"):
        trailing_timesteps(SCHEDULE, steps)
