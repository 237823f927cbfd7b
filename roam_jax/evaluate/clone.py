"""Evaluation of a cloned policy on demonstrations: error of its action chunks by body and rounds.

What counts is what the policy does in closed loop (`closed_loop.py`); this error tells how well the
expert is known where the expert goes, and on the train split what was memorised.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from roam_jax.contracts import Params
from roam_jax.data.demonstration_batches import ACTION, MASK, Chunks
from roam_jax.evaluate.bootstrap import estimate_mean
from roam_jax.evaluate.placement import put_rows, rows_per_batch
from roam_jax.evaluate.rounds import choose_rounds, round_figures
from roam_jax.evaluate.windows import SEED
from roam_jax.model.loop_options import exit_threshold
from roam_jax.tasks.clone_build import TRAIN, VALIDATION, CloneExperiment
from roam_jax.viz.exits import draw_exits

MEAN = "training_mean"


class CloneEvaluation:
    """Figures and pictures of a `CloneModel`; see `run.TaskEvaluation` for the methods.

    Args:
        experiment: with `config`, `model` and `splits`; `config.eval` says how much is measured.
        extrapolate: "last" allows rounds above the trained number.

    Raises:
        ValueError: a value of `config.eval` is out of range.
    """

    def __init__(self, experiment: CloneExperiment, *, extrapolate: str | None = None):
        config, self._experiment = experiment.config, experiment
        self._settings, self._trained = config.eval, config.loop.rounds
        self._extrapolate = extrapolate
        if self._settings.batch_size < 1:
            raise ValueError(f"eval.batch_size = {self._settings.batch_size}: expected at least 1")
        measured_steps(1, self._settings.windows)
        threshold = exit_threshold(self._settings.exit_threshold, halting=config.loop.halting)
        options = {"extrapolate": extrapolate, "threshold": threshold}

        def measure(params: Params, batch: dict[str, Array], *, body: str, rounds: int):
            seen = {name: rows for name, rows in batch.items() if name not in (ACTION, MASK)}
            told, info = experiment.model.predict(params, body, seen, rounds=rounds, **options)
            return chunk_errors(told, batch[ACTION], batch[MASK]), info

        self._measure = jax.jit(measure, static_argnames=("body", "rounds"))

    def rounds(self, wanted: tuple[int, ...] | None) -> tuple[int, ...]:
        """As `choose_rounds`.

        Raises:
            ValueError: as there.
        """
        return choose_rounds(wanted, trained=self._trained, extrapolate=self._extrapolate)

    def report(self, params: Params, *, rounds: tuple[int, ...]) -> dict[str, Any]:
        """Figures of the splits "train" and "val"; docs/rollouts.md describes them."""
        return {
            split: {
                "bodies": {
                    body: self._figures(params, split, body, rounds)
                    for body in self._experiment.specs
                }
            }
            for split in self._experiment.splits
        }

    def metrics(self, params: Params) -> dict[str, float]:
        """What training curves show: errors of the validation split with the trained rounds.

        Returns:
            "action_mse" over all bodies, "action_mse/BODY", and with halting "rounds_used/BODY".
        """
        found: dict[str, float] = {}
        for body in self._experiment.specs:
            errors, info, _ = self._errors(params, VALIDATION, body, self._trained)
            found[f"action_mse/{body}"] = float(errors["mse"].mean())
            if used := round_figures(info).get("rounds_used"):
                found[f"rounds_used/{body}"] = used["all"]
        errors = [value for name, value in found.items() if name.startswith("action_mse/")]
        return {"action_mse": float(np.mean(errors)), **found}

    def draw(
        self, params: Params, splits: dict[str, Any], prefix: pathlib.Path, *, rounds: tuple
    ) -> None:
        """As `draw_figures`; parameters and rounds are not read."""
        del params, rounds
        self.draw_figures(splits, prefix)

    def draw_figures(self, splits: Mapping[str, Any], prefix: pathlib.Path) -> None:
        """PREFIX_exits.png: each body's error by number of rounds on both splits."""
        panels: dict[str, dict[str, dict[int, Any]]] = {}
        for split in self._experiment.splits:
            for body, figures in splits[split]["bodies"].items():
                by_rounds = {int(n): one["actions"]["mse"] for n, one in figures["rounds"].items()}
                panels.setdefault(body, {})[split] = by_rounds
        validation = splits[VALIDATION]["bodies"]
        baselines = {
            body: one["baselines"][MEAN]["mse"]["mean"] for body, one in validation.items()
        }
        path = prefix.with_name(f"{prefix.name}_exits.png")
        draw_exits(path, panels, baselines=baselines, trained=self._trained, ylabel="action MSE")

    def _figures(
        self, params: Params, split: str, body: str, rounds: tuple[int, ...]
    ) -> dict[str, Any]:
        by_rounds, episodes = {}, np.zeros(0)
        for number in rounds:
            errors, info, episodes = self._errors(params, split, body, number)
            by_rounds[str(number)] = {
                "extrapolated": number > self._trained,
                "actions": self._estimates(errors, body, episodes),
                **round_figures(info),
            }
        return {
            "windows": len(episodes),
            "episodes": len(np.unique(episodes)),
            "rounds": by_rounds,
            "baselines": {MEAN: self._baseline(split, body)},
        }

    def _errors(
        self, params: Params, split: str, body: str, rounds: int
    ) -> tuple[dict[str, np.ndarray], dict, np.ndarray]:
        """Errors with a row for each window, measures with one for each batch, and episodes."""
        chunks, indices = self._chunks(split, body)
        size = rows_per_batch(min(self._settings.batch_size, len(indices)), params)
        parts, infos = [], []
        for begin in range(0, len(indices), size):
            rows = indices[np.minimum(np.arange(begin, begin + size), len(indices) - 1)]
            batch = put_rows(chunks[rows], params)
            found, info = self._measure(params, batch, body=body, rounds=rounds)
            kept = min(size, len(indices) - begin)
            parts.append(jax.tree.map(lambda leaf, kept=kept: np.asarray(leaf)[:kept], found))
            infos.append(jax.tree.map(np.asarray, info))
        errors = jax.tree.map(lambda *rows: np.concatenate(rows), *parts)
        info = jax.tree.map(lambda *rows: np.stack(rows), *infos)
        return errors, info, np.asarray(chunks.recorded.episode)[indices]

    def _chunks(self, split: str, body: str) -> tuple[Chunks, np.ndarray]:
        """A body's demonstrations, and which rows of them are measured."""
        recorded = self._experiment.splits[split].bodies[body]
        chunks = Chunks(recorded, chunk=self._experiment.config.data.chunk)
        return chunks, measured_steps(len(chunks), self._settings.windows)

    def _baseline(self, split: str, body: str) -> dict[str, Any]:
        """The same figures of the mean action of the whole train split."""
        mean = self._experiment.splits[TRAIN].bodies[body].actions.mean(axis=0)
        chunks, indices = self._chunks(split, body)
        batch = chunks[indices]
        told = np.broadcast_to(mean, batch[ACTION].shape)
        errors = jax.tree.map(np.asarray, chunk_errors(told, batch[ACTION], batch[MASK]))
        return self._estimates(errors, body, np.asarray(chunks.recorded.episode)[indices])

    def _estimates(
        self, errors: Mapping[str, np.ndarray], body: str, episodes: np.ndarray
    ) -> dict[str, Any]:
        resamples = self._settings.resamples
        names = self._experiment.specs[body].morphology.joint_names
        means = errors["absolute"].mean(axis=0, dtype=np.float64)
        return {
            **{
                name: estimate_mean(errors[name], episodes, resamples=resamples).to_json()
                for name in ("mse", "first_mse")
            },
            "absolute_error": dict(zip(names, means.tolist(), strict=True)),
        }


def measured_steps(total: int, wanted: int) -> Int[np.ndarray, " windows"]:
    """Steps of a split that are measured, always the same ones, in order.

    Drawn, not spread evenly: episodes are equally long, so that equal distances would meet some of
    their steps, such as the first, far too often.

    Args:
        total: steps of the split.
        wanted: eval.windows; 0 = all.

    Raises:
        ValueError: `wanted` is negative.
    """
    if wanted < 0:
        raise ValueError(f"eval.windows = {wanted}: expected 0 (all) or more")
    if not 0 < wanted < total:
        return np.arange(total)
    return np.sort(np.random.default_rng(SEED).choice(total, wanted, replace=False))


def chunk_errors(
    told: Float[Array, "B P J"] | Float[np.ndarray, "B P J"],
    actions: Float[Array, "B P J"] | Float[np.ndarray, "B P J"],
    mask: Bool[Array, "B P"] | Bool[np.ndarray, "B P"],
) -> dict[str, Any]:
    """Errors of each row over the actions that its episode still has.

    Args:
        told: predicted.
        actions: the expert's.
        mask: which of them there are; always the first.

    Returns:
        {"mse", "first_mse" (B,) squared, of the chunk and of its first action, "absolute" (B, J)}.
    """
    away = told - actions
    weights = mask[..., None] / mask.sum(axis=1)[:, None, None]
    return {
        "mse": (weights * away**2).sum(axis=1).mean(axis=-1),
        "first_mse": (away[:, 0] ** 2).mean(axis=-1),
        "absolute": (weights * abs(away)).sum(axis=1),
    }
