"""What must be as it was in training before a run is measured or deployed.

Its data and its frozen weights are compared by fingerprint, its config leaf by leaf; on other data
actions and states keep the scaling that the run was trained with.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterable, Mapping

import ml_collections
from absl import logging

from roam_jax.data.members import Member
from roam_jax.data.statistics import RobotStatistics
from roam_jax.tasks.build import Experiment

# Keys by which episodes are chosen, and how they are read.
DATA_KEYS = ("data.root", "data.mixture", "data.declaration")
# What may differ from the run's own config: where things are, how much is measured, on what.
FREE_SECTIONS = ("eval.", "mesh.")
FREE_KEYS = (
    "backbone.path",
    *DATA_KEYS,
    "data.text",
    "data.encode_once",
    "data.latents",
    "data.workers",
)


def check_overrides(changed: Mapping[str, str], *, mixture: bool) -> None:
    """Refuses overrides that would make another model or task of the run.

    Args:
        changed: leaf -> "old -> new".
        mixture: whether the run's data is a mixture.

    Raises:
        ValueError: names them and what may be overridden.
    """
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


def check_fingerprints(
    config: ml_collections.ConfigDict,
    found: Mapping[str, str],
    trained: Mapping[str, str | None],
    *,
    changed: Mapping[str, str],
) -> None:
    """Refuses other weights than the run's, and other data or text unless it was asked for.

    Args:
        config: with overrides.
        found: fingerprints of what is there.
        trained: of what the run was trained with.
        changed: the overrides.

    Raises:
        ValueError: names what differs and the key that says where it is.
    """
    data_key = "data.mixture" if config.data.mixture else "data.root"
    # Where fingerprinted inputs other than weights come from.
    inputs = {"data": data_key, "mixture": data_key, "text": "data.text"}
    for name, expected in trained.items():
        kind = name.split("/")[0]
        key = inputs.get(kind, "backbone.path")
        if found.get(name) == expected:
            continue
        if kind in inputs and {data_key, key} & changed.keys():
            continue
        what = name if kind in inputs else f"frozen weights {name!r}"
        section, leaf = key.split(".")
        raise ValueError(
            f"{what} at {key} = {config[section][leaf]} has fingerprint {found.get(name)}, the "
            f"run was trained with {expected}; give the right one by --config.{key}=..."
        )


def with_statistics(
    experiment: Experiment, saved: Mapping[str, RobotStatistics], *, where: pathlib.Path
) -> Experiment:
    """The experiment with its actions and states scaled as in training, on whatever data.

    Args:
        experiment: as its config builds it.
        saved: the run's scaling, by member.
        where: the run's folder, for messages.

    Raises:
        ValueError: there is none, or the members or their dimensions are others.
    """
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
