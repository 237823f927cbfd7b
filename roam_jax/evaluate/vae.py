"""Evaluation of a VAE: how near its reconstructions come to the frames.

The figure is the peak signal-to-noise ratio beside that of the cheapest reconstruction, each
frame's mean colour: flat scenes score high with either, so only the gain says something.
"""

from __future__ import annotations

import math
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int, UInt8

from roam_jax.contracts import Batch, Params
from roam_jax.data.windows import WindowSource
from roam_jax.evaluate.bootstrap import Estimate, estimate_mean
from roam_jax.evaluate.pictures import PICTURED, window_titles
from roam_jax.evaluate.placement import put_rows, rows_per_batch
from roam_jax.evaluate.pretraining import no_rounds
from roam_jax.evaluate.splits import by_member, file_name
from roam_jax.evaluate.windows import map_windows, spread_windows
from roam_jax.tasks.build import Experiment
from roam_jax.viz.frames import draw_frame_strips

PEAK = 255.0


def psnr(mse: float) -> float:
    """Peak signal-to-noise ratio in dB of a mean squared error in pixel values 0..255."""
    return 10 * math.log10(PEAK**2 / mse) if mse > 0 else math.inf


def mean_colour_error(frames: UInt8[np.ndarray, "B T H W 3"]) -> Float[np.ndarray, " B"]:
    """Mean squared error of each window when every frame becomes its mean colour."""
    return frames.astype(np.float64).var(axis=(2, 3)).mean(axis=(1, 2))


class VAEEvaluation:
    """Figures and pictures of a `VAEModel`; see `GraftEvaluation` for the methods."""

    def __init__(self, experiment: Experiment):
        self._experiment, self._settings = experiment, experiment.config.eval
        self._reconstruct = jax.jit(experiment.model.reconstruct)

    def rounds(self, wanted: tuple[int, ...] | None) -> tuple[int, ...]:
        """None: there is no loop.

        Raises:
            ValueError: rounds were asked for.
        """
        return no_rounds(wanted, task="vae")

    def report(self, params: Params, *, rounds: tuple[int, ...]) -> dict[str, Any]:
        """PSNR in dB of every split; docs/evaluate.md describes it."""
        del rounds
        splits = self._experiment.splits
        return {split: self._figures(params, source) for split, source in splits.items()}

    def metrics(self, params: Params) -> dict[str, float]:
        """Validation PSNR, and what it has over the mean colour's, in dB."""

        def measure(source: WindowSource) -> dict[str, float]:
            figures = self._figures(params, source)
            return {"psnr": figures["psnr"]["mean"], "psnr_gain": figures["psnr_gain"]}

        return by_member(self._experiment, measure)

    def draw(
        self, params: Params, splits: dict[str, Any], prefix: pathlib.Path, *, rounds: tuple
    ) -> None:
        """PREFIX_SPLIT_frames.png: true and reconstructed frames."""
        del splits, rounds

        def measure(indices: Int[np.ndarray, " B"], batch: Batch) -> dict:
            reconstructed = np.asarray(self._reconstructed(params, batch))
            return {**batch, "reconstructed": reconstructed.round().astype(np.uint8)}

        for split, source in self._experiment.splits.items():
            found = self._map(params, source, measure, windows=PICTURED)
            draw_frame_strips(
                prefix.with_name(f"{prefix.name}_{file_name(split)}_frames.png"),
                {"true": found["frames"], "VAE": found["reconstructed"]},
                titles=window_titles(split, source, found["episode"], found["start"]),
                observed=0,
            )

    def _figures(self, params: Params, source: WindowSource) -> dict[str, Any]:
        def measure(indices: Int[np.ndarray, " B"], batch: Batch) -> dict:
            frames = batch["frames"]
            error = np.square(np.asarray(self._reconstructed(params, batch), np.float64) - frames)
            return {
                "episode": batch["episode"],
                "error": error.mean(axis=(1, 2, 3, 4)),
                "flat_error": mean_colour_error(frames),
            }

        found = self._map(params, source, measure, windows=self._settings.windows)
        episodes = found["episode"]
        error = estimate_mean(found["error"], episodes, resamples=self._settings.resamples)
        flat = psnr(float(found["flat_error"].mean()))
        return {
            "windows": len(episodes),
            "episodes": len(np.unique(episodes)),
            "psnr": _in_decibels(error).to_json(),
            "mean_colour_psnr": flat,
            "psnr_gain": psnr(error.mean) - flat,
        }

    def _map(self, params: Params, source: WindowSource, measure: Callable, *, windows: int):
        indices = spread_windows(len(source), windows)
        rows = rows_per_batch(self._settings.batch_size, params)
        return map_windows(source, indices, measure, batch_size=rows)

    def _reconstructed(self, params: Params, batch: Batch) -> jax.Array:
        return self._reconstruct(params, put_rows(batch["frames"], params))


def _in_decibels(error: Estimate) -> Estimate:
    """PSNR of the mean error; a larger error is a smaller PSNR, so the interval turns around."""
    if error.interval is None:
        return Estimate(psnr(error.mean), None)
    low, high = error.interval
    return Estimate(psnr(error.mean), (psnr(high), psnr(low)))
