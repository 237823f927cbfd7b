"""Evaluation of a canvas model: error of every region by number of rounds, beside knowing nothing.

Errors are taken with all diffused regions at pure noise, where nothing of what is predicted is in
the input, and velocity errors by timestep beside them. All numbers of rounds see the same examples,
timesteps and noise.
"""

from __future__ import annotations

import pathlib
from typing import Any

import jax
import numpy as np

from roam_jax.contracts import Params
from roam_jax.data.scene_batches import validation_batch
from roam_jax.evaluate.canvas_figures import (
    Answers,
    classification_figures,
    diffusion_figures,
    most_frequent,
    regression_figures,
)
from roam_jax.evaluate.canvas_predictor import CanvasPredictor, add_trees
from roam_jax.evaluate.placement import put_rows, rows_per_batch
from roam_jax.evaluate.rounds import choose_rounds, round_figures
from roam_jax.evaluate.windows import PURE_NOISE, timestep_buckets
from roam_jax.model.loop_options import exit_threshold
from roam_jax.tasks.balance import compare_gradients, pair_matrix
from roam_jax.tasks.canvas import SceneModel
from roam_jax.tasks.experiment import Trainable
from roam_jax.tasks.scene_build import VALIDATION
from roam_jax.viz.exits import draw_cosines, draw_exits, draw_round_measures
from roam_jax.viz.scenes import draw_examples

# Examples that are measured with eval.windows = 0: a scene has no end, so there is no "all".
EXAMPLES = 1024
# Examples of a picture.
PICTURED = 2
SHOWN = ("true", "predicted")


class CanvasEvaluation:
    """Figures and pictures of a `SceneModel`; see `GraftEvaluation` for the methods.

    There is one split, examples of a stream that no run trains on: training sees no example twice,
    so that there is nothing to remember and nothing to compare with.

    Args:
        experiment: with `config` and `model`; its `config.eval` says how much is measured.
        extrapolate: "last" allows rounds above the trained number; they reuse its last rows.

    Raises:
        ValueError: a value of `config.eval` is out of range.
    """

    def __init__(self, experiment: Trainable, *, extrapolate: str | None = None):
        config, self._model = experiment.config, experiment.model
        self._settings, self._trained_rounds = config.eval, config.loop.rounds
        self._extrapolate = extrapolate
        if self._settings.windows < 0:
            raise ValueError(
                f"eval.windows = {self._settings.windows}: expected 0 ({EXAMPLES} examples) or more"
            )
        if self._settings.batch_size < 1:
            raise ValueError(f"eval.batch_size = {self._settings.batch_size}: expected at least 1")
        model: SceneModel = self._model
        self._buckets = timestep_buckets(model.schedule.steps, self._settings.buckets)
        self._predictor = CanvasPredictor(
            model,
            levels=self._buckets,
            extrapolate=extrapolate,
            threshold=exit_threshold(self._settings.exit_threshold, halting=config.loop.halting),
        )

    def rounds(self, wanted: tuple[int, ...] | None) -> tuple[int, ...]:
        """As `choose_rounds`.

        Raises:
            ValueError: as there.
        """
        return choose_rounds(wanted, trained=self._trained_rounds, extrapolate=self._extrapolate)

    def report(self, params: Params, *, rounds: tuple[int, ...]) -> dict[str, Any]:
        """Figures of the split "val"; docs/evaluate.md describes them."""
        levels = len(self._buckets) + 1 if self._model.diffused else 1
        found = {n: self._measure(params, rounds=n, levels=levels) for n in rounds}
        first = next(iter(found.values()))
        figures = {
            "examples": len(next(iter(first["errors"].values()))),
            "regions": {
                name: {"objective": self._model.regions[name].objective}
                for name in self._model.predicted
            },
            "baselines": {name: self._baseline(name, first) for name in self._model.predicted},
            "rounds": {
                str(number): {
                    "extrapolated": number > self._trained_rounds,
                    "regions": {n: self._region(n, one) for n in self._model.predicted},
                    **round_figures(one["info"]),
                }
                for number, one in found.items()
            },
            "gradients": self._gradients(params),
        }
        return {VALIDATION: figures}

    def metrics(self, params: Params) -> dict[str, float]:
        """What training curves show, with the trained number of rounds.

        Returns:
            "REGION" its error, "REGION/accuracy" and "REGION/f1" where it is classified,
            "rounds_used/REGION" with halting, and "gradient_cosine/A|B" of each two regions.
        """
        found = self._measure(params, rounds=self._trained_rounds, levels=1)
        metrics = {name: float(errors.mean()) for name, errors in found["errors"].items()}
        for name in found["classes"]:
            figures = self._region(name, found)
            for figure in figures.keys() & {"accuracy", "f1"}:
                metrics[f"{name}/{figure}"] = figures[figure]["mean"]
        used = round_figures(found["info"]).get("rounds_used", {})
        metrics |= {f"rounds_used/{name}": value for name, value in used.items()}
        cosines = self._gradients(params)["cosines"]
        return metrics | {f"gradient_cosine/{pair}": cosine for pair, cosine in cosines.items()}

    def draw(
        self, params: Params, splits: dict[str, Any], prefix: pathlib.Path, *, rounds: tuple
    ) -> None:
        """Pictures PREFIX_*.png of a finished `report` and of examples with their predictions."""
        self.draw_figures(splits, prefix)
        number = max(rounds)
        batch = validation_batch(0, PICTURED)
        found = jax.device_get(self._predictor.examples(params, batch, rounds=number))
        shown = {
            name: np.stack([found[of][name][i] for i in range(PICTURED) for of in SHOWN])
            for name in found["true"]
        }
        titles = [
            title
            for i in range(PICTURED)
            for title in (f"example {i}", f"predicted in one step from noise, rounds = {number}")
        ]
        draw_examples(_named(prefix, "examples"), self._model.scene, shown, titles)

    def draw_figures(self, splits: dict[str, Any], prefix: pathlib.Path) -> None:
        """Pictures of a report alone: errors by rounds, measures of rounds, cosines."""
        figures = splits[VALIDATION]
        rounds = {int(number): one["regions"] for number, one in figures["rounds"].items()}
        panels = {
            name: {"error": {number: regions[name]["error"] for number, regions in rounds.items()}}
            for name in figures["regions"]
        }
        baselines = {name: one["error"]["mean"] for name, one in figures["baselines"].items()}
        draw_exits(
            _named(prefix, "exits"), panels, baselines=baselines, trained=self._trained_rounds
        )
        last = list(figures["rounds"].values())[-1]
        measures = {
            measure.replace("_", " "): {n: np.mean(v, axis=1).tolist() for n, v in regions.items()}
            for measure, regions in last["measures"].items()
        }
        draw_round_measures(_named(prefix, "rounds"), measures)
        if figures["gradients"]["cosines"]:
            names = list(figures["gradients"]["norms"])
            matrix = pair_matrix(figures["gradients"]["cosines"], names)
            draw_cosines(_named(prefix, "cosines"), matrix, names)

    def _batches(self, params: Params) -> list[dict[str, Any]]:
        """The examples, in whole batches of one size: there is no lack of examples."""
        rows = rows_per_batch(self._settings.batch_size, params)
        count = -(-(self._settings.windows or EXAMPLES) // rows)
        return [put_rows(validation_batch(i * rows, rows), params) for i in range(count)]

    def _measure(self, params: Params, *, rounds: int, levels: int) -> dict[str, Any]:
        """What the predictor finds of all examples, at noise levels 0 to `levels` - 1.

        Returns:
            Of diffused regions "errors" and "zero" (examples, levels), of others at pure noise;
            "info": measure -> region -> (batches, blocks, rounds), at pure noise.
        """
        parts = []
        for batch in self._batches(params):
            found = [
                jax.device_get(self._predictor.measure(params, batch, rounds=rounds, level=level))
                for level in range(levels)
            ]
            part = found[PURE_NOISE]
            part["info"] = jax.tree.map(lambda x: x[None], part["info"])
            for name in self._model.diffused:
                for errors in ("errors", "zero"):
                    part[errors][name] = np.stack([one[errors][name] for one in found], axis=1)
            parts.append(part)
        return jax.tree.map(lambda *rows: np.concatenate(rows), *parts)

    def _region(self, name: str, found: dict[str, Any]) -> dict[str, Any]:
        """Figures of one region."""
        resamples, errors = self._settings.resamples, found["errors"][name]
        objective = self._model.regions[name].objective
        if objective == "regression":
            return regression_figures(errors, resamples=resamples)
        if objective == "classification":
            return classification_figures(errors, self._answers(name, found), resamples=resamples)
        return diffusion_figures(
            errors, zero_errors=found["zero"][name], buckets=self._buckets, resamples=resamples
        )

    def _baseline(self, name: str, found: dict[str, Any]) -> dict[str, Any]:
        """The same figures of predicting zero, or the most frequent class."""
        if self._model.regions[name].objective == "classification":
            return most_frequent(self._answers(name, found), resamples=self._settings.resamples)
        return self._region(name, {"errors": found["zero"], "zero": found["zero"]})

    def _answers(self, name: str, found: dict[str, Any]) -> Answers:
        targets = found["targets"][name]
        stream = self._model.streams[name]
        names = stream.cell_names or tuple(map(str, range(targets.shape[1])))
        return Answers(found["classes"][name], targets, names, stream.vocabulary)

    def _gradients(self, params: Params) -> dict[str, Any]:
        """Norms and cosines of the region losses' gradients at the blocks, over all examples."""
        if len(self._model.predicted) < 2:
            return {"rounds": self._trained_rounds, "norms": {}, "cosines": {}}
        total, count = None, 0
        for batch in self._batches(params):
            more = self._predictor.gradients(params, batch, rounds=self._trained_rounds)
            total, count = more if total is None else add_trees(total, more), count + 1
        mean = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64) / count, total)
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *mean.values())
        norms, cosines = compare_gradients(list(mean), stacked)
        return {
            "rounds": self._trained_rounds,
            "norms": {name: float(value) for name, value in norms.items()},
            "cosines": {pair: float(value) for pair, value in cosines.items()},
        }


def _named(prefix: pathlib.Path, what: str) -> pathlib.Path:
    return prefix.with_name(f"{prefix.name}_{what}.png")
