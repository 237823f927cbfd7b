"""Evaluation of a run: from its workdir alone to a report and pictures.

The config comes from the workdir; frozen weights and data are looked up where it says (or where an
override says) and must be the ones that the run was trained with.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol, runtime_checkable

import ml_collections
from absl import logging

from roam_jax.contracts import Params
from roam_jax.data.members import Member
from roam_jax.data.statistics import RobotStatistics
from roam_jax.evaluate.graft import GraftEvaluation
from roam_jax.evaluate.pretraining import PretrainingEvaluation
from roam_jax.evaluate.report import format_report
from roam_jax.evaluate.vae import VAEEvaluation
from roam_jax.files import write_atomically
from roam_jax.tasks.build import Experiment, build
from roam_jax.tasks.datasets import saved_statistics
from roam_jax.train.load import load_params
from roam_jax.train.sharding import make_mesh
from roam_jax.train.workdir import Workdir, differences, plain

__all__ = ["evaluate_experiment", "evaluate_workdir", "format_report", "make_evaluate_hook"]

# Keys by which episodes are chosen, and how they are read.
DATA_KEYS = ("data.root", "data.mixture", "data.declaration")
# What may differ from the run's own config: where things are, how much is measured, on what.
FREE_SECTIONS = ("eval.", "mesh.")
FREE_KEYS = ("backbone.path", *DATA_KEYS, "data.text", "data.encode_once", "data.workers")


@runtime_checkable
class Evaluation(Protocol):
    """What is measured of one kind of task."""

    def rounds(self, wanted: tuple[int, ...] | None) -> tuple[int, ...]:
        """The numbers of rounds that are measured; None = the usual ones."""

    def report(self, params: Params, *, rounds: tuple[int, ...]) -> dict[str, Any]:
        """split -> figures."""

    def metrics(self, params: Params) -> dict[str, float]:
        """A few figures of the validation split."""

    def draw(
        self, params: Params, splits: dict[str, Any], prefix: pathlib.Path, *, rounds: tuple
    ) -> None:
        """Pictures PREFIX_*.png of the windows and of a report's figures."""


def make_evaluation(experiment: Experiment, *, extrapolate: str | None = None) -> Evaluation:
    """The evaluation of the experiment's kind of task.

    Raises:
        ValueError: `config.eval` is out of range, or `extrapolate` for a task without a loop.
    """
    task = experiment.config.train.task
    if task == "graft":
        return GraftEvaluation(experiment, extrapolate=extrapolate)
    if extrapolate is not None:
        raise ValueError(
            f"extrapolate = {extrapolate!r}: a run of train.task = {task!r} has no loop; expected "
            "none"
        )
    return {"video": PretrainingEvaluation, "vae": VAEEvaluation}[task](experiment)


def make_evaluate_hook(experiment: Experiment) -> Callable[[Params, int], dict[str, float]]:
    """`evaluate` for `train.loop.run`: figures of the validation split during training.

    Returns:
        A function of (all parameters, step). For task "graft" it gives "action_mse",
        "first_action_mse", "gripper_accuracy" (where there is a gripper) and "diffusion" with the
        trained number of rounds; for "video" "diffusion_continued" and "diffusion_generated" where
        they are trained; for "vae" "psnr" and "psnr_gain" in dB. Figures of a member of a mixture
        are "NAME/action_mse" and so on.

    Raises:
        ValueError: `config.eval` is out of range.
    """
    evaluation = make_evaluation(experiment)
    return lambda params, step: evaluation.metrics(params)


def evaluate_experiment(
    experiment: Experiment,
    params: Params,
    *,
    rounds: tuple[int, ...] | None = None,
    extrapolate: str | None = None,
) -> dict[str, Any]:
    """A report on every split, ready for JSON; docs/evaluate.md describes its layout.

    Args:
        experiment: data and model.
        params: the whole tree.
        rounds: numbers of rounds to measure; None = 1 to the trained one.
        extrapolate: "last" allows rounds above the trained number; they reuse its last rows.

    Raises:
        ValueError: rounds above the trained number without `extrapolate`, or `config.eval` out of
            range.
    """
    evaluation = make_evaluation(experiment, extrapolate=extrapolate)
    rounds = evaluation.rounds(rounds)
    return _report(experiment, evaluation, params, rounds=rounds, extrapolate=extrapolate)


def _report(
    experiment: Experiment,
    evaluation: Evaluation,
    params: Params,
    *,
    rounds: tuple[int, ...],
    extrapolate: str | None,
) -> dict[str, Any]:
    config = experiment.config
    return {
        "task": config.train.task,
        "rounds": list(rounds),
        "trained_rounds": config.loop.rounds,
        "extrapolate": extrapolate,
        "eval": plain(config.eval),
        "splits": evaluation.report(params, rounds=rounds),
    }


def evaluate_workdir(
    workdir: str | pathlib.Path,
    *,
    step: int | None = None,
    rounds: tuple[int, ...] | None = None,
    extrapolate: str | None = None,
    overrides: Callable[[ml_collections.ConfigDict], None] | None = None,
) -> pathlib.Path:
    """Evaluates one checkpoint of a run.

    Args:
        workdir: folder of the run.
        step: which checkpoint; None = the latest.
        rounds: numbers of rounds to measure; None = 1 to the trained one.
        extrapolate: "last" allows rounds above the trained number; they reuse its last rows.
        overrides: changes the run's config in place. Only `eval.*`, `mesh.*` and `FREE_KEYS` may
            change.

    Returns:
        WORKDIR/eval/STEP.json, written last; pictures WORKDIR/eval/STEP_*.png lie beside it.

    Raises:
        FileNotFoundError: no workdir, no such checkpoint, or data or weights are not where the
            config says.
        ValueError: overrides or rounds that the run does not allow; data or frozen weights that
            are not those it was trained with.
    """
    folder = Workdir(pathlib.Path(workdir))
    saved, provenance = folder.read()
    config = ml_collections.ConfigDict(_with_tuples(saved))
    if overrides is not None:
        overrides(config)
    changed = differences(saved, plain(config))
    _check_overrides(changed, mixture=bool(config.data.mixture))
    known = saved_statistics(provenance)
    experiment = build(config, known)
    _check_fingerprints(experiment, provenance.get("fingerprints", {}), changed)
    if changed.keys() & set(DATA_KEYS) and config.train.task == "graft":
        experiment = _with_statistics(experiment, known, where=folder.path)
    evaluation = make_evaluation(experiment, extrapolate=extrapolate)
    rounds = evaluation.rounds(rounds)
    params, step = load_params(
        experiment.task,
        folder.checkpoints,
        mesh=make_mesh(config.mesh.data, config.mesh.fsdp),
        rules=experiment.rules,
        seed=config.seed,
        step=step,
    )
    logging.info("evaluating step %d of %s", step, folder.path)
    report = _report(experiment, evaluation, params, rounds=rounds, extrapolate=extrapolate)
    report = {"step": step, **report, "overrides": changed, **_origin(experiment)}
    path = folder.path / "eval" / f"{step}.json"
    path.parent.mkdir(exist_ok=True)
    evaluation.draw(params, report["splits"], path.with_suffix(""), rounds=rounds)
    write_atomically(path, json.dumps(report, indent=1) + "\n")
    return path


def _with_tuples(saved: Any) -> Any:
    """What JSON gave back, with tuples for lists: an override must be of the type that it was."""
    if isinstance(saved, Mapping):
        return {name: _with_tuples(value) for name, value in saved.items()}
    return tuple(map(_with_tuples, saved)) if isinstance(saved, list) else saved


def _origin(experiment: Experiment) -> dict[str, Any]:
    data = {split: source.describe() for split, source in experiment.splits.items()}
    return {"data": data, "fingerprints": dict(experiment.fingerprints)}


def _check_overrides(changed: Mapping[str, str], *, mixture: bool) -> None:
    if mixture and "data.root" in changed:
        raise ValueError(
            f"data.root: {changed['data.root']}: the run's data is data.mixture, which is what to "
            "override (the same names, other folders)"
        )
    refused = [
        f"{key}: {values}"
        for key, values in changed.items()
        if key not in FREE_KEYS and not key.startswith(FREE_SECTIONS)
    ]
    if refused:
        raise ValueError(
            f"another model or task than the run's: {'; '.join(refused)}. Evaluation may override "
            f"{', '.join((*(f'{section}*' for section in FREE_SECTIONS), *FREE_KEYS))}"
        )


def _with_statistics(
    experiment: Experiment, saved: Mapping[str, RobotStatistics], *, where: pathlib.Path
) -> Experiment:
    """The experiment with its actions and states scaled as in training, on whatever data."""
    names = [member.name for member in experiment.members]
    if not saved:
        raise ValueError(
            f"{where} holds no statistics of actions and proprio (a run of an earlier version), so "
            "its model cannot be measured on other data; expected the data.root that it was "
            "trained with"
        )
    if list(saved) != names:
        raise ValueError(
            f"data.mixture has the members {_listed(names)}; {where} was trained with "
            f"{_listed(saved)}, whose scaling of actions is used: expected the same, in this order"
        )
    members = tuple(_rescaled(member, saved[member.name]) for member in experiment.members)
    return dataclasses.replace(experiment, members=members)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(name or "(one dataset)" for name in names)


def _rescaled(member: Member, statistics: RobotStatistics) -> Member:
    """A dataset under the scaling of another one.

    Raises:
        ValueError: its actions or states have other dimensions than were scaled.
    """
    found, own = member.statistics, f"data {member.name}".strip()
    for kind in ("actions", "proprio"):
        trained, here = getattr(statistics, kind).spec, getattr(found, kind).spec
        if trained != here:
            raise ValueError(
                f"{own} in {found.root}: {kind} are {here}, the run was trained with {trained}; "
                "expected the same dimensions, units and kinds"
            )
    if found.rate != statistics.rate:
        logging.warning(
            "%s in %s has %g actions a second, the run was trained with %g; figures compare "
            "movements over different times (data.rate)",
            own,
            found.root,
            found.rate,
            statistics.rate,
        )
    return member.with_statistics(statistics)


def _check_fingerprints(
    experiment: Experiment, trained: Mapping[str, str], changed: Mapping[str, str]
) -> None:
    """Refuses other weights than the run's, and other data or text unless it was asked for."""
    data_key = "data.mixture" if experiment.config.data.mixture else "data.root"
    # Where fingerprinted inputs other than weights come from.
    inputs = {"data": data_key, "mixture": data_key, "text": "data.text"}
    for name, expected in trained.items():
        kind = name.split("/")[0]
        key = inputs.get(kind, "backbone.path")
        found = experiment.fingerprints.get(name)
        if found == expected or (kind in inputs and {data_key, key} & changed.keys()):
            continue
        what = name if kind in inputs else f"frozen weights {name!r}"
        section, leaf = key.split(".")
        raise ValueError(
            f"{what} at {key} = {experiment.config[section][leaf]} has fingerprint {found}, the "
            f"run was trained with {expected}; give the right one by --config.{key}=..."
        )
