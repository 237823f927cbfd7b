"""A trained graft as a folder that others can use, without its run.

    DIR/config.json         the run's config, where it comes from, step and rounds
    DIR/model.safetensors   what trained, under its names, float32
    DIR/statistics.json     scaling of actions and robot states, by dataset
    DIR/eval/STEP.json      what eval.py measured of it, if anything
    DIR/README.md           a card for people

Frozen weights are not in it: like a workdir it names them by path and fingerprint. NumPy only.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from roam_jax.cogvideox.importing import new_directory
from roam_jax.cogvideox.mapped import create_tensors, open_tensors

FORMAT = "roam_jax model, version 1"
CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
STATISTICS_FILE, CARD_FILE = "statistics.json", "README.md"
# Key of a run's provenance that has a file of its own here.
_STATISTICS = "statistics"
# Sections that the config of every run has.
_SECTIONS = (
    "backbone",
    "canvas",
    "data",
    "decoder",
    "eval",
    "loop",
    "loss",
    "mesh",
    "optim",
    "topology",
    "train",
)


@dataclasses.dataclass(frozen=True)
class ModelDirectory:
    """What such a folder holds.

    Args:
        config: the run's config, as JSON gives it back.
        provenance: git commit, packages, data, fingerprints, statistics; as in a workdir.
        trainable: "/"-joined name -> memory-mapped float32 array of what trained.
        step: finished updates.
    """

    config: dict[str, Any]
    provenance: dict[str, Any]
    trainable: dict[str, np.ndarray]
    step: int


def write_model_directory(
    dst: str | os.PathLike[str],
    *,
    config: Mapping[str, Any],
    provenance: Mapping[str, Any],
    params_trainable: Mapping[str, Any],
    step: int,
    command: str,
    parameters: Sequence[Mapping[str, Any]] = (),
    report: Mapping[str, Any] | None = None,
) -> None:
    """Writes the folder; it appears whole or not at all.

    Args:
        dst: the new folder.
        config, provenance: what `Workdir.read` gives.
        params_trainable: "/"-joined name -> array of any kind, of what trained.
        step: finished updates.
        command: the command line that writes it.
        parameters: `count_parameters` of the task, for the card.
        report: the eval/STEP.json of this step; None = not measured.

    Raises:
        FileExistsError: `dst` exists.
        ValueError: nothing trained, or the report is of another step.
    """
    from roam_jax.evaluate.model_card import model_card  # imports JAX, which reading does not need

    dst = pathlib.Path(dst)
    if not params_trainable:
        raise ValueError(f"{dst}: no trained parameters to write")
    if report is not None and report.get("step") != step:
        raise ValueError(f"the report is of step {report.get('step')}, the model of step {step}")
    notes = {name: value for name, value in provenance.items() if name != _STATISTICS}
    saved = {
        "format": FORMAT,
        "step": step,
        "rounds": config["loop"]["rounds"],
        "command": command,
        "config": config,
        "provenance": notes,
    }
    float32 = np.dtype(np.float32)
    with new_directory(dst) as folder:
        (folder / CONFIG_FILE).write_text(_json(saved))
        (folder / STATISTICS_FILE).write_text(_json(provenance.get(_STATISTICS, {})))
        if report is not None:
            # Where eval.py would write it, and where an export of this folder looks for it.
            (folder / "eval").mkdir()
            (folder / "eval" / f"{step}.json").write_text(_json(report))
        specs = {name: (np.shape(leaf), float32) for name, leaf in params_trainable.items()}
        with create_tensors(folder / WEIGHTS_FILE, specs) as tensors:
            for name, leaf in params_trainable.items():
                tensors[name][...] = np.asarray(leaf)
        card = model_card(saved | {"provenance": provenance}, parameters=parameters, report=report)
        (folder / CARD_FILE).write_text(card, encoding="utf-8")


def is_model_directory(path: str | os.PathLike[str]) -> bool:
    """Whether the folder is one of these, of this or another version, whole or not."""
    try:
        saved = json.loads((pathlib.Path(path) / CONFIG_FILE).read_text())
    except (OSError, ValueError):
        return False
    return isinstance(saved, dict) and str(saved.get("format", "")).startswith("roam_jax model")


def read_model_directory(path: str | os.PathLike[str]) -> ModelDirectory:
    """Opens the folder; parameters are memory-mapped.

    Raises:
        FileNotFoundError: no model directory, or a file of it is missing.
        ValueError: of another version, or a file is damaged; names it.
    """
    path = pathlib.Path(path)
    if not is_model_directory(path):
        raise FileNotFoundError(
            f"{path}: no model directory, expected {CONFIG_FILE} and {WEIGHTS_FILE} as "
            "`python -m convert export --as model` writes them"
        )
    saved = json.loads((path / CONFIG_FILE).read_text())
    if saved["format"] != FORMAT:
        raise ValueError(f"{path / CONFIG_FILE}: format = {saved['format']!r}, expected {FORMAT!r}")
    missing = [n for n in (WEIGHTS_FILE, STATISTICS_FILE) if not (path / n).is_file()]
    if missing:
        raise FileNotFoundError(f"{path}: {', '.join(missing)}: no such file in a model directory")
    try:
        statistics = json.loads((path / STATISTICS_FILE).read_text())
    except ValueError as error:
        raise ValueError(f"{path / STATISTICS_FILE}: no JSON: {error}") from error
    members = statistics.values() if isinstance(statistics, Mapping) else [statistics]
    if not all(isinstance(member, Mapping) for member in members):
        raise ValueError(
            f"{path / STATISTICS_FILE}: holds {statistics!r:.60}, expected an object of objects"
        )
    try:
        config, step = saved["config"], int(saved["step"])
        provenance = {**saved["provenance"], _STATISTICS: statistics}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path / CONFIG_FILE}: expected config, provenance and step, got {error!r}"
        ) from error
    sections = config if isinstance(config, Mapping) else {}
    if lacking := [name for name in _SECTIONS if not isinstance(sections.get(name), Mapping)]:
        raise ValueError(
            f"{path / CONFIG_FILE}: config has no section {', '.join(lacking)}, expected the whole "
            "config of a run"
        )
    return ModelDirectory(config, provenance, open_tensors(path / WEIGHTS_FILE), step)


def _json(values: Any) -> str:
    return json.dumps(values, indent=1) + "\n"
