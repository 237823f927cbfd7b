"""What workdirs hold, read for a report: numbers, configs, evaluations, pictures, incidents.

Nothing is built or opened but JSON and directory listings, so runs that have just begun, were
killed, or still run can be read as well. Runs that differ in their seed alone are put together.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from roam_jax.evaluate.seeds import metric_rows, seed_folders
from roam_jax.train.journal import read_lines
from roam_jax.train.metrics import read_metrics
from roam_jax.train.workdir import (
    FINGERPRINTS,
    FREE_KEYS,
    SEEDS_FOLDER,
    Workdir,
    differences,
    plain,
    with_later_leaves,
)

INCIDENTS, JOURNAL, EVALUATIONS = "incidents.jsonl", "journal.jsonl", "eval"
PICTURES, VIDEOS = (".png", ".gif"), (".mp4",)
# STEP.json, STEP_rollout.json, STEP_seeds.json, STEP_0_frames.png, ...
_EVALUATED = re.compile(r"(\d+)(?:_(.*))?")


@dataclasses.dataclass(frozen=True)
class Saved:
    """A checkpoint on disk.

    Args:
        step: finished updates.
        size: bytes of its files.
        time: when it was last written to, in seconds since 1970.
    """

    step: int
    size: int
    time: float


@dataclasses.dataclass(frozen=True)
class Evaluated:
    """A file of an evaluation.

    Args:
        step: of the checkpoint.
        kind: what follows the step in its name, "" of STEP.json.
        path: the file.
    """

    step: int
    kind: str
    path: pathlib.Path


@dataclasses.dataclass(frozen=True)
class Run:
    """A run of one seed.

    Args:
        path: its workdir.
        config: the plain config.
        provenance: where it comes from.
        rows: lines of metrics.jsonl, without the seed.
        checkpoints: oldest first.
        reports, media: JSON files, pictures and videos of evaluations, by step.
        incidents: refused updates.
        journal: starts and stops.
    """

    path: pathlib.Path
    config: dict[str, Any]
    provenance: dict[str, Any]
    rows: list[dict[str, Any]]
    checkpoints: list[Saved]
    reports: list[Evaluated]
    media: list[Evaluated]
    incidents: list[dict[str, Any]]
    journal: list[dict[str, Any]]

    @property
    def seed(self) -> int:
        """Its seed."""
        return self.config["seed"]

    @property
    def steps(self) -> tuple[int, int]:
        """Finished steps, as far as metrics and checkpoints tell, and those of the whole run."""
        known = [row["step"] for row in self.rows[-1:]] + [c.step for c in self.checkpoints[-1:]]
        return max(known, default=0), self.config["train"]["steps"]

    @property
    def what_counts(self) -> dict[str, Any]:
        """Leaf -> value of all that decides its results, but for the seed."""
        leaves = flat(with_later_leaves(self.config)) | {
            f"{FINGERPRINTS} {name}": value
            for name, value in flat(plain(self.provenance.get(FINGERPRINTS, {}))).items()
        }
        return {name: v for name, v in leaves.items() if name not in (*FREE_KEYS, "seed")}


@dataclasses.dataclass(frozen=True)
class Group:
    """Runs that differ in their seed alone.

    Args:
        name: how the report calls it.
        runs: by seed.
        reports, media: of all seeds together, from the folder of --seeds.
    """

    name: str
    runs: tuple[Run, ...]
    reports: list[Evaluated]
    media: list[Evaluated]


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"optim.lr": 0.1} of every leaf of a config."""
    found = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found


def read_groups(folders: Sequence[pathlib.Path]) -> list[Group]:
    """The runs of these folders, in their order.

    Args:
        folders: workdirs of one run, or folders of --seeds.

    Raises:
        FileNotFoundError: a folder is none of them; names workdirs that it holds.
        ValueError: a config or a metrics file cannot be read, or a folder is named twice.
    """
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise ValueError(f"report {' '.join(map(str, folders))}: expected different folders")
    groups = [read_folder(folder) for folder in folders]
    merged: list[list[Group]] = []
    for group in groups:
        same = next((m for m in merged if _only_seeds_differ(m, group)), None)
        if same is None:
            merged.append([group])
        else:
            same.append(group)
    names = _names([[part.name for part in parts] for parts in merged])
    return [
        Group(
            name,
            tuple(sorted((run for p in parts for run in p.runs), key=lambda run: run.seed)),
            [one for p in parts for one in p.reports],
            [one for p in parts for one in p.media],
        )
        for name, parts in zip(names, merged, strict=True)
    ]


def read_folder(folder: pathlib.Path) -> Group:
    """The run or the runs of one folder, unless their configs differ in more than the seed.

    Raises:
        FileNotFoundError, ValueError: as `read_groups`.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; expected the workdir of a run")
    # Seeds that are still to be trained have no config yet.
    seeds = {s: p for s, p in seed_folders(folder).items() if Workdir(p).config_file.exists()}
    if seeds and not Workdir(folder).config_file.exists():
        rows = _rows_by_seed(folder, seeds)
        runs = [read_run(path, rows[seed]) for seed, path in seeds.items()]
        for run in runs[1:]:
            if run.what_counts != runs[0].what_counts:
                listed = ", ".join(differences(runs[0].what_counts, run.what_counts))
                raise ValueError(
                    f"{folder}: seeds {runs[0].seed} and {run.seed} differ in {listed}; expected "
                    "runs of one config"
                )
        return Group(str(folder), tuple(runs), *_evaluations(folder))
    if not Workdir(folder).config_file.exists():
        inner = sorted(path.parent.name for path in folder.glob("*/config.json"))
        inner += sorted({path.parent.name for path in folder.glob(f"*/{SEEDS_FOLDER}/")})
        hint = f"; it holds {', '.join(inner[:8])}: expected these" if inner else ""
        raise FileNotFoundError(
            f"{folder} is no workdir: it has neither config.json nor {SEEDS_FOLDER}/SEED{hint}"
        )
    seed = Workdir(folder).read()[0].get("seed", 0)
    return Group(str(folder), (read_run(folder, metric_rows(folder, seed)),), [], [])


def read_run(path: pathlib.Path, rows: list[dict[str, Any]]) -> Run:
    """One workdir.

    Args:
        path: it has a config.json.
        rows: its lines of metrics.

    Raises:
        ValueError: config.json is damaged.
    """
    config, provenance = Workdir(path).read()
    reports, media = _evaluations(path)
    return Run(
        path=path,
        config=config,
        provenance=provenance,
        rows=[{k: v for k, v in row.items() if k != "seed"} for row in rows],
        checkpoints=_checkpoints(Workdir(path).checkpoints),
        reports=reports,
        media=media,
        incidents=read_lines(path / INCIDENTS),
        journal=read_lines(path / JOURNAL),
    )


def _rows_by_seed(
    folder: pathlib.Path, seeds: Mapping[int, pathlib.Path]
) -> dict[int, list[dict[str, Any]]]:
    """As `metric_rows` of each seed, but the one file of all is read once."""
    shared = Workdir(folder).metrics_file
    found: dict[int, list[dict[str, Any]]] = {seed: [] for seed in seeds}
    for row in read_metrics(shared) if shared.exists() else []:
        found.setdefault(row.get("seed"), []).append(row)
    own = {seed: Workdir(path).metrics_file for seed, path in seeds.items()}
    return found | {seed: read_metrics(path) for seed, path in own.items() if path.exists()}


def _only_seeds_differ(parts: Sequence[Group], other: Group) -> bool:
    seeds = {run.seed for part in parts for run in part.runs}
    return parts[0].runs[0].what_counts == other.runs[0].what_counts and not seeds & {
        run.seed for run in other.runs
    }


def _names(parts: Sequence[Sequence[str]]) -> list[str]:
    """A short name for each group of folders, different from the others."""
    whole = [pathlib.Path(folders[0]).resolve() for folders in parts]
    for depth in range(1, max(len(path.parts) for path in whole) + 1):
        short = ["/".join(path.parts[-depth:]) for path in whole]
        if len(set(short)) == len(short):
            break
    return [
        name + (f" and {len(folders) - 1} more" if len(folders) > 1 else "")
        for name, folders in zip(short, parts, strict=True)
    ]


def _evaluations(folder: pathlib.Path) -> tuple[list[Evaluated], list[Evaluated]]:
    """Reports, and pictures and videos, by step and name."""
    found = []
    for path in sorted((folder / EVALUATIONS).glob("*")):
        if path.is_file() and (parts := _EVALUATED.fullmatch(path.stem)):
            found.append(Evaluated(int(parts[1]), parts[2] or "", path))
    found.sort(key=lambda one: (one.step, one.kind))
    return (
        [one for one in found if one.path.suffix == ".json"],
        [one for one in found if one.path.suffix in (*PICTURES, *VIDEOS)],
    )


def _checkpoints(folder: pathlib.Path) -> list[Saved]:
    found = []
    for path in folder.glob("*/"):
        if path.name.isdigit():
            sizes = [file.stat().st_size for file in path.rglob("*") if file.is_file()]
            found.append(Saved(int(path.name), sum(sizes), os.path.getmtime(path)))
    return sorted(found, key=lambda saved: saved.step)


def read_report(one: Evaluated) -> dict[str, Any]:
    """The figures of an evaluation.

    Raises:
        ValueError: it is not what `evaluate.run` writes; names the file.
    """
    try:
        report = json.loads(one.path.read_text(encoding="utf-8"))
        report["splits"], report["step"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{one.path}: no report of an evaluation ({error!r})") from error
    return report
