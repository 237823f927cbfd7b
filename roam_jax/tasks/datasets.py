"""From a config to opened data: one dataset, or a mixture."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import ml_collections

from roam_jax.cogvideox.importing import hash_file
from roam_jax.contracts import TimeSpec
from roam_jax.data.declaration import AUTO
from roam_jax.data.embedded import ensure_embedded
from roam_jax.data.members import DatasetChoice, Member, open_members
from roam_jax.data.options import LANGUAGE_EMBEDDING, WindowOptions
from roam_jax.data.statistics import RobotStatistics

EMBEDDED = "embedded"
# Key of the provenance: scaling of actions and states, by member.
STATISTICS = "statistics"


def open_data(
    config: ml_collections.ConfigDict, known: Mapping[str, RobotStatistics] = MappingProxyType({})
) -> tuple[Member, ...]:
    """The datasets of a config: that of `data.root`, or the members of `data.mixture`.

    Args:
        config: the whole config.
        known: scaling that a run began with, by member; see `open_members`.

    Raises:
        FileNotFoundError, ValueError: as `open_members`, or a mixture that is not written as such.
    """
    data = config.data
    options = WindowOptions(
        time=TimeSpec(data.frames, config.canvas.t_current),
        image_size=tuple(data.image_size),
        rate=data.rate,
        goal=data.goal,
        text=data.text,
        skip_empty_instructions=data.skip_empty_instructions,
    )
    choices = dataset_choices(data)
    return open_members(
        [dataclasses.replace(choice, root=data_root(choice.root)) for choice in choices],
        options,
        cameras=tuple(data.cameras),
        actions=data.mixture_actions,
        splits=tuple(data.splits),
        known=known,
    )


def saved_statistics(provenance: Mapping[str, Any]) -> dict[str, RobotStatistics]:
    """The scaling that a run began with, by member; {} of an earlier version's workdir."""
    saved = provenance.get(STATISTICS, {})
    if not all(isinstance(fields, Mapping) and "actions" in fields for fields in saved.values()):
        return {}
    return {name: RobotStatistics.from_json(json.dumps(fields)) for name, fields in saved.items()}


def dataset_choices(data: ml_collections.ConfigDict) -> tuple[DatasetChoice, ...]:
    """The datasets that `config.data` names, with roots as they are written there.

    Raises:
        ValueError: a member of `data.mixture` that is no (name, weight, root[, declaration]), or a
            declaration beside the mixture.
    """
    if not data.mixture:
        return (DatasetChoice(data.root, declaration=data.declaration),)
    if data.declaration != AUTO:
        raise ValueError(
            f"data.declaration = {data.declaration!r} beside data.mixture: expected a declaration "
            "with each member, (name, weight, root, declaration)"
        )
    choices = []
    for entry in data.mixture:
        kinds = [type(value) for value in entry] if isinstance(entry, tuple | list) else []
        if kinds[:1] + kinds[2:] not in ([str, str], [str, str, str]) or kinds[1] not in (
            int,
            float,
        ):
            raise ValueError(
                f"data.mixture: member {entry!r}, expected (name, weight, root) or (name, weight, "
                "root, declaration)"
            )
        name, weight, root, *declaration = entry
        choices.append(DatasetChoice(root, name, float(weight), *declaration))
    return tuple(choices)


def data_root(root: str) -> pathlib.Path:
    """Folder of the dataset that `data.root` names; writes embedded data on first use."""
    name, _, variant = root.partition(":")
    if name == EMBEDDED:
        return ensure_embedded(variant=variant or "default")
    return pathlib.Path(root).expanduser()


def data_fingerprints(
    config: ml_collections.ConfigDict, members: Sequence[Member]
) -> dict[str, str]:
    """Of all that is read beside the weights: data, data/val; data/NAME, mixture; text."""
    found = {}
    for member in members:
        name = f"data/{member.name}" if member.name else "data"
        found[name] = member.train.fingerprint
        found[f"{name}/val"] = member.val.fingerprint
    if config.data.mixture:
        found["mixture"] = ", ".join(f"{member.name} {member.weight!r}" for member in members)
    if config.data.text != LANGUAGE_EMBEDDING:
        found["text"] = hash_file(pathlib.Path(config.data.text).expanduser())
    return found
