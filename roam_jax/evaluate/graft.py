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

from roam_jax.contracts import Batch, Params
from roam_jax.data.windows import WindowSource
from roam_jax.evaluate.actions import ActionWindows, action_figures, baseline_predictions
from roam_jax.evaluate.pictures import draw_graft_pictures
from roam_jax.evaluate.placement import rows_per_batch
from roam_jax.evaluate.predictor import GraftPredictor
from roam_jax.evaluate.rounds import round_figures, round_title
from roam_jax.evaluate.streams import STREAMS, stream_figures
from roam_jax.evaluate.video import bucket_figures
from roam_jax.evaluate.windows import map_windows, spread_windows, timestep_buckets
from roam_jax.model.looped import check_rounds
from roam_jax.tasks.build import Experiment
from roam_jax.viz.buckets import draw_buckets


class GraftEvaluation:
    """Figures and pictures of a `GraftModel`.

    Args:
        experiment: data and model; its `config.eval` says how much is measured.
        extrapolate: "last" allows rounds above the trained number; they reuse its last rows.

    Raises:
        ValueError: `eval.buckets` or `eval.action_steps` is out of range.
    """

    def __init__(self, experiment: Experiment, *, extrapolate: str | None = None):
        self._experiment = experiment
        self._settings = experiment.config.eval
        self._trained_rounds = experiment.config.loop.rounds
        self._extrapolate = extrapolate
        self._predictor = GraftPredictor(
            experiment.model, action_steps=self._settings.action_steps, extrapolate=extrapolate
        )
        self._buckets = timestep_buckets(experiment.model.schedule.steps, self._settings.buckets)

    def rounds(self, wanted: tuple[int, ...] | None) -> tuple[int, ...]:
        """The numbers of rounds to measure, in order; none given = 1 to the trained number.

        Raises:
            ValueError: a number that the weights were not trained for, without `extrapolate`; or
                no such extrapolation.
        """
        trained = self._trained_rounds
        wanted = wanted or tuple(range(1, trained + 1))
        for number in wanted:
            check_rounds(number, trained=trained, extrapolate=self._extrapolate)
        return tuple(sorted(set(wanted)))

    def report(self, params: Params, *, rounds: tuple[int, ...]) -> dict[str, Any]:
        """Figures of both splits; docs/evaluate.md describes them."""
        train, val = self._experiment.train, self._experiment.val
        found = {"train": self._measure(params, train, rounds)}
        found["val"] = self._measure(params, val, rounds)
        train_targets = found["train"]["targets"]
        return {split: self._figures(found[split], train_targets) for split in found}

    def metrics(self, params: Params) -> dict[str, float]:
        """What a training curve shows: validation with the trained number of rounds."""
        rounds = self._trained_rounds
        found = self._measure(params, self._experiment.val, (rounds,))
        figures = self._round_figures(found, found["rounds"][rounds])
        actions = figures["actions"]
        return {
            "action_mse": actions["chunk"]["mse"]["mean"],
            "first_action_mse": actions["first"]["mse"]["mean"],
            "gripper_accuracy": actions["chunk"]["gripper_accuracy"],
            "diffusion": figures["video"]["mse"]["mean"],
        }

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
        """Per-window predictions and errors, for each number of rounds."""

        def measure(indices: Int[np.ndarray, " B"], batch: Batch) -> dict:
            windows = self._predictor.encode(params, batch)
            return {
                "episodes": batch["episode"],
                "past": batch["past_actions"],
                "targets": batch["action_chunk"],
                **{name: batch[name] for fields in STREAMS.values() for name in fields},
                "rounds": {r: self._measure_rounds(params, windows, indices, r) for r in rounds},
            }

        indices = spread_windows(len(source), self._settings.windows)
        rows = rows_per_batch(self._settings.batch_size, params)
        return map_windows(source, indices, measure, batch_size=rows)

    def _measure_rounds(self, params, windows, indices, rounds: int) -> dict:
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
            "actions": deployed["actions"],
            "streams": {name: deployed[name] for name in STREAMS if name in deployed},
            "measures": deployed["measures"],
            "errors": jnp.stack([bucket["error"] for bucket in buckets], axis=1),
            "zero_errors": jnp.stack([bucket["zero_error"] for bucket in buckets], axis=1),
        }

    def _figures(self, found: dict, train_targets: Float[np.ndarray, "train P 7"]) -> dict:
        windows = _action_windows(found)
        length = next(iter(found["rounds"].values()))["actions"].shape[1]
        baselines = baseline_predictions(train_targets, windows, length=length)
        return {
            "windows": len(windows.episodes),
            "episodes": len(np.unique(windows.episodes)),
            "baselines": {n: self._action_figures(p, windows) for n, p in baselines.items()},
            "rounds": {
                str(number): {
                    "extrapolated": number > self._trained_rounds,
                    **self._round_figures(found, one),
                }
                for number, one in found["rounds"].items()
            },
        }

    def _round_figures(self, found: dict, one: dict) -> dict:
        windows = _action_windows(found)
        return {
            "actions": self._action_figures(one["actions"], windows),
            "video": bucket_figures(
                one["errors"],
                one["zero_errors"],
                buckets=self._buckets,
                episodes=windows.episodes,
                resamples=self._settings.resamples,
            ),
            "measures": round_figures(one["measures"]),
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

    def _action_figures(self, predicted: np.ndarray, windows: ActionWindows) -> dict:
        return action_figures(
            predicted,
            windows,
            statistics=self._experiment.statistics.actions,
            resamples=self._settings.resamples,
        )


def _action_windows(found: dict) -> ActionWindows:
    return ActionWindows(found["targets"], found["past"], found["episodes"])
