"""Figures of robot state and reward: by hand, and of a model that predicts both."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from roam_jax.evaluate.graft import GraftEvaluation
from roam_jax.evaluate.predictor import ACTION_STREAMS
from roam_jax.evaluate.report import format_report
from roam_jax.evaluate.streams import stream_figures
from roam_jax.evaluate.windows import PURE_NOISE, window_noise
from roam_jax.tasks.build import build
from roam_jax.tasks.graft_sampling import sample_actions
from tests.tasks.models import make_params


def test_errors_are_means_over_windows_beside_holding_the_last_observation():
    targets = np.array([[[1.0, 2.0], [3.0, 4.0]], [[0.0, 0.0], [0.0, 2.0]]], np.float32)
    observed = np.array([[[9.0, 9.0], [1.0, 2.0]], [[9.0, 9.0], [0.0, 1.0]]], np.float32)
    found = stream_figures(
        targets + 0.5, targets, observed, episodes=np.array([0, 1], np.int32), resamples=20
    )
    assert found["mse"]["mean"] == pytest.approx(0.25)
    assert found["last_observed_mse"]["mean"] == pytest.approx((8 / 4 + 2 / 4) / 2)


@pytest.fixture
def experiment(config):
    config.decoder.kind = "tokens_diffused"
    config.canvas.proprio = config.canvas.reward = True
    config.canvas.proprio_weight = config.canvas.reward_weight = 1.0
    config.loop.rounds = 1
    config.eval.action_steps = 2
    return build(config)


def test_a_model_that_diffuses_actions_and_predicts_every_stream(experiment):
    params, model = make_params(experiment), experiment.model
    evaluation = GraftEvaluation(experiment)
    splits = evaluation.report(params, rounds=(1,))
    figures = splits["val"]["rounds"]["1"]
    assert set(figures["streams"]) == {"proprio", "reward"}

    @jax.jit
    def sample(batch, timesteps, noise, action_noise):
        drawn = {"timesteps": timesteps, "noise": noise, "action_noise": action_noise}
        return sample_actions(model, params, batch, **drawn, steps=2, rounds=1)[0]

    errors = {"actions": [], "proprio": []}
    time = experiment.time
    for index in range(len(experiment.splits["val"])):
        window = experiment.splits["val"][index]
        batch = {name: jnp.asarray(value)[None] for name, value in window.items()}
        latents = (time.latents, *model.backbone.latent_shape)
        draws = [
            window_noise(np.array([index], np.int32), stream, 999, 1000, shape=shape)
            for stream, shape in (
                (PURE_NOISE, latents),
                (PURE_NOISE + ACTION_STREAMS, (time.chunk, 7)),
            )
        ]
        outputs = sample(batch, *draws[0], draws[1][1])
        errors["actions"].append(np.mean((outputs["actions"] - batch["action_chunk"]) ** 2))
        errors["proprio"].append(np.mean((outputs["proprio"] - batch["future_proprio"]) ** 2))
    mse = figures["actions"]["chunk"]["mse"]["mean"]
    assert mse == pytest.approx(np.mean(errors["actions"]), rel=1e-3)
    mse = figures["streams"]["proprio"]["mse"]["mean"]
    assert mse == pytest.approx(np.mean(errors["proprio"]), rel=1e-3)
    text = format_report({"task": "graft", "splits": splits})
    assert "proprio: normalised MSE" in text and "last observed" in text


def test_a_number_of_action_steps_out_of_range_is_refused(experiment):
    experiment.config.eval.action_steps = 0
    with pytest.raises(ValueError, match=r"eval.action_steps = 0: expected 1..1000"):
        GraftEvaluation(experiment)
