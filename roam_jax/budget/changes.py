"""The smallest change of a config with which a step fits: parts, remat, mesh."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Mapping

import ml_collections

from roam_jax.axes import BATCH_AXES, DATA, FSDP, MESH_AXES, SEQUENCE, TENSOR
from roam_jax.budget.account import RESERVED, Estimate, Setting
from roam_jax.model.loop_options import REMATS

# Shares of a row that are tried.
SPLITS = (2, 4, 8)
# How often a batch is halved at most.
HALVINGS = 10


@dataclasses.dataclass(frozen=True)
class Change:
    """Leaves of a config that are changed together.

    Args:
        leaves: key -> new value.
    """

    leaves: Mapping[str, object]

    def __str__(self) -> str:
        return " ".join(f"--config.{key}={value}" for key, value in self.leaves.items())

    def applied(self, config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
        """A copy of the config with them."""
        config = copy.deepcopy(config)
        with config.unlocked():
            for key, value in self.leaves.items():
                section, leaf = key.split(".")
                config[section][leaf] = value
        return config


def smallest_change(
    config: ml_collections.ConfigDict,
    asked: Estimate,
    setting: Setting,
    *,
    try_it: Callable[[ml_collections.ConfigDict, Setting], Estimate],
) -> tuple[Change, ml_collections.ConfigDict, Estimate] | None:
    """What to change so that the step fits, by the upper end of the account's band.

    The fewest kinds of change come first (parts of a batch, remat, the mesh), and of as many kinds
    in this order; of the mesh first "fsdp", then "sequence", then "tensor".

    Args:
        config: that does not fit.
        asked: its estimate.
        setting: where it is to run.
        try_it: `account.estimate` without its devices.

    Returns:
        The change, the config with it and with the mesh that was asked for, and the estimate; None
        where none of those that are tried fits.
    """
    mesh = dict(asked.step.mesh.shape)
    config = Change({f"mesh.{axis}": size for axis, size in mesh.items()}).applied(config)
    hopeless: set[tuple[int, ...]] = set()
    for change in _changes(config, mesh, setting):
        changed = change.applied(config)
        sizes = tuple(changed.mesh[axis] for axis in MESH_AXES)
        if sizes in hopeless:
            continue
        try:
            found = try_it(changed, dataclasses.replace(setting, mesh={}))
        except ValueError:  # heads or rows do not divide: no mesh for this model
            continue
        if found.most <= setting.memory:
            return change, changed, found
        # Parts and remat change the temporaries alone.
        if sum(found.held.values()) + RESERVED > setting.memory:
            hopeless.add(sizes)
    return None


def _changes(
    config: ml_collections.ConfigDict, mesh: Mapping[str, int], setting: Setting
) -> Iterator[Change]:
    """By the number of kinds of change, then in order of kind."""
    meshes = [{f"mesh.{axis}": each[axis] for axis in MESH_AXES} for each in _meshes(mesh, setting)]
    remats = [{"train.remat": each} for each in REMATS[REMATS.index(config.train.remat) + 1 :]]
    same = {f"mesh.{axis}": mesh[axis] for axis in MESH_AXES}
    for count in (1, 2, 3):
        for which in itertools.combinations(("accumulate", "remat", "mesh"), count):
            for layout in meshes if "mesh" in which else [{}]:
                parts = [{}]
                if "accumulate" in which:
                    parts = list(_parts(config, {**same, **layout}))
                for part, remat in itertools.product(parts, remats if "remat" in which else [{}]):
                    yield Change({**part, **remat, **layout})


def _parts(
    config: ml_collections.ConfigDict, mesh: Mapping[str, object]
) -> Iterator[dict[str, object]]:
    shards = math.prod(int(mesh[f"mesh.{axis}"]) for axis in BATCH_AXES)
    rows, parts = config.train.batch_size // shards, config.train.accumulate
    for _ in range(HALVINGS):
        parts *= 2
        if not rows or rows % parts:
            return
        yield {"train.accumulate": parts}


def _meshes(mesh: Mapping[str, int], setting: Setting) -> Iterator[dict[str, int]]:
    """Meshes of as many devices that hold less on each."""
    count, node = setting.count, min(setting.count, setting.per_node)
    splits = [{}]
    splits += [{axis: n} for axis in (SEQUENCE, TENSOR) for n in SPLITS if node % n == 0]
    for split in splits:
        shared = {axis: max(mesh[axis], split.get(axis, 1)) for axis in (SEQUENCE, TENSOR)}
        left = count // math.prod(shared.values())
        within = max(1, node // math.prod(shared.values()))
        for fsdp in dict.fromkeys((within, left)):
            found = {DATA: left // fsdp if fsdp else 0, FSDP: fsdp, **shared}
            if math.prod(found.values()) == count and found != dict(mesh):
                yield found
