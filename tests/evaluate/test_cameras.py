"""A model with a second camera and a goal frame: measured as it is trained."""

import jax
import numpy as np
import pytest

from roam_jax.evaluate.graft import GraftEvaluation
from roam_jax.evaluate.predictor import CAMERA_STREAMS
from roam_jax.evaluate.report import format_report
from roam_jax.evaluate.windows import PURE_NOISE, window_noise
from roam_jax.tasks.build import build
from tests.tasks.models import make_params


@pytest.fixture
def experiment(config):
    config.data.cameras, config.data.goal = ("image_0", "image_1"), "last"
    config.canvas.camera_weight = 1.0
    config.loop.rounds, config.eval.buckets = 1, 2
    return build(config)


def test_other_cameras_are_measured_and_goals_are_read(experiment, tmp_path):
    params, evaluation = make_params(experiment), GraftEvaluation(experiment)
    splits = evaluation.report(params, rounds=(1,))
    val, predictor = experiment.splits["val"], evaluation._predictor
    windows = [val[i] for i in range(len(val))]
    batch = {name: np.stack([w[name] for w in windows]) for name in windows[0]}
    indices = np.arange(len(val), dtype=np.int32)
    encoded = predictor.encode(params, batch)
    for number, bucket in enumerate(splits["val"]["rounds"]["1"]["cameras"]["buckets"]):
        span = 500 * number, 500 * number + 500
        assert bucket["timesteps"] == [span[0], span[1] - 1]
        error, zero = camera_errors(experiment, params, encoded, span, stream=1 + number)
        assert bucket["mse"]["mean"] == pytest.approx(error, rel=1e-4)
        assert bucket["zero_mse"] == pytest.approx(zero, rel=1e-4)
    text = format_report({"task": "graft", "splits": splits})
    assert text.count("velocity error of predicted frames of other cameras") == 2
    assert text.count("predicting zero") == 4
    evaluation.draw(params, splits, tmp_path / "1", rounds=(1,))
    kinds = [f"1_{s}_{kind}.png" for s in ("train", "val") for kind in ("actions", "frames")]
    assert {path.name for path in tmp_path.iterdir()} == {"1_video.png", *kinds}

    # What a policy does depends on the goal and on what both cameras saw, on nothing later.
    seen = experiment.time.observed_frames

    def actions(**changed):
        encoded = predictor.encode(params, {**batch, **changed})
        drawn = {"timesteps": (999, 1000), "stream": PURE_NOISE, "rounds": 1}
        return np.asarray(predictor.predict(params, encoded, indices, **drawn)["actions"])

    usual, other = actions(), 255 - batch["camera_frames"]
    later = np.concatenate([batch["camera_frames"][:, :, :seen], other[:, :, seen:]], axis=2)
    np.testing.assert_array_equal(actions(camera_frames=later), usual)
    assert np.abs(actions(camera_frames=other) - usual).max() > 1e-5
    assert np.abs(actions(goal_frame=255 - batch["goal_frame"]) - usual).max() > 1e-5


def camera_errors(experiment, params, windows, span, *, stream):
    """Mean squared velocity errors of the model and of zero over all windows, from the noise."""
    model, time = experiment.model, experiment.time
    indices = np.arange(len(windows["text"]), dtype=np.int32)
    shape = time.latents, *model.backbone.latent_shape
    future = 1, time.latents - time.t_current, *model.backbone.latent_shape
    t, noise = window_noise(indices, stream, *span, shape=shape)
    _, camera_noise = window_noise(indices, stream + CAMERA_STREAMS, *span, shape=future)
    drawn = {"timesteps": t, "noise": noise, "camera_noise": camera_noise}
    outputs, _ = jax.jit(lambda: model.predict(params, windows, **drawn, rounds=1))()
    alpha = np.asarray(model.schedule.alphas_cumprod, np.float64)[np.asarray(t)]
    alpha = alpha[:, None, None, None, None, None]
    x0 = np.asarray(windows["target_camera_latents"], np.float64)[:, :, time.t_current :]
    target = np.sqrt(alpha) * np.asarray(camera_noise) - np.sqrt(1 - alpha) * x0
    return np.mean((np.asarray(outputs["camera_velocity"]) - target) ** 2), np.mean(target**2)
