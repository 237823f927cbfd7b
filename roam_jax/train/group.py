"""Runs that are trained together: what each has of its own, and how their arrays lie side by side.

A run alone is a group of one whose arrays are as they are. The seeds of one config are a group
whose states and batches are stacked on a new first axis, over which their step is vmapped.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from roam_jax.contracts import Batch, Params
from roam_jax.train.checkpoint import Checkpoints
from roam_jax.train.state import TrainState
from roam_jax.train.workdir import require_same_config


@dataclasses.dataclass(frozen=True)
class Member:
    """What a run of a group has of its own.

    Args:
        config: with its seed.
        checkpoints: open for saving.
        seed: what metrics and messages call it by; None = a run alone, which needs no name.
    """

    config: ConfigDict
    checkpoints: Checkpoints
    seed: int | None = None

    @property
    def label(self) -> str:
        """How a message about it begins."""
        return "" if self.seed is None else f"seed {self.seed}, "

    def resume(self, like: TrainState, batches: Any, *, step: int | None = None) -> TrainState:
        """A saved state, with `batches` put to its place.

        Args:
            like: from `state.abstract_state`.
            batches: iterator with `set_state`.
            step: which; None = the latest.

        Raises:
            ValueError: it was saved with another config, or does not fit.
        """
        state, data, saved = self.checkpoints.restore(like, step=step)
        where = f"checkpoint of step {int(state.step)} in {self.checkpoints.directory}"
        require_same_config(saved, self.config, where=where)
        batches.set_state(data)
        logging.info("resuming from the %s", where)
        return state


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
