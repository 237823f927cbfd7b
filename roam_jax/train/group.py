"""Runs that are trained together: what each has of its own, and how their arrays lie side by side.

A run alone is a group of one whose arrays are as they are. The seeds of one config are a group
whose states and batches are stacked on a new first axis, over which their step is vmapped.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh
from ml_collections import ConfigDict

from roam_jax.contracts import Batch, Params
from roam_jax.train.checkpoint import Checkpoints
from roam_jax.train.curriculum import Curriculum
from roam_jax.train.guard import Guard
from roam_jax.train.state import TrainState
from roam_jax.train.step import Metrics
from roam_jax.train.workdir import plain, require_same_config

# From (state, frozen parameters, batch), of a run or of a group.
TrainStep = Callable[[TrainState, Params, Mapping[str, jax.Array]], tuple[TrainState, Metrics]]
# What a checkpoint remembers beside state, data and config.
GUARD, MESH = "guard", "mesh"


@dataclasses.dataclass(frozen=True)
class Member:
    """What a run of a group has of its own.

    Args:
        config: with its seed.
        checkpoints: open for saving.
        guard: counts its refused updates.
        seed: what metrics and messages call it by; None = a run alone, which needs no name.
    """

    config: ConfigDict
    checkpoints: Checkpoints
    guard: Guard
    seed: int | None = None

    def save(
        self,
        step: int,
        state: TrainState,
        *,
        data: Any,
        metrics: Mapping[str, float],
        mesh: Mesh,
    ) -> None:
        """Begins to save a step, with all that a resume needs.

        Args:
            step: finished updates.
            state: of this run.
            data: position of its batches.
            metrics: that checkpoints may be kept by.
            mesh: that it runs on.
        """
        extra = {GUARD: self.guard.get_state(), MESH: dict(mesh.shape)}
        config = plain(self.config)
        self.checkpoints.save(step, state, data=data, config=config, metrics=metrics, extra=extra)

    def resume(
        self, like: TrainState, batches: Any, *, mesh: Mesh, step: int | None = None
    ) -> TrainState:
        """A saved state, with `batches` put to its place.

        Args:
            like: from `state.abstract_state`.
            batches: iterator with `set_state`.
            mesh: that the run goes on with.
            step: which; None = the latest that is not damaged.

        Raises:
            ValueError: it was saved with another config, or does not fit.
        """
        state, data, saved = self.checkpoints.restore(like, step=step)
        step = int(state.step)
        where = f"checkpoint of step {step} in {self.checkpoints.directory}"
        require_same_config(saved, self.config, where=where)
        batches.set_state(data)
        extra = self.checkpoints.extra(step)
        self.guard.set_state(extra.get(GUARD, {}))
        logging.info("resuming from the %s", where)
        if (before := extra.get(MESH)) and before != dict(mesh.shape):
            logging.warning(
                "the run goes on with the mesh %s where %s was: batches and keys are the same, "
                "sums are in another order, so that numbers agree to rounding only",
                *(_spelt(mesh.shape), _spelt(before)),
            )
        return state

    def saved_step(self) -> int:
        """The last saved step; 0 where there is none."""
        return max(self.checkpoints.steps, default=0)

    def last_state(self, like: TrainState) -> TrainState | None:
        """The last saved state; None where there is none."""
        return self.checkpoints.restore(like)[0] if self.checkpoints.agreed_steps() else None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Group:
    """Runs that are trained together, with all that their loop needs.

    Args:
        members: the runs, in the order of their arrays.
        arrangement: how their arrays lie side by side.
        batches: of each run.
        put: a batch of the group to its devices.
        steps: number of rounds -> compiled step of (state, frozen, batch).
        curriculum: of them all.
        frozen: their parameters that do not train.
        mesh: devices that they run on.
        compile_seconds: that compiling `steps` took.
        go_back: the state of the last checkpoint, or the first one; None where the group cannot
            go back.
    """

    members: Sequence[Member]
    arrangement: Arrangement
    batches: Sequence[Any]
    put: Callable[[Batch], Mapping[str, jax.Array]]
    steps: Mapping[int, TrainStep]
    curriculum: Curriculum
    frozen: Params
    mesh: Mesh
    compile_seconds: float
    go_back: Callable[[], TrainState] | None = None

    def steps_done(self, state: TrainState) -> int:
        """Finished steps, the same of all members."""
        return int(np.max(jax.device_get(state.step)))


@runtime_checkable
class Arrangement(Protocol):
    """How trees of a group's runs become one tree, and back."""

    def join(self, trees: Sequence[Any]) -> Any:
        """One tree of all runs."""

    def split(self, tree: Any) -> list[Any]:
        """The tree of each run."""

    def split_frozen(self, frozen: Params) -> list[Params]:
        """The frozen parameters of each run."""


class Alone:
    """The arrangement of a run alone: nothing changes."""

    def join(self, trees: Sequence[Any]) -> Any:
        """The only tree."""
        (tree,) = trees
        return tree

    def split(self, tree: Any) -> list[Any]:
        """The only tree."""
        return [tree]

    def split_frozen(self, frozen: Params) -> list[Params]:
        """The only tree."""
        return [frozen]


@dataclasses.dataclass(frozen=True)
class Stacked:
    """Every leaf has a first axis over the runs.

    Args:
        count: of runs.
        shared_frozen: frozen parameters are the same of all and have no such axis.
    """

    count: int
    shared_frozen: bool

    def join(self, trees: Sequence[Any]) -> Any:
        """Stacked on the host."""
        return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)

    def split(self, tree: Any) -> list[Any]:
        """Host arrays."""
        host = jax.device_get(tree)
        return [
            jax.tree.map(lambda leaf, i=i: np.asarray(leaf[i]), host) for i in range(self.count)
        ]

    def split_frozen(self, frozen: Params) -> list[Params]:
        """The same tree for each where it is shared."""
        return [frozen] * self.count if self.shared_frozen else self.split(frozen)


class JoinedBatches:
    """The batches of a group's runs as one iterator; positions are a list, one of each run.

    Args:
        batches: one iterator a run, with `get_state`.
        arrangement: how their batches become one.
    """

    def __init__(self, batches: Sequence[Any], arrangement: Arrangement):
        self._batches, self._arrangement = batches, arrangement

    def __next__(self) -> Batch:
        return self._arrangement.join([next(batches) for batches in self._batches])

    def get_state(self) -> list[Any]:
        """The position of every run's batches."""
        return [batches.get_state() for batches in self._batches]


def _spelt(mesh: Mapping[str, int]) -> str:
    return ", ".join(f"{axis} = {size}" for axis, size in mesh.items() if size > 1) or "one device"
