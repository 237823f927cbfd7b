"""A predictor of a model with everything to noise: three cameras and diffused actions."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from roam_jax.evaluate.predictor import GraftPredictor
from roam_jax.evaluate.windows import PURE_NOISE
from roam_jax.tasks.graft_sampling import sample_actions
from roam_jax.tasks.sketch import sketch
from tests.tasks.models import make_params, random_batch

ROWS, STEPS = 4, 2
INDICES = np.arange(ROWS, dtype=np.int32)


@pytest.fixture
def plan(config):
    config.train.batch_size, config.data.image_size = ROWS, (16, 32)
    config.data.cameras, config.data.goal = ("image_0", "image_1", "image_2"), "last"
    config.canvas.camera_weight, config.decoder.kind = 0.5, "tokens_diffused"
    return sketch(config)


@pytest.fixture
def predictor(plan):
    return GraftPredictor(plan.model, action_steps=STEPS)


def noise_of(predictor, params, windows, *, timesteps=(999, 1000), stream=PURE_NOISE):
    """What a prediction starts from, as arguments of the model."""
    seen, predict = [], predictor._predict
    predictor._predict = lambda *inputs, **_: seen.append(inputs) or {}
    predictor.predict(
        params, windows, INDICES, timesteps=timesteps, stream=stream, rounds=1, action_steps=STEPS
    )
    predictor._predict = predict
    ((*_, noise, others),) = seen
    return {"noise": noise, **others}


def test_all_that_is_noised_has_noise_of_its_own(predictor):
    params = {"any": np.zeros(1)}
    drawn = [
        np.asarray(values)
        for stream in (PURE_NOISE, 1, 2)
        for values in noise_of(predictor, params, {}, stream=stream).values()
    ]
    assert len(drawn) == 9
    for one, other in itertools.combinations(drawn, 2):
        assert len(np.intersect1d(one, other)) < 10


def test_cameras_and_goals_are_served(plan, predictor):
    params, batch = make_params(plan), random_batch(plan.task)
    windows = predictor.encode(params, batch)
    assert not {"frames", "camera_frames", "goal_frame"} & windows.keys()
    found = predictor.deploy(params, windows, INDICES, rounds=1)
    assert found["actions"].shape == (ROWS, 4, 7) and found["camera_error"].shape == (ROWS,)
    # A window's figures do not depend on those beside it.
    single = {name: value[1:2] for name, value in windows.items()}
    alone = predictor.deploy(params, single, INDICES[1:2], rounds=1)
    for name in ("actions", "error", "camera_error"):
        np.testing.assert_allclose(alone[name][0], found[name][1], rtol=1e-4, atol=1e-5)
    frames = batch["camera_frames"].copy()
    frames[:, :, plan.time.observed_frames :] = 255 - frames[:, :, plan.time.observed_frames :]
    changed = predictor.encode(params, {**batch, "camera_frames": frames})
    later = predictor.deploy(params, changed, INDICES, rounds=1)
    np.testing.assert_array_equal(later["actions"], found["actions"])
    assert (np.asarray(later["camera_error"]) != np.asarray(found["camera_error"])).all()
    # At pure noise the target is -x0, and predicting zero errs by the latents themselves.
    drawn = noise_of(predictor, params, windows) | {"timesteps": jnp.full(ROWS, 999)}
    outputs, _ = jax.jit(
        lambda: sample_actions(plan.model, params, windows, **drawn, steps=STEPS, rounds=1)
    )()
    x0 = np.asarray(windows["target_camera_latents"], np.float64)[:, :, plan.time.t_current :]
    error = ((np.asarray(outputs["camera_velocity"]) + x0) ** 2).mean(axis=(1, 2, 3, 4, 5))
    np.testing.assert_allclose(found["camera_error"], error, rtol=1e-4)
    np.testing.assert_allclose(found["camera_zero_error"], (x0**2).mean(axis=(1, 2, 3, 4, 5)), 1e-5)
