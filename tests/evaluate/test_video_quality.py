"""Sampled continuations: metrics against SciPy, figures window by window, pairing, pictures."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from roam_jax.contracts import TimeSpec
from roam_jax.diffusion.samplers import Sampler
from roam_jax.evaluate.bootstrap import estimate_mean
from roam_jax.evaluate.continuation import (
    STEP_STREAM,
    ContinuationEvaluation,
    predicted_latents,
)
from roam_jax.evaluate.report import format_report
from roam_jax.evaluate.run import make_parts
from roam_jax.evaluate.video_quality import frame_quality, horizon_figures
from roam_jax.evaluate.windows import PURE_NOISE, window_noise
from roam_jax.tasks.graft_sampling import sample_jointly

STEPS = 2


def reference_ssim(a, b):
    """Wang et al. 2004 in float64: Gaussian windows of sigma 1.5 that lie inside, by channel."""
    a, b = a / 255.0, b / 255.0

    def local_mean(x):
        # 3.5 sigma, rounded, is the radius 5 of an 11 x 11 window.
        return ndimage.gaussian_filter(x, (1.5, 1.5, 0), truncate=3.5)[5:-5, 5:-5]

    means = local_mean(a), local_mean(b)
    variances = [local_mean(x * x) - m * m for x, m in zip((a, b), means, strict=True)]
    covariance = local_mean(a * b) - means[0] * means[1]
    c1, c2 = 0.01**2, 0.03**2
    top = (2 * means[0] * means[1] + c1) * (2 * covariance + c2)
    bottom = (means[0] ** 2 + means[1] ** 2 + c1) * (variances[0] + variances[1] + c2)
    return (top / bottom).mean()


def test_metrics_of_frames():
    rng = np.random.default_rng(0)
    true = rng.integers(0, 256, (2, 3, 16, 20, 3)).astype(np.uint8)
    true = ndimage.gaussian_filter(true, (0, 0, 2, 2, 0))
    noise = rng.normal(0, 8, true.shape)
    found = np.clip(true + noise, 0, 255).astype(np.uint8)
    found[1, 2] = true[1, 2]
    quality = frame_quality(found, true)
    for i in range(2):
        for t in range(3):
            a, b = found[i, t].astype(np.float64), true[i, t].astype(np.float64)
            if (i, t) == (1, 2):
                # The same picture: as near as rounding to whole numbers can tell.
                assert quality["psnr"][i, t] == pytest.approx(
                    20 * np.log10(255) + np.log10(12) * 10
                )
                assert quality["ssim"][i, t] == pytest.approx(1, abs=1e-6)
                continue
            psnr = 10 * np.log10(255**2 / np.mean((a - b) ** 2))
            assert quality["psnr"][i, t] == pytest.approx(psnr, rel=1e-9)
            assert quality["ssim"][i, t] == pytest.approx(reference_ssim(a, b), abs=2e-5)
    assert 0.2 < quality["ssim"].min() < 0.98


def test_horizons_are_grouped_by_latent_frame():
    values, episodes = np.array([[1.0, 2, 3], [5, 6, 10]]), np.array([0, 1])
    found = horizon_figures(values, [1, 1, 2], episodes=episodes, resamples=200)
    assert found["mean"] == pytest.approx(4.5)
    assert [one["mean"] for one in found["frames"]] == [3.0, 4.0, 6.5]
    assert [one["mean"] for one in found["latents"]] == [3.5, 6.5]
    assert found["latents"][0]["interval"] == [1.5, 5.5]
    assert predicted_latents(TimeSpec(13, 2)) == [2, 2, 2, 2, 3, 3, 3, 3]
    assert predicted_latents(TimeSpec(9, 1)) == [1, 1, 1, 1, 2, 2, 2, 2]


@pytest.fixture(scope="module")
def measured(experiment):
    """The experiment with few steps of the noisy sampler."""
    config = experiment.config.copy_and_resolve_references()
    config.eval.video_windows = config.eval.batch_size = 4
    config.eval.video_steps, config.eval.video_sampler = STEPS, "dpm"
    return dataclasses.replace(experiment, config=config)


@pytest.fixture(scope="module")
def continuation(measured):
    return ContinuationEvaluation(measured)


@pytest.fixture(scope="module")
def figures(continuation, params):
    return continuation.report(params, rounds=(1, 2))


def test_figures_are_those_of_each_window_alone(measured, params, figures):
    """Sampled by hand, one window at a time, with the noise that its index stands for."""
    model, source, time = measured.model, measured.splits["val"], measured.time
    indices, seen = range(4), time.observed_frames

    @jax.jit
    def continued(frames, window, noise, key):
        found = sample_jointly(
            model,
            params,
            {**window, "frames": frames},
            sampler=Sampler("dpm", STEPS),
            noise=noise,
            step_noise_key=key,
            rounds=2,
        )
        held = jnp.concatenate([frames[:, :seen], frames[:, [seen - 1] * 4]], axis=1)
        latents = [model.backbone.encode(params["vae"], x, time)[1] for x in (frames, held)]
        return [model.backbone.decode(params["vae"], x) for x in (found["latents"], *latents)]

    rows, episodes = {"rounds": [], "vae": [], "copy": [], "copy_vae": []}, []
    for index in indices:
        window = {name: jnp.asarray(value)[None] for name, value in source[index].items()}
        frames = window.pop("frames")
        shape = (time.latents, *model.backbone.latent_shape)
        _, noise = window_noise(np.array([index], np.int32), PURE_NOISE, 999, 1000, shape=shape)
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), index), STEP_STREAM)
        sampled, reconstructed, held = continued(frames, window, noise, key)
        true = np.asarray(frames)[:, seen:]
        copied = np.broadcast_to(np.asarray(frames)[:, seen - 1 : seen], true.shape)
        for name, made in (
            ("rounds", np.asarray(sampled)[:, seen:]),
            ("vae", np.asarray(reconstructed)[:, seen:]),
            ("copy", copied),
            ("copy_vae", np.asarray(held)[:, seen:]),
        ):
            error = (made.astype(np.float64) - true) ** 2
            rows[name].append(10 * np.log10(255**2 / error.mean(axis=(2, 3, 4)))[0])
        episodes.append(int(window["episode"][0]))
    val = figures["val"]["continuation"]
    assert (val["windows"], val["episodes"]) == (len(source), len(set(episodes))) == (4, 2)
    assert (val["sampler"], val["steps"]) == ("dpm", STEPS)
    assert val["frames"] == [5, 6, 7, 8] and val["latents"] == [2, 2, 2, 2]
    found = {name: val[name] for name in ("vae", "copy", "copy_vae")}
    found["rounds"] = val["rounds"]["2"]
    for name, one in found.items():
        by_frame = [estimate["mean"] for estimate in one["psnr"]["frames"]]
        # Pixels are whole numbers: a few of them round the other way in another batch.
        np.testing.assert_allclose(by_frame, np.mean(rows[name], axis=0), rtol=2e-3, err_msg=name)
    gains = np.mean(rows["rounds"], axis=1) - np.mean(rows["copy"], axis=1)
    paired = estimate_mean(gains, np.array(episodes), resamples=50)
    minus = val["rounds"]["2"]["minus_copy"]["psnr"]
    assert minus["mean"] == pytest.approx(paired.mean, abs=0.01)
    np.testing.assert_allclose(minus["interval"], paired.interval, atol=0.02)


def test_rounds_are_paired_and_figures_repeat(continuation, params, figures, measured):
    val = figures["val"]["continuation"]
    assert val["rounds"]["1"]["psnr"] != val["rounds"]["2"]["psnr"]
    again = continuation._measure(params, "again", measured.splits["val"], (2,))["rounds"][2]
    for name, values in again.items():
        assert values.mean() == pytest.approx(val["rounds"]["2"][name]["mean"], rel=1e-9)
    # With gates at zero the second round adds nothing: the same noise gives the same video.
    loop = params["blocks"]["loop"]
    loop = {**loop, "gate": loop["gate"].at[:, 1:].set(0)}
    still = {**params, "blocks": {**params["blocks"], "loop": loop}}
    source, indices = measured.splits["val"], np.arange(4, dtype=np.int32)
    batch = {name: np.stack([source[i][name] for i in range(4)]) for name in source[0]}
    predictor, sampler = continuation._predictor, continuation._sampler

    def sampled(batch, indices, *, rounds):
        windows = predictor.encode(still, batch)
        return np.asarray(sampler.sample(still, windows, indices, rounds=rounds), int)

    one, two = (sampled(batch, indices, rounds=r) for r in (1, 2))
    assert np.abs(one - two).max() <= 1
    other = sampled(batch, indices[::-1].copy(), rounds=1)
    assert (np.abs(one - other).max(axis=(1, 2, 3, 4)) > 3).all()
    # Nothing of the recorded future enters.
    seen = measured.time.observed_frames
    changed = {**batch, "frames": batch["frames"].copy(), "action_chunk": -batch["action_chunk"]}
    changed["frames"][:, seen:] = 255 - changed["frames"][:, seen:]
    np.testing.assert_array_equal(sampled(changed, indices, rounds=1), one)
    assert sampler._sample._cache_size() == 2 and predictor._encode._cache_size() == 1


def test_report_text_and_pictures(continuation, params, figures, tmp_path):
    assert json.loads(json.dumps(figures)) == figures
    text = format_report({"task": "graft", "splits": figures})
    assert "val: 4 windows of 2 episodes" in text and "(dpm, 2 steps)" in text
    assert "LPIPS: not measured, no library" in text
    mean = figures["val"]["continuation"]["rounds"]["2"]["psnr"]["mean"]
    line = next(x for x in text.split("val:")[1].splitlines() if "rounds = 2 " in x)
    assert f"{mean:.2f} [" in line
    assert all(len(line) < 160 for line in text.splitlines())
    continuation.draw(params, figures, tmp_path / "6", rounds=(1, 2))
    expected = {f"6_{s}_continuation.{end}" for s in ("train", "val") for end in ("png", "mp4")}
    assert {p.name for p in tmp_path.iterdir()} == {"6_continuation.png", *expected}


def test_what_cannot_be_measured_is_refused_by_name(measured):
    def refused(message, metrics=("video",), **leaves):
        config = measured.config.copy_and_resolve_references()
        for key, value in leaves.items():
            section, leaf = key.split("__")
            config[section][leaf] = value
        with pytest.raises(ValueError, match=message):
            make_parts(dataclasses.replace(measured, config=config), metrics)

    refused(r"eval.video_steps = 0: expected 1\.\.1000", eval__video_steps=0)
    refused("eval.video_sampler = 'euler': expected one of ddim, dpm", eval__video_sampler="euler")
    refused("metrics = 'vidoe': expected one of actions, video, rollout; did you mean", ("vidoe",))
    refused("metrics = '': expected one of actions, video", ())
    refused(
        "metrics = actions,video: a run of train.task = 'vae' continues no video",
        ("actions", "video"),
        train__task="vae",
    )
    kinds = [type(part).__name__ for part in make_parts(measured, ("video", "actions"))]
    assert kinds == ["GraftEvaluation", "ContinuationEvaluation"]
