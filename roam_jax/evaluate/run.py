"""Evaluation of a run: from its workdir or model directory alone to a report and pictures."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import ml_collections
from absl import logging

from roam_jax.contracts import Params
from roam_jax.evaluate.canvas import CanvasEvaluation
from roam_jax.evaluate.clone import CloneEvaluation
from roam_jax.evaluate.continuation import ContinuationEvaluation
from roam_jax.evaluate.graft import GraftEvaluation
from roam_jax.evaluate.placement import evaluation_mesh, on_each_host
from roam_jax.evaluate.pretraining import PretrainingEvaluation
from roam_jax.evaluate.report import format_report
from roam_jax.evaluate.report_rollout import ROLLOUT
from roam_jax.evaluate.saved import Saved, read_saved
from roam_jax.evaluate.stages import make_rollout
from roam_jax.evaluate.vae import VAEEvaluation
from roam_jax.files import write_atomically
from roam_jax.spelling import check_choice
from roam_jax.tasks.experiment import Trainable
from roam_jax.train.workdir import plain

# What may be measured: actions, velocity errors and round measures; sampled continuations; and
# episodes that the policy plays.
METRICS = ACTIONS, VIDEO, ROLLOUTS = ("actions", "video", ROLLOUT)
# How reports and pictures without the first are called.
ENDINGS = {VIDEO: "continuation", ROLLOUTS: ROLLOUT}

__all__ = ["evaluate_experiment", "evaluate_workdir", "format_report", "make_evaluate_hook"]


def metric_of(name: str) -> str:
    """Which of `METRICS` a picture or video is of, by the name of its file."""
    return next((metric for metric, ending in ENDINGS.items() if f"_{ending}" in name), ACTIONS)


@runtime_checkable
class Evaluation(Protocol):
    """A part of a report."""

    def rounds(self, wanted: tuple[int, ...] | None) -> tuple[int, ...]:
        """The numbers of rounds that are measured; None = the usual ones."""

    def report(self, params: Params, *, rounds: tuple[int, ...]) -> dict[str, Any]:
        """split -> figures."""

    def draw(
        self, params: Params, splits: dict[str, Any], prefix: pathlib.Path, *, rounds: tuple
    ) -> None:
        """Pictures PREFIX_*.png of the windows and of a report's figures."""


@runtime_checkable
class TaskEvaluation(Evaluation, Protocol):
    """What is measured of one kind of task, in training and after it."""

    def metrics(self, params: Params) -> dict[str, float]:
        """A few figures of the validation split."""


def make_evaluation(experiment: Trainable, *, extrapolate: str | None = None) -> TaskEvaluation:
    """The evaluation of the experiment's kind of task.

    Raises:
        ValueError: `config.eval` is out of range, or `extrapolate` for a task without a loop.
    """
    if (resamples := experiment.config.eval.resamples) < 1:
        raise ValueError(f"eval.resamples = {resamples}: expected at least 1")
    task = experiment.config.train.task
    looped = {"graft": GraftEvaluation, "canvas": CanvasEvaluation, "clone": CloneEvaluation}
    if task in looped:
        return looped[task](experiment, extrapolate=extrapolate)
    if extrapolate is not None:
        raise ValueError(
            f"extrapolate = {extrapolate!r}: a run of train.task = {task!r} has no loop; expected "
            "none"
        )
    return {"video": PretrainingEvaluation, "vae": VAEEvaluation}[task](experiment)


def make_parts(
    experiment: Trainable, metrics: Sequence[str], *, extrapolate: str | None = None
) -> tuple[Evaluation, ...]:
    """The evaluations that make up a report.

    Args:
        experiment: data and model.
        metrics: names of `METRICS`.
        extrapolate: as for `make_evaluation`.

    Raises:
        ValueError: an unknown name or none, continuations or episodes of a task that has none, or
            as `make_evaluation`.
    """
    task = experiment.config.train.task
    check_metrics(metrics)
    if VIDEO in metrics and task != "graft":
        raise ValueError(
            f"metrics = {','.join(metrics)}: a run of train.task = {task!r} continues no video "
            f"together with actions; expected {ACTIONS!r}, its own figures"
        )
    parts = {
        ACTIONS: make_evaluation,
        VIDEO: ContinuationEvaluation,
        ROLLOUTS: make_rollout,
    }
    return tuple(parts[n](experiment, extrapolate=extrapolate) for n in METRICS if n in metrics)


def check_metrics(metrics: Sequence[str]) -> None:
    """Refuses names that are none of `METRICS`.

    Raises:
        ValueError: an unknown name, or none at all.
    """
    for name in metrics or ("",):
        check_choice("metrics", name, METRICS)


def make_evaluate_hook(experiment: Trainable) -> Callable[[Params, int], dict[str, float]]:
    """`evaluate` for `train.loop.run`: figures of the validation split during training.

    Returns:
        A function of (all parameters, step). Of several processes all call it, see
        `on_each_host`. For task "graft" it gives "action_mse",
        "first_action_mse", "gripper_accuracy" (where there is a gripper) and "diffusion" with the
        trained number of rounds; for "video" "diffusion_continued" and "diffusion_generated" where
        they are trained; for "vae" "psnr" and "psnr_gain" in dB. Figures of a member of a mixture
        are "NAME/action_mse" and so on. For "canvas" and "clone" see `metrics` of
        `CanvasEvaluation` and `CloneEvaluation`.

    Raises:
        ValueError: `config.eval` is out of range.
    """
    evaluation = make_evaluation(experiment)
    return lambda params, step: on_each_host(
        evaluation.metrics, params, rules=experiment.rules, what=f"evaluation of step {step}"
    )


def evaluate_experiment(
    experiment: Trainable,
    params: Params,
    *,
    rounds: tuple[int, ...] | None = None,
    extrapolate: str | None = None,
    metrics: Sequence[str] = (ACTIONS,),
) -> dict[str, Any]:
    """A report on every split, ready for JSON; docs/evaluate.md describes its layout.

    Args:
        experiment: data and model.
        params: the whole tree.
        rounds: numbers of rounds to measure; None = 1 to the trained one.
        extrapolate: "last" allows rounds above the trained number; they reuse its last rows.
        metrics: names of `METRICS`.

    Raises:
        ValueError: rounds above the trained number without `extrapolate`, metrics that the task
            does not have, or `config.eval` out of range.
    """
    measured = Measured.of(experiment, rounds=rounds, extrapolate=extrapolate, metrics=metrics)
    return measured.report(params)


@dataclasses.dataclass(frozen=True)
class Measured:
    """What is to be measured of an experiment, for parameters of any step or seed.

    Args:
        experiment: data and model.
        parts: evaluations that make up a report.
        rounds: numbers of rounds that are measured.
        extrapolate: as for `make_evaluation`.
        metrics: names of `METRICS`.
    """

    experiment: Trainable
    parts: tuple[Evaluation, ...]
    rounds: tuple[int, ...]
    extrapolate: str | None
    metrics: tuple[str, ...]

    @classmethod
    def of(
        cls,
        experiment: Trainable,
        *,
        rounds: tuple[int, ...] | None,
        extrapolate: str | None,
        metrics: Sequence[str],
    ) -> Measured:
        """Prepares an evaluation.

        Raises:
            ValueError: as `evaluate_experiment`.
        """
        parts = make_parts(experiment, metrics, extrapolate=extrapolate)
        return cls(experiment, parts, parts[0].rounds(rounds), extrapolate, tuple(metrics))

    def report(self, params: Params) -> dict[str, Any]:
        """A report on every split."""
        config, splits = self.experiment.config, {}
        for part in self.parts:
            for split, figures in part.report(params, rounds=self.rounds).items():
                splits.setdefault(split, {}).update(figures)
        return {
            "task": config.train.task,
            "rounds": list(self.rounds),
            "trained_rounds": config.loop.rounds,
            "extrapolate": self.extrapolate,
            "metrics": list(self.metrics),
            "eval": plain(config.eval),
            "splits": splits,
        }

    @property
    def ending(self) -> str:
        """How a report's name ends: "" with actions, else such as "_rollout"."""
        if ACTIONS in self.metrics:
            return ""
        return "".join(f"_{ending}" for name, ending in ENDINGS.items() if name in self.metrics)

    def write(self, saved: Saved, *, step: int | None) -> tuple[pathlib.Path, dict[str, Any]]:
        """Evaluates a checkpoint of a run with this experiment's data and model.

        Returns:
            Path of the report, written after the pictures, and the report.

        Raises:
            FileNotFoundError: no such checkpoint.
        """
        experiment, config = self.experiment, saved.config
        mesh = evaluation_mesh(config.mesh)
        params, step = saved.params(experiment.task, rules=experiment.rules, mesh=mesh, step=step)
        logging.info("evaluating step %d of %s", step, saved.path)
        report = {"step": step, **self.report(params), "overrides": saved.changed}
        if _reads_data(config, self.metrics):
            report |= _origin(experiment)
        folder = saved.path / "eval"
        folder.mkdir(exist_ok=True)
        for part in self.parts:
            part.draw(params, report["splits"], folder / str(step), rounds=self.rounds)
        path = folder / f"{step}{self.ending}.json"
        write_atomically(path, json.dumps(report, indent=1) + "\n")
        return path, report


def evaluate_workdir(
    workdir: str | pathlib.Path,
    *,
    step: int | None = None,
    rounds: tuple[int, ...] | None = None,
    extrapolate: str | None = None,
    metrics: Sequence[str] = (ACTIONS,),
    overrides: Callable[[ml_collections.ConfigDict], None] | None = None,
) -> pathlib.Path:
    """Evaluates one checkpoint of a run.

    Args:
        workdir: folder of the run, or a model directory.
        step: which checkpoint; None = the latest.
        rounds: numbers of rounds to measure; None = 1 to the trained one.
        extrapolate: "last" allows rounds above the trained number; they reuse its last rows.
        metrics: names of `METRICS`; the report holds what is named, and nothing of older reports.
            Continuations or episodes alone have a report of their own, so that action figures stay.
        overrides: as for `read_saved`.

    Returns:
        WORKDIR/eval/STEP.json, of "video" alone STEP_continuation.json and of "rollout" alone
        STEP_rollout.json, written last; pictures WORKDIR/eval/STEP_*.png lie beside it.

    Raises:
        FileNotFoundError: no workdir, no such checkpoint, or data or weights are not where the
            config says.
        ValueError: overrides or rounds that the run does not allow; data or frozen weights that
            are not those it was trained with.
    """
    saved = read_saved(workdir, overrides=overrides)
    experiment = open_experiment(saved, metrics)
    measured = Measured.of(experiment, rounds=rounds, extrapolate=extrapolate, metrics=metrics)
    return measured.write(saved, step=step)[0]


def open_experiment(saved: Saved, metrics: Sequence[str]) -> Trainable:
    """The run's data and model; of a cloned policy that only plays, the model alone.

    Raises:
        FileNotFoundError, ValueError: as `Saved.experiment`; or as `check_metrics`, before
            anything is opened.
    """
    check_metrics(metrics)
    return saved.experiment() if _reads_data(saved.config, metrics) else saved.bodies()


def _reads_data(config: ml_collections.ConfigDict, metrics: Sequence[str]) -> bool:
    return config.train.task != "clone" or tuple(metrics) != (ROLLOUTS,)


def _origin(experiment: Trainable) -> dict[str, Any]:
    data = {split: source.describe() for split, source in experiment.splits.items()}
    return {"data": data, "fingerprints": dict(experiment.fingerprints)}
