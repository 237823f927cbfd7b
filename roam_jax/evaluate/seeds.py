"""Evaluation of a folder that `train.py --seeds` filled: every seed, and one table of them all.

Data and model are built and compiled once. Intervals of the table are over seeds: what another
training run of the same config would give, which the examples of one run cannot say. With as few
seeds as there usually are it is Student's interval; the bootstrap's would be too narrow.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ml_collections
import numpy as np
import scipy.stats
from absl import logging

from roam_jax.evaluate.bootstrap import LEVEL, Estimate
from roam_jax.evaluate.report import format_report
from roam_jax.evaluate.run import ACTIONS, Measured, evaluate_workdir, open_experiment
from roam_jax.evaluate.saved import Saved, read_saved
from roam_jax.files import write_atomically
from roam_jax.train.checkpoint import Checkpoints
from roam_jax.train.metrics import read_metrics
from roam_jax.train.seeds_workdir import SeedsWorkdir
from roam_jax.train.workdir import FINGERPRINTS, SEEDS_FOLDER, Workdir, differences, plain
from roam_jax.viz.curves import draw_curves

# In a report of several, those that it is of; and what its files are called by.
SEEDS = "seeds"
# Metrics of training whose curves are drawn, by how their names begin.
CURVES = ("loss", "eval/")


def evaluate_folder(
    workdir: str | pathlib.Path,
    *,
    step: int | None = None,
    rounds: tuple[int, ...] | None = None,
    extrapolate: str | None = None,
    metrics: Sequence[str] = (ACTIONS,),
    overrides: Callable[[ml_collections.ConfigDict], None] | None = None,
) -> pathlib.Path:
    """As `evaluate_workdir`, of one run or of all seeds of a folder.

    Returns:
        The report; of seeds WORKDIR/eval/STEP_seeds.json (with the ending of a seed's own report),
        in which each figure is a mean over seeds and each interval is over seeds. Every seed has
        its own report in its own folder as well.

    Raises:
        FileNotFoundError, ValueError: as `evaluate_workdir`; seeds that have no step in common, or
            that are not of one config.
    """
    folders = seed_folders(workdir)
    wanted = {"rounds": rounds, "extrapolate": extrapolate, "metrics": metrics}
    if not folders:
        return evaluate_workdir(workdir, step=step, overrides=overrides, **wanted)
    runs = {seed: read_saved(path, overrides=overrides) for seed, path in folders.items()}
    _require_alike(runs)
    step = common_step({seed: saved.path for seed, saved in runs.items()}, step)
    measured = Measured.of(open_experiment(next(iter(runs.values())), metrics), **wanted)
    reports = {}
    for seed, saved in runs.items():
        logging.info("seed %d", seed)
        _, reports[seed] = measured.write(saved, step=step)
    folder = pathlib.Path(workdir) / "eval"
    folder.mkdir(exist_ok=True)
    report = seeds_report(reports)
    for part in measured.parts:
        if hasattr(part, "draw_figures"):
            part.draw_figures(report["splits"], folder / f"{step}_{SEEDS}")
    _draw_training(folder / f"{step}_{SEEDS}_curves.png", folders)
    path = folder / f"{step}_{SEEDS}{measured.ending}.json"
    write_atomically(path, json.dumps(report, indent=1) + "\n")
    return path


def seed_folders(workdir: str | pathlib.Path) -> dict[int, pathlib.Path]:
    """Seed -> its workdir, rising; {} of a run alone."""
    found = pathlib.Path(workdir).glob(f"{SEEDS_FOLDER}/*/")
    return dict(sorted((int(path.name), path) for path in found if path.name.isdigit()))


def common_step(folders: Mapping[int, pathlib.Path], wanted: int | None) -> int:
    """The step that is asked for, or the latest that all seeds have saved.

    Raises:
        FileNotFoundError: there is none.
    """
    saved = {}
    for seed, path in folders.items():
        with Checkpoints(Workdir(path).checkpoints) as checkpoints:
            saved[seed] = {s for s in checkpoints.steps if not checkpoints.fault(s)}
    common = set.intersection(*saved.values())
    if wanted in common or (wanted is None and common):
        return max(common) if wanted is None else wanted
    listed = "; ".join(f"seed {seed}: {sorted(steps) or 'none'}" for seed, steps in saved.items())
    what = "no step in common" if wanted is None else f"no step {wanted} of every seed"
    raise FileNotFoundError(f"{what} (saved: {listed})")


def seeds_report(reports: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """One report of several: means over seeds, with intervals over seeds.

    Args:
        reports: seed -> its report, all of one kind.

    Returns:
        A report of the same layout, which `format_report` prints as well; an estimate has "values"
        beside mean and interval, one a seed. "seeds" lists them. One seed keeps its own intervals.
    """
    merged = _merge(list(reports.values()))
    return {"seeds": list(reports), **merged}


def estimate_seeds(values: Sequence[float]) -> Estimate:
    """Mean of independent runs with Student's 95 % interval; none of a single run."""
    values = np.asarray(values, float)
    mean, count = float(values.mean()), len(values)
    if count == 1:
        return Estimate(mean, None)
    reach = scipy.stats.t.ppf((1 + LEVEL) / 2, count - 1) * values.std(ddof=1) / count**0.5
    return Estimate(mean, (float(mean - reach), float(mean + reach)))


def format_seeds(report: Mapping[str, Any]) -> str:
    """The table of a report, with a line that says of which seeds it is where it is of several."""
    if SEEDS not in report:
        return format_report(report)
    seeds = report[SEEDS]
    about = (
        f"step {report['step']}, mean of {len(seeds)} seed(s) ({', '.join(map(str, seeds))}); "
        "intervals are over seeds (95 %, Student) but where all are the same\n"
    )
    return about + format_report(report)


def _merge(values: list[Any]) -> Any:
    """Means of the numbers of trees of one shape; what is no figure is the first one's.

    What is the same of all stays, interval included: that of an expert says more than one of width
    0. Lists of whole numbers, such as the episodes that diverged, are put together.
    """
    first = values[0]
    if all(value == first for value in values):
        return first
    if isinstance(first, Mapping):
        if set(first) == {"mean", "interval"}:
            means = [value["mean"] for value in values]
            return {**estimate_seeds(means).to_json(), "values": means}
        return {key: _merge([v[key] for v in values]) for key in first}
    if isinstance(first, list):
        items = [item for value in values for item in value]
        if all(isinstance(item, int) for item in items):
            return sorted(set(items))
        return [_merge(list(items)) for items in zip(*values, strict=True)]
    if isinstance(first, int | float):
        return float(np.mean(values))
    return first


def _require_alike(runs: Mapping[int, Saved]) -> None:
    """Refuses folders whose runs differ in more than the seed."""
    (seed, first), *others = runs.items()
    for other, saved in others:
        changed = differences(plain(first.config), plain(saved.config))
        prints = (plain(run.provenance.get(FINGERPRINTS, {})) for run in (first, saved))
        changed = {k: v for k, v in (changed | differences(*prints)).items() if k != "seed"}
        if changed:
            listed = "; ".join(f"{key}: {values}" for key, values in changed.items())
            raise ValueError(
                f"{first.path.parent}: seeds {seed} and {other} are not of one config: {listed}"
            )


def _draw_training(path: pathlib.Path, folders: Mapping[int, pathlib.Path]) -> None:
    """Curves of losses over training, as bands over seeds; nothing where none was logged."""
    rows = {seed: metric_rows(folder, seed) for seed, folder in folders.items()}
    if not all(rows.values()):
        return
    first = next(iter(rows.values()))
    names = {name for row in first for name in row if name.startswith(CURVES)}
    panels = {}
    for name in sorted(names):
        by_step = [{r["step"]: r[name] for r in found if name in r} for found in rows.values()]
        steps = sorted(set.intersection(*(set(one) for one in by_step)))
        values = np.array([[one[step] for step in steps] for one in by_step], float)
        if steps:
            panels[name] = {"seeds": (np.array(steps), values)}
    if panels:
        draw_curves(path, panels)


def metric_rows(folder: pathlib.Path, seed: int) -> list[dict[str, Any]]:
    """What was logged of a seed: in its own folder, or in the one file of all seeds."""
    own = Workdir(folder).metrics_file
    shared = SeedsWorkdir(folder.parent.parent).metrics_file
    if own.exists():
        return read_metrics(own)
    if shared.exists():
        return [row for row in read_metrics(shared) if row.get("seed") == seed]
    return []
