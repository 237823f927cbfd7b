"""A graft's report, window by window: the same model, called one window at a time."""

import json

import jax
import numpy as np
import pytest

from roam_jax.evaluate.graft import GraftEvaluation
from roam_jax.evaluate.windows import PURE_NOISE, window_noise

WINDOWS = {"train": 7, "val": 4}


@pytest.fixture(scope="module")
def alone(experiment, params):
    """(split, index, timestep range, stream) -> outputs on that one window with two rounds."""
    model = experiment.model

    @jax.jit
    def predict(batch, timesteps, noise):
        return model.predict(params, batch, timesteps=timesteps, noise=noise, rounds=2)

    def call(split, index, span, stream):
        window = experiment.splits[split][index]
        batch = {name: np.asarray(value)[None] for name, value in window.items()}
        shape = (experiment.time.latents, *model.backbone.latent_shape)
        drawn = window_noise(np.array([index], np.int32), stream, *span, shape=shape)
        outputs, measures = jax.device_get(predict(batch, *drawn))
        return batch, outputs, measures

    return call


def test_action_error_and_measures_are_means_over_windows_at_pure_noise(report, alone):
    for split, count in WINDOWS.items():
        errors, firsts, residuals = [], [], []
        for index in range(count):
            batch, outputs, measures = alone(split, index, (999, 1000), PURE_NOISE)
            square = (outputs["actions"] - batch["action_chunk"]).astype(np.float64) ** 2
            errors.append(square.mean())
            firsts.append(square[:, 0].mean())
            residuals.append(measures["residual"]["visual"])
        figures = report[split]["rounds"]["2"]
        assert report[split]["windows"] == count
        assert figures["actions"]["chunk"]["mse"]["mean"] == pytest.approx(np.mean(errors), 1e-4)
        assert figures["actions"]["first"]["mse"]["mean"] == pytest.approx(np.mean(firsts), 1e-4)
        found = np.transpose(figures["measures"]["residual"]["visual"])
        np.testing.assert_allclose(found, np.mean(residuals, axis=0), rtol=1e-4)


def test_velocity_error_by_bucket(report, alone, experiment):
    future = slice(experiment.time.t_current, None)
    for b, span in enumerate([(0, 500), (500, 1000)]):
        errors, zeros = [], []
        for index in range(WINDOWS["val"]):
            _, outputs, _ = alone("val", index, span, 1 + b)
            target = outputs["target"][:, future].astype(np.float64)
            errors.append(np.mean((outputs["velocity"][:, future] - target) ** 2))
            zeros.append(np.mean(target**2))
        found = report["val"]["rounds"]["2"]["video"]["buckets"][b]
        assert found["timesteps"] == [span[0], span[1] - 1]
        assert found["mse"]["mean"] == pytest.approx(np.mean(errors), rel=1e-4)
        assert found["zero_mse"] == pytest.approx(np.mean(zeros), rel=1e-4)


def test_report_is_json_and_rounds_differ_only_by_the_model(report, evaluation, params):
    assert json.loads(json.dumps(report)) == report
    val = report["val"]
    assert (val["windows"], val["episodes"]) == (4, 2)
    assert set(val["baselines"]) == {"training_mean", "previous_action"}
    first, second = (val["rounds"][r] for r in "12")
    assert first["actions"]["chunk"]["mse"] != second["actions"]["chunk"]["mse"]
    for one, two in zip(first["video"]["buckets"], second["video"]["buckets"], strict=True):
        assert one["zero_mse"] == pytest.approx(two["zero_mse"], rel=1e-6)
    # Fixed noise: the same call again gives the same numbers, whatever else is measured.
    again = evaluation.report(params, rounds=(2,))
    assert again["val"]["rounds"]["2"] == second
    assert set(again["val"]["rounds"]) == {"2"}


def test_metrics_are_the_validation_figures_of_the_trained_rounds(report, evaluation, params):
    figures = report["val"]["rounds"]["2"]
    assert evaluation.metrics(params) == {
        "action_mse": figures["actions"]["chunk"]["mse"]["mean"],
        "first_action_mse": figures["actions"]["first"]["mse"]["mean"],
        "gripper_accuracy": figures["actions"]["chunk"]["gripper_accuracy"],
        "diffusion": figures["video"]["mse"]["mean"],
    }


def test_nothing_of_the_future_changes_the_predicted_actions(experiment, evaluation, params):
    seen = experiment.time.observed_frames
    windows = [experiment.splits["val"][i] for i in range(3)]
    batch = {name: np.stack([w[name] for w in windows]) for name in windows[0]}
    frames = batch["frames"].copy()
    frames[:, seen:] = 255 - frames[:, seen:]
    changed = {**batch, "frames": frames, "action_chunk": -batch["action_chunk"]}
    observed = {**batch, "frames": np.concatenate([255 - frames[:, :1], frames[:, 1:]], axis=1)}
    predictor, indices = evaluation._predictor, np.arange(3, dtype=np.int32)

    def actions(batch):
        encoded = predictor.encode(params, batch)
        return np.asarray(predictor.deploy(params, encoded, indices, rounds=2)["actions"])

    np.testing.assert_array_equal(actions(changed), actions(batch))
    assert np.abs(actions(observed) - actions(batch)).max() > 1e-4


def test_one_compilation_for_each_number_of_rounds(report, evaluation):
    assert evaluation._predictor._predict._cache_size() == 2
    assert evaluation._predictor._encode._cache_size() == 1


def test_extrapolated_rounds_reuse_the_last_one(experiment, evaluation, params):
    """With its gate at zero the last round adds nothing, however often it is repeated."""
    loop = params["blocks"]["loop"]
    loop = {**loop, "gate": loop["gate"].at[:, -1].set(0)}
    params = {**params, "blocks": {**params["blocks"], "loop": loop}}
    longer = GraftEvaluation(experiment, extrapolate="last")
    assert longer.rounds((4, 1)) == (1, 4) and longer.rounds(None) == (1, 2)
    found = longer.report(params, rounds=(4,))["val"]["rounds"]["4"]
    expected = evaluation.report(params, rounds=(2,))["val"]["rounds"]["2"]
    assert found.pop("extrapolated") and not expected.pop("extrapolated")
    measures = found.pop("measures")
    for stream, steps in measures["gated_step"].items():
        np.testing.assert_allclose(steps[:2], expected["measures"]["gated_step"][stream], rtol=1e-4)
        assert len(steps) == 4 and not np.any(steps[1:])
    del expected["measures"]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), found, expected)


def test_rounds_that_were_not_trained_are_refused(evaluation, experiment):
    assert evaluation.rounds(None) == evaluation.rounds(()) == (1, 2)
    assert evaluation.rounds((2, 1, 2)) == (1, 2)
    for wrong in (3, 0):
        with pytest.raises(ValueError, match=f"rounds = {wrong}"):
            evaluation.rounds((1, wrong))
    with pytest.raises(ValueError, match="rounds = 3: .*--extrapolate last"):
        evaluation.rounds((3,))
    with pytest.raises(ValueError, match="extrapolate = 'first': expected one of last"):
        GraftEvaluation(experiment, extrapolate="first").rounds(None)
