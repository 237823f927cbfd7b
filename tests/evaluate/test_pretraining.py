"""Velocity error of a backbone by setting and bucket, against one call a window."""

import dataclasses

import jax
import numpy as np
import pytest

from roam_jax.evaluate.pretraining import PretrainingEvaluation
from roam_jax.evaluate.windows import window_noise
from roam_jax.tasks.video import VideoModel


@pytest.fixture(scope="module")
def video(experiment):
    model = VideoModel(
        experiment.model.backbone, experiment.time, experiment.model.schedule, observed_fraction=0.5
    )
    return dataclasses.replace(experiment, model=model)


def test_errors_equal_a_direct_computation(video, params, tmp_path):
    model, schedule = video.model, video.model.schedule
    transformer = {name: params[name] for name in params if name not in ("vae", "graft")}
    blocks = {name: value for name, value in params["blocks"].items() if name != "loop"}
    params = {**transformer, "blocks": blocks, "vae": params["vae"]}
    evaluation = PretrainingEvaluation(video)
    report = evaluation.report(params, rounds=())

    apply = jax.jit(model.module.apply)
    backbone = {name: value for name, value in params.items() if name != "vae"}
    errors = {"continued": np.zeros((4, 2)), "generated": np.zeros((4, 2))}
    zeros = {mode: found.copy() for mode, found in errors.items()}
    for index in range(4):
        window = video.splits["val"][index]
        seen, clean = (
            np.asarray(x, np.float64)
            for x in evaluation._encode(params["vae"], window["frames"][None])
        )
        for b, span in enumerate([(0, 500), (500, 1000)]):
            t, noise = window_noise(
                np.array([index], np.int32), 1 + b, *span, shape=clean.shape[1:]
            )
            alpha, noise = schedule.alphas_cumprod[int(t[0])], np.asarray(noise, np.float64)
            velocity = np.sqrt(alpha) * noise - np.sqrt(1 - alpha) * clean
            noisy = np.sqrt(alpha) * clean + np.sqrt(1 - alpha) * noise
            for mode, first in (("continued", video.time.t_current), ("generated", 0)):
                shown = np.concatenate([seen[:, :first], noisy[:, first:]], axis=1)
                found = apply(
                    {"params": backbone}, shown.astype(np.float32), window["text"][None], t
                )
                target = velocity[:, first:]
                errors[mode][index, b] = np.mean((np.asarray(found)[:, first:] - target) ** 2)
                zeros[mode][index, b] = np.mean(target**2)
    for mode in errors:
        figures = report["val"]["video"][mode]
        assert figures["mse"]["mean"] == pytest.approx(errors[mode].mean(), rel=1e-4)
        for b, bucket in enumerate(figures["buckets"]):
            assert bucket["mse"]["mean"] == pytest.approx(errors[mode][:, b].mean(), rel=1e-4)
            assert bucket["zero_mse"] == pytest.approx(zeros[mode][:, b].mean(), rel=1e-4)
    assert (report["val"]["windows"], report["val"]["episodes"]) == (4, 2)
    evaluation.draw(params, report, tmp_path / "3", rounds=())
    assert [path.name for path in tmp_path.iterdir()] == ["3_video.png"]


@pytest.mark.parametrize("share, modes", [(0.0, {"generated"}), (1.0, {"continued"})])
def test_only_what_was_trained_is_measured(video, share, modes):
    model = dataclasses.replace(video.model, observed_fraction=share)
    evaluation = PretrainingEvaluation(dataclasses.replace(video, model=model))
    assert set(evaluation._modes) == modes
    assert evaluation.rounds(None) == evaluation.rounds(()) == ()
    with pytest.raises(ValueError, match="rounds = 1,2: .*'video' has no loop"):
        evaluation.rounds((1, 2))
