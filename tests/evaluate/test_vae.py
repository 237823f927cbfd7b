"""PSNR against closed forms, and a VAE's report with a reconstruction of known error."""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
import pytest

from roam_jax.evaluate.vae import VAEEvaluation, mean_colour_error, psnr


def test_psnr_in_closed_form():
    # An error of d everywhere: 20 log10(255 / d).
    for d in (1.0, 5.0, 255.0):
        assert psnr(d**2) == pytest.approx(20 * math.log10(255 / d))
    assert psnr(0.0) == math.inf


def test_mean_colour_error_pixel_by_pixel():
    frames = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 5, 3), dtype=np.uint8)
    for window, found in zip(frames, mean_colour_error(frames), strict=True):
        squares = []
        for frame in window.astype(np.float64):
            for channel in range(3):
                colour = sum(frame[..., channel].ravel()) / 20
                squares += [(value - colour) ** 2 for value in frame[..., channel].ravel()]
        assert found == pytest.approx(np.mean(squares), rel=1e-12)


@dataclasses.dataclass(frozen=True)
class Shifted:
    """Reconstructs every pixel 4 too high."""

    def reconstruct(self, params, frames):
        return frames.astype(jnp.float32) + params["shift"]


def test_report_of_a_known_reconstruction(experiment, tmp_path):
    config = experiment.config.copy_and_resolve_references()
    config.train.task = "vae"
    vae = dataclasses.replace(experiment, config=config, model=Shifted())
    evaluation, params = VAEEvaluation(vae), {"shift": jnp.float32(4)}
    report = evaluation.report(params, rounds=evaluation.rounds(None))
    for split, count in (("train", 7), ("val", 4)):
        windows = [experiment.splits[split][i]["frames"] for i in range(count)]
        flat = np.mean([frames.astype(float).var(axis=(1, 2)).mean() for frames in windows])
        mean_colour = 10 * math.log10(255**2 / flat)
        expected = 20 * math.log10(255 / 4)
        found = report[split]
        assert found["windows"] == count
        assert found["psnr"]["mean"] == pytest.approx(expected, rel=1e-6)
        assert found["psnr"]["interval"] == pytest.approx([expected, expected], rel=1e-6)
        assert found["mean_colour_psnr"] == pytest.approx(mean_colour, rel=1e-6)
        assert found["psnr_gain"] == pytest.approx(expected - mean_colour, rel=1e-6)
    assert evaluation.metrics(params)["psnr_gain"] == report["val"]["psnr_gain"]
    evaluation.draw(params, report, tmp_path / "7", rounds=())
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"7_train_frames.png", "7_val_frames.png"}
    with pytest.raises(ValueError, match="'vae' has no loop"):
        evaluation.rounds((1,))
