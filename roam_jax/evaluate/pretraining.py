"""Evaluation of a backbone under pretraining: velocity error by timestep, nothing else.

Two settings, where both were trained: `continued`, the frames before `t_current` enter clean, as in
the graft; and `generated`, all frames are noised and counted.
"""

from __future__ import annotations

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from roam_jax.contracts import Batch, Params
from roam_jax.data.windows import WindowSource
from roam_jax.evaluate.placement import put_rows, rows_per_batch
from roam_jax.evaluate.splits import by_member
from roam_jax.evaluate.video import bucket_figures
from roam_jax.evaluate.windows import map_windows, spread_windows, timestep_buckets, window_noise
from roam_jax.tasks.build import Experiment
from roam_jax.viz.buckets import draw_buckets

CONTINUED, GENERATED = "continued", "generated"


class PretrainingEvaluation:
    """Figures and pictures of a `VideoModel`; see `GraftEvaluation` for the methods."""

    def __init__(self, experiment: Experiment):
        self._experiment, self._model = experiment, experiment.model
        self._settings = experiment.config.eval
        self._buckets = timestep_buckets(self._model.schedule.steps, self._settings.buckets)
        share = self._model.observed_fraction
        self._modes = tuple(
            mode for mode, trained in ((CONTINUED, share > 0), (GENERATED, share < 1)) if trained
        )
        backbone, time = self._model.backbone, self._model.time
        self._encode = jax.jit(lambda vae, frames: backbone.encode(vae, frames, time))
        self._errors = jax.jit(self._model.errors)

    def rounds(self, wanted: tuple[int, ...] | None) -> tuple[int, ...]:
        """None: there is no loop.

        Raises:
            ValueError: rounds were asked for.
        """
        return no_rounds(wanted, task="video")

    def report(self, params: Params, *, rounds: tuple[int, ...]) -> dict[str, Any]:
        """Velocity error of every split by setting and timestep bucket."""
        del rounds
        splits = self._experiment.splits
        return {split: self._figures(params, source) for split, source in splits.items()}

    def metrics(self, params: Params) -> dict[str, float]:
        """Validation error of each setting, over all buckets."""

        def measure(source: WindowSource) -> dict[str, float]:
            video = self._figures(params, source)["video"]
            return {f"diffusion_{mode}": found["mse"]["mean"] for mode, found in video.items()}

        return by_member(self._experiment, measure)

    def draw(
        self, params: Params, splits: dict[str, Any], prefix: pathlib.Path, *, rounds: tuple
    ) -> None:
        """PREFIX_video.png."""
        del params, rounds
        panels = {
            split: {mode: figures["buckets"] for mode, figures in found["video"].items()}
            for split, found in splits.items()
        }
        draw_buckets(prefix.with_name(f"{prefix.name}_video.png"), panels)

    def _figures(self, params: Params, source: WindowSource) -> dict[str, Any]:
        indices = spread_windows(len(source), self._settings.windows)
        rows = rows_per_batch(self._settings.batch_size, params)

        def measure(indices: Int[np.ndarray, " B"], batch: Batch) -> dict:
            windows = self._encoded(params, batch)
            errors = {
                mode: self._mode_errors(params, windows, indices, mode) for mode in self._modes
            }
            return {"episodes": batch["episode"], "errors": errors}

        found = map_windows(source, indices, measure, batch_size=rows)
        episodes = found["episodes"]
        video = {
            mode: bucket_figures(
                errors,
                zero_errors,
                buckets=self._buckets,
                episodes=episodes,
                resamples=self._settings.resamples,
            )
            for mode, (errors, zero_errors) in found["errors"].items()
        }
        return {
            "windows": len(episodes),
            "episodes": len(np.unique(episodes)),
            "video": video,
        }

    def _encoded(self, params: Params, batch: Batch) -> Batch:
        frames, text = put_rows((batch["frames"], batch["text"]), params)
        observed, target = self._encode(params["vae"], frames)
        return Batch(observed_latents=observed, target_latents=target, text=text)

    def _mode_errors(self, params, windows, indices, mode: str) -> tuple[jax.Array, jax.Array]:
        """Errors of the model and of predicting zero, each (B, buckets)."""
        shape = (self._model.time.latents, *self._model.backbone.latent_shape)
        observed = np.full(len(indices), mode == CONTINUED)
        found = []
        for number, (first, end) in enumerate(self._buckets):
            drawn = window_noise(indices, 1 + number, first, end, shape=shape)
            timesteps, noise, seen = put_rows((*drawn, observed), params)
            found.append(
                self._errors(params, windows, timesteps=timesteps, noise=noise, observed=seen)
            )
        errors, zero_errors = zip(*found, strict=True)
        return jnp.stack(errors, axis=1), jnp.stack(zero_errors, axis=1)


def no_rounds(wanted: tuple[int, ...] | None, *, task: str) -> tuple[int, ...]:
    """No rounds, for tasks without a loop.

    Raises:
        ValueError: rounds were asked for.
    """
    if wanted:
        raise ValueError(
            f"rounds = {','.join(map(str, wanted))}: a run of train.task = {task!r} has no loop; "
            "expected none"
        )
    return ()
