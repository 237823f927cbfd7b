"""Evaluation of a grafted model: actions at pure noise, video by timestep, round measures.

Action error is taken with the future latents at t = 999, where alpha_bar is exactly 0 and nothing
of the future is left: that is how a policy is deployed. All numbers of rounds see the same windows,
timesteps and noise.
"""

from __future__ import annotations

import pathlib
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from roam_jax.cogvideox.graft import ALL
from roam_jax.contracts import Batch, Params
from roam_jax.data.windows import WindowSource
from roam_jax.evaluate.actions import ActionWindows, action_figures, baseline_predictions
from roam_jax.evaluate.pictures import draw_graft_pictures
from roam_jax.evaluate.placement import rows_per_batch
from roam_jax.evaluate.predictor import GraftPredictor
from roam_jax.evaluate.rounds import choose_rounds, round_figures, round_title
from roam_jax.evaluate.splits import by_member, own_dimensions, own_train_split
from roam_jax.evaluate.streams import STREAMS, stream_figures
from roam_jax.evaluate.video import bucket_figures
from roam_jax.evaluate.windows import map_windows, spread_windows, timestep_buckets
from roam_jax.model.loop_options import exit_threshold
from roam_jax.tasks.build import Experiment
from roam_jax.viz.buckets import draw_buckets

# Part of a report -> the predictor's velocity errors, of the model and of predicting zero.
VELOCITY_ERRORS = {
    "video": ("error", "zero_error"),
    "cameras": ("camera_error", "camera_zero_error"),
}


class GraftEvaluation:
    """Figures and pictures of a `GraftModel`.

    Args:
        experiment: data and model; its `config.eval` says how much is measured.
        extrapolate: "last" allows rounds above the trained number; they reuse its last rows.

    Raises:
        ValueError: `eval.buckets`, `eval.action_steps` or `eval.exit_threshold` is out of range.
    """

    def __init__(self, experiment: Experiment, *, extrapolate: str | None = None):
        self._experiment = experiment
        self._settings = experiment.config.eval
        self._trained_rounds = experiment.config.loop.rounds
        self._extrapolate = extrapolate
        self._predictor = GraftPredictor(
            experiment.model,
            action_steps=self._settings.action_steps,
            extrapolate=extrapolate,
            threshold=exit_threshold(
                self._settings.exit_threshold, halting=experiment.config.loop.halting
            ),
        )
        self._buckets = timestep_buckets(experiment.model.schedule.steps, self._settings.buckets)

    def rounds(self, wanted: tuple[int, ...] | None) -> tuple[int, ...]:
        """As `choose_rounds`.

        Raises:
            ValueError: as there.
        """
        trained = self._trained_rounds
        return choose_rounds(wanted, trained=trained, extrapolate=self._extrapolate)

    def report(self, params: Params, *, rounds: tuple[int, ...]) -> dict[str, Any]:
        """Figures of every split; docs/evaluate.md describes them."""
        sources = self._experiment.splits
        found = {split: self._measure(params, sources[split], rounds) for split in sources}
        return {
            split: self._figures(found[split], found[own_train_split(split)]["targets"], source)
            for split, source in sources.items()
        }

    def metrics(self, params: Params) -> dict[str, float]:
        """What a training curve shows: validation with the trained number of rounds."""
        return by_member(self._experiment, lambda source: self._val_metrics(params, source))

    def _val_metrics(self, params: Params, source: WindowSource) -> dict[str, float]:
        rounds = self._trained_rounds
        found = self._measure(params, source, (rounds,))
        figures = self._round_figures(found, found["rounds"][rounds], source)
        chunk, first = (figures["actions"][name] for name in ("chunk", "first"))
        metrics = {"action_mse": chunk["mse"]["mean"], "first_action_mse": first["mse"]["mean"]}
        if "gripper_accuracy" in chunk:
            metrics["gripper_accuracy"] = chunk["gripper_accuracy"]
        if "rounds_used" in figures:
            metrics["rounds_used"] = figures["rounds_used"][ALL]
        return {**metrics, "diffusion": figures["video"]["mse"]["mean"]}

    def draw(
        self, params: Params, splits: dict[str, Any], prefix: pathlib.Path, *, rounds: tuple
    ) -> None:
        """Pictures PREFIX_*.png of the windows and of a finished `report`."""
        panels = {
            split: {round_title(n, r): r["video"]["buckets"] for n, r in found["rounds"].items()}
            for split, found in splits.items()
        }
        draw_buckets(prefix.with_name(f"{prefix.name}_video.png"), panels)
        draw_graft_pictures(
            self._predictor, self._experiment, params, prefix=prefix, rounds=max(rounds)
        )

    def _measure(self, params: Params, source: WindowSource, rounds: tuple[int, ...]) -> dict:
        """Per-window predictions and errors in the source's dimensions, by number of rounds."""

        def measure(indices: Int[np.ndarray, " B"], batch: Batch) -> dict:
            windows = self._predictor.encode(params, batch)
            return {
                "episodes": batch["episode"],
                "past": own_dimensions(batch["past_actions"], source, "actions"),
                "targets": own_dimensions(batch["action_chunk"], source, "actions"),
                **{
                    field: own_dimensions(batch[field], source, stream)
                    for stream, fields in STREAMS.items()
                    for field in fields
                },
                "rounds": {
                    r: self._measure_rounds(params, windows, indices, source, r) for r in rounds
                },
            }

        indices = spread_windows(len(source), self._settings.windows)
        rows = rows_per_batch(self._settings.batch_size, params)
        return map_windows(source, indices, measure, batch_size=rows)

    def _measure_rounds(self, params, windows, indices, source, rounds: int) -> dict:
        deployed = self._predictor.deploy(params, windows, indices, rounds=rounds)
        buckets = [
            self._predictor.predict(
                params,
                windows,
                indices,
                timesteps=(first, end),
                stream=1 + number,
                rounds=rounds,
            )
            for number, (first, end) in enumerate(self._buckets)
        ]
        return {
            "actions": own_dimensions(deployed["actions"], source, "actions"),
            "streams": {
                name: own_dimensions(deployed[name], source, name)
                for name in STREAMS
                if name in deployed
            },
            "measures": deployed["measures"],
            "errors": {
                part: [jnp.stack([bucket[name] for bucket in buckets], axis=1) for name in names]
                for part, names in VELOCITY_ERRORS.items()
                if names[0] in buckets[0]
            },
        }

    def _figures(
        self, found: dict, train_targets: Float[np.ndarray, "train P A"], source: WindowSource
    ) -> dict:
        windows = _action_windows(found)
        spec = source.statistics.actions.spec
        length = next(iter(found["rounds"].values()))["actions"].shape[1]
        baselines = baseline_predictions(train_targets, windows, length=length)
        return {
            "windows": len(windows.episodes),
            "episodes": len(np.unique(windows.episodes)),
            "action_units": dict(zip(spec.names, spec.units, strict=True)),
            "baselines": {
                n: self._action_figures(p, windows, source) for n, p in baselines.items()
            },
            "rounds": {
                str(number): {
                    "extrapolated": number > self._trained_rounds,
                    **self._round_figures(found, one, source),
                }
                for number, one in found["rounds"].items()
            },
        }

    def _round_figures(self, found: dict, one: dict, source: WindowSource) -> dict:
        windows = _action_windows(found)
        return {
            "actions": self._action_figures(one["actions"], windows, source),
            **{
                part: bucket_figures(
                    *one["errors"][part],
                    buckets=self._buckets,
                    episodes=windows.episodes,
                    resamples=self._settings.resamples,
                )
                for part in VELOCITY_ERRORS
                if part in one["errors"]
            },
            **round_figures(one["measures"]),
            "streams": {
                name: stream_figures(
                    predicted,
                    *(found[field] for field in STREAMS[name]),
                    episodes=windows.episodes,
                    resamples=self._settings.resamples,
                )
                for name, predicted in one["streams"].items()
            },
        }

    def _action_figures(
        self, predicted: np.ndarray, windows: ActionWindows, source: WindowSource
    ) -> dict:
        return action_figures(
            predicted,
            windows,
            statistics=source.statistics.actions,
            resamples=self._settings.resamples,
        )


def _action_windows(found: dict) -> ActionWindows:
    return ActionWindows(found["targets"], found["past"], found["episodes"])
