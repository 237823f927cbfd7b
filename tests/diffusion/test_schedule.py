"""The noise schedule against diffusers' schedulers and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from roam_jax.diffusion.schedule import NoiseSchedule

# scheduler_config.json of CogVideoX-2B; diffusers' class defaults differ.
SETTINGS = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": True,
    "prediction_type": "v_prediction",
    "timestep_spacing": "trailing",
    "rescale_betas_zero_snr": True,
    "snr_shift_scale": 3.0,
}
# (timestep, alpha_bar), read from diffusers once, for where torch is missing.
KNOWN = [
    (0, 0.9974543276),
    (1, 0.9948006264),
    (10, 0.9707857689),
    (100, 0.7282419323),
    (250, 0.3890537092),
    (500, 0.0953281009),
    (750, 0.0108389019),
    (900, 9.45453e-4),
    (998, 6.23079e-8),
]


@pytest.mark.parametrize("name", ["CogVideoXDDIMScheduler", "CogVideoXDPMScheduler"])
@pytest.mark.parametrize("steps, shift", [(1000, 3.0), (1000, 1.0), (50, 2.0)])
def test_equals_diffusers_in_float64(name, steps, shift):
    diffusers = pytest.importorskip("diffusers")
    settings = SETTINGS | {"num_train_timesteps": steps, "snr_shift_scale": shift}
    theirs = getattr(diffusers, name)(**settings).alphas_cumprod.numpy()
    ours = NoiseSchedule(steps=steps, snr_shift_scale=shift).alphas_cumprod
    assert theirs.dtype == ours.dtype == np.float64
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12)


def test_known_values():
    alphas = NoiseSchedule().alphas_cumprod
    for t, expected in KNOWN:
        assert alphas[t] == pytest.approx(expected, rel=1e-5)
    assert alphas[999] == 0
    assert (np.diff(alphas) < 0).all()


@pytest.fixture(scope="module")
def pair():
    keys = jax.random.split(jax.random.key(0))
    return [jax.random.normal(key, (3, 2, 4, 3, 5)) for key in keys]


@pytest.mark.parametrize("t", [[0, 500, 999], [[0, 999], [250, 250], [7, 998]]])
def test_noise_and_velocity_are_the_definition(pair, t):
    """Timesteps of rows (B,), and of rows and frames (B, F)."""
    x0, noise = (np.asarray(x, np.float64) for x in pair)
    alphas = NoiseSchedule().alphas_cumprod[np.array(t)]
    alphas = alphas.reshape(alphas.shape + (1,) * (5 - alphas.ndim))
    schedule = NoiseSchedule()
    ours = schedule.add_noise(*pair, jnp.array(t))
    assert ours.dtype == jnp.float32
    np.testing.assert_allclose(ours, alphas**0.5 * x0 + (1 - alphas) ** 0.5 * noise, atol=1e-6)
    ours = schedule.velocity(*pair, jnp.array(t))
    np.testing.assert_allclose(ours, alphas**0.5 * noise - (1 - alphas) ** 0.5 * x0, atol=1e-6)


def test_equals_diffusers_add_noise_and_velocity(pair):
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    scheduler = diffusers.CogVideoXDDIMScheduler(**SETTINGS)
    t = [0, 500, 999]
    theirs = [torch.tensor(np.asarray(x, np.float64)) for x in pair] + [torch.tensor(t)]
    schedule = NoiseSchedule()
    for name, ours in (("add_noise", schedule.add_noise), ("get_velocity", schedule.velocity)):
        expected = getattr(scheduler, name)(*theirs).numpy()
        np.testing.assert_allclose(ours(*pair, jnp.array(t)), expected, atol=1e-6)


def test_velocity_gives_x0_back(pair):
    x0, noise = pair
    schedule, t = NoiseSchedule(), jnp.array([0, 500, 999])
    xt, v = schedule.add_noise(x0, noise, t), schedule.velocity(x0, noise, t)
    np.testing.assert_allclose(schedule.predict_x0(xt, v, t), x0, atol=1e-5)


def test_nothing_of_x0_is_left_at_the_last_step(pair):
    x0, noise = pair
    t = jnp.full(3, 999)
    schedule = NoiseSchedule()
    np.testing.assert_array_equal(schedule.add_noise(x0, noise, t), noise)
    np.testing.assert_array_equal(schedule.add_noise(100 * x0, noise, t), noise)
    np.testing.assert_array_equal(schedule.velocity(x0, noise, t), -x0)


def test_plain_mse_on_v_is_the_reference_loss(pair):
    """CogVideoX trains on the error of x0 with weight 1 / (1 - alpha_bar)."""
    x0, noise = pair
    t = jnp.array([10, 500, 999])
    schedule = NoiseSchedule()
    predicted = 0.3 * x0 - noise
    xt = schedule.add_noise(x0, noise, t)
    error = (schedule.predict_x0(xt, predicted, t) - x0) ** 2
    weight = 1 / (1 - schedule.alphas_cumprod[np.array(t)])
    weighted = error.mean(axis=(1, 2, 3, 4)) * weight
    plain = ((predicted - schedule.velocity(x0, noise, t)) ** 2).mean(axis=(1, 2, 3, 4))
    np.testing.assert_allclose(weighted, plain, rtol=2e-5)


def test_timestep_out_of_range_is_nan(pair):
    noisy = NoiseSchedule().add_noise(*pair, jnp.array([0, 1000, 999]))
    assert np.isnan(noisy[1]).all() and np.isfinite(noisy[0]).all()


@pytest.mark.parametrize(
    "values, message",
    [
        ({"steps": 1}, "steps = 1: expected at least 2"),
        ({"beta_start": 0.5}, "beta_start = 0.5, beta_end = 0.012"),
        ({"snr_shift_scale": 0.0}, "snr_shift_scale = 0.0"),
    ],
)
def test_bad_settings_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        NoiseSchedule(**values)
