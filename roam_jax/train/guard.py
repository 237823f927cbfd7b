"""What happens to a run whose updates are refused: it is written down, rolled back, or stopped.

The step itself refuses (`step.py`); here the host counts. So many refused updates in a row mean
that the state is at fault, not a batch: the run goes back to its last checkpoint and on with the
data that follows. After so many such returns it stops.
"""

from __future__ import annotations

import math
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np
from ml_collections import ConfigDict

from roam_jax.train.journal import append_line

# Fields of a batch that say which examples it holds.
IDENTITY = ("dataset", "episode", "start", "scene_seed", "scene_index")
Verdict = Literal["accepted", "refused", "roll back"]


class Guard:
    """Counts refused updates of one run.

    Args:
        train: config section with spike_factor, refusals and rollbacks.
        incidents: file with one JSON object a line, added to; None = nothing is written.
        seed: what messages call the run by, where several are trained as one; such a run cannot
            go back alone, and stops instead.

    Raises:
        ValueError: a value out of range, with its config key.
    """

    def __init__(
        self, train: ConfigDict, incidents: pathlib.Path | None, *, seed: int | None = None
    ):
        for leaf, value, least in (
            ("refusals", train.refusals, 1),
            ("rollbacks", train.rollbacks, 0),
        ):
            if value < least:
                raise ValueError(f"train.{leaf} = {value}: expected {least} or more")
        self._train, self._incidents, self._seed = train, incidents, seed
        self._in_a_row, self._rollbacks = 0, 0

    def check(self, step: int, row: Mapping[str, Any], batch: Mapping[str, Any]) -> Verdict:
        """Takes note of a step.

        Args:
            step: that was done, counted from 1.
            row: its metrics; read are "refused", "loss" and norms.
            batch: what it was trained on, host or device arrays; `IDENTITY` is looked up only where
                the update was refused.

        Returns:
            What became of it; "roll back": go on from the last checkpoint.

        Raises:
            FloatingPointError: it is refused, and the run has gone back as often as it may.
        """
        if not float(row["refused"]):
            self._in_a_row = 0
            return "accepted"
        self._in_a_row += 1
        verdict, stops = "refused", False
        if self._in_a_row >= self._train.refusals:
            stops = self._seed is not None or self._rollbacks >= self._train.rollbacks
            verdict = "roll back"
        refused = self._in_a_row
        if verdict == "roll back" and not stops:
            self._rollbacks, self._in_a_row = self._rollbacks + 1, 0
        self._write(step, row, batch, done="stop" if stops else verdict, in_a_row=refused)
        if stops:
            raise FloatingPointError(self._message(step, row))
        return verdict

    @property
    def in_a_row(self) -> int:
        """Updates that were refused since the last accepted one."""
        return self._in_a_row

    def get_state(self) -> dict[str, int]:
        """Counts that a resume goes on from, for JSON."""
        return {"in_a_row": self._in_a_row, "rollbacks": self._rollbacks}

    def set_state(self, state: Mapping[str, int]) -> None:
        """Inverse of `get_state`; {} of a run that had no guard is a fresh start."""
        self._in_a_row = int(state.get("in_a_row", 0))
        self._rollbacks = int(state.get("rollbacks", 0))

    def _message(self, step: int, row: Mapping[str, Any]) -> str:
        name = "" if self._seed is None else f"seed {self._seed}, "
        where = "" if self._incidents is None else f"; {self._incidents} says which batches"
        more = "expected a lower optim.lr or optim.clip_norm, or other data"
        if self._train.spike_factor:
            more += ", or a larger train.spike_factor"
        back = f"after {self._rollbacks} returns to a checkpoint (train.rollbacks)"
        if self._seed is not None:
            back = "and a seed among others cannot go back to a checkpoint"
        return (
            f"{name}step {step}: loss = {float(row['loss'])}, grad_norm = "
            f"{float(row['grad_norm'])}: {self._in_a_row} updates in a row were refused "
            f"(train.refusals), {back}{where}; {more}"
        )

    def _write(
        self,
        step: int,
        row: Mapping[str, Any],
        batch: Mapping[str, Any],
        *,
        done: str,
        in_a_row: int,
    ) -> None:
        if self._incidents is None:
            return
        numbers = {n: _number(row[n]) for n in row if n == "loss" or "_norm" in n}
        finite = all(math.isfinite(float(row[name])) for name in ("loss", "grad_norm"))
        incident = {
            "time": time.time(),
            **({} if self._seed is None else {"seed": self._seed}),
            "step": step,
            "done": done,
            "reason": "spike" if finite else "not finite",
            "in_a_row": in_a_row,
            "rollbacks": self._rollbacks,
            **numbers,
            "batch": {name: _values(batch[name]) for name in IDENTITY if name in batch},
        }
        append_line(self._incidents, incident)


def _number(value: Any) -> float | str:
    """As JSON has it; "nan", "inf" and "-inf" in words, as it has none of these."""
    number = float(value)
    return number if math.isfinite(number) else str(number)


def _values(array: Any) -> Sequence[int]:
    """Whole numbers of an array; of one that lies on several hosts those that are here."""
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        shards = {str(shard.index): shard.data for shard in array.addressable_shards}
        array = np.concatenate([np.asarray(data) for data in shards.values()])
    return np.asarray(array).tolist()
