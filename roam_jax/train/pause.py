"""What is done between two steps, each when it is due: evaluate, log, save."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from roam_jax.contracts import Params
from roam_jax.train.curriculum import Curriculum
from roam_jax.train.group import Arrangement, Member
from roam_jax.train.metrics import MetricsLog
from roam_jax.train.prefetch import DevicePrefetch
from roam_jax.train.progress import Progress
from roam_jax.train.state import TrainState, merge
from roam_jax.train.step import Metrics
from roam_jax.train.workdir import plain

# Metrics without which a state is not saved.
FINITE = ("loss", "grad_norm")
Evaluate = Callable[[Params, int], Mapping[str, float]]


class Pause:
    """Called after every step of a group.

    Args:
        members: the runs, in the order of their arrays.
        arrangement: how their arrays lie side by side.
        curriculum: of them all.
        log, progress: where numbers go.
        batches: of the group; its positions are saved.
        frozen: parameters of the group that do not train.
        evaluate: see `loop.run`.
    """

    def __init__(
        self,
        members: Sequence[Member],
        arrangement: Arrangement,
        *,
        curriculum: Curriculum,
        log: MetricsLog,
        progress: Progress,
        batches: DevicePrefetch,
        frozen: Params,
        evaluate: Evaluate | None,
    ):
        self._members, self._arrangement = members, arrangement
        self._curriculum, self._log = curriculum, log
        self._progress, self._batches = progress, batches
        self._frozen, self._evaluate = frozen, evaluate
        self._train = members[0].config.train  # the same of all

    def __call__(self, step: int, state: TrainState, metrics: Metrics, *, stop: bool) -> None:
        """Does what is due.

        Args:
            step: finished updates.
            state: after them, of the group.
            metrics: of the last of them, of the group.
            stop: the run ends here, so that it is saved.

        Raises:
            FloatingPointError: loss or gradient of a run is not finite.
        """
        train = self._train
        evaluate = self._evaluate is not None and self._due(step, train.eval_every)
        log = evaluate or step == 1 or self._due(step, train.log_every)
        save = stop or step == train.steps or self._due(step, train.save_every)
        if not (log or save):
            return
        rows = [_ordered(row) for row in self._arrangement.split(jax.device_get(metrics))]
        self._require_finite(step, rows)
        steps = self._progress.lap_steps
        times = {
            "seconds_per_step": self._progress.lap(float(np.mean([row["loss"] for row in rows]))),
            "seconds_waiting": self._batches.seconds_waited() / max(1, steps),
        }
        found = self._evaluated(step, state) if evaluate else [{}] * len(rows)
        if log:
            rounds = {"rounds": self._curriculum.rounds_at(step - 1)}
            for member, row, figures in zip(self._members, rows, found, strict=True):
                self._log.write(step, {**rounds, **row, **times, **figures}, seed=member.seed)
        if save:
            self.save(step, state, metrics)
        self._progress.restart_lap()

    def save(self, step: int, state: TrainState, metrics: Mapping[str, Any]) -> None:
        """Saves the state of a step, unless that was done; never one that is not finite."""
        rows = self._arrangement.split({name: metrics[name] for name in FINITE})
        self._require_finite(step, rows)
        if all(step in member.checkpoints.steps for member in self._members):
            return
        parts = self._arrangement.split(state), self._batches.get_state()
        for member, part, data in zip(self._members, *parts, strict=True):
            if step not in member.checkpoints.steps:
                member.checkpoints.save(step, part, data=data, config=plain(member.config))

    def _evaluated(self, step: int, state: TrainState) -> list[dict[str, float]]:
        """What the evaluation finds of every run."""
        parts = self._arrangement.split(state.trainable)
        frozen = self._arrangement.split_frozen(self._frozen)
        found = (
            self._evaluate(jax.device_put(merge(*params)), step)
            for params in zip(parts, frozen, strict=True)
        )
        return [
            {f"eval/{name}": float(value) for name, value in figures.items()} for figures in found
        ]

    def _due(self, step: int, every: int) -> bool:
        return every > 0 and (step % every == 0 or step == self._train.steps)

    def _require_finite(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        for member, row in zip(self._members, rows, strict=True):
            values = {name: float(row[name]) for name in FINITE}
            if not all(map(math.isfinite, values.values())):
                steps = member.checkpoints.steps
                raise FloatingPointError(
                    f"{member.label}step {step}: loss = {values['loss']}, grad_norm = "
                    f"{values['grad_norm']}; stopped without saving. The last good checkpoint in "
                    f"{member.checkpoints.directory} is "
                    + (f"step {steps[-1]}" if steps else "none")
                )


def _ordered(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Numbers of one run, the loss first."""
    return {name: float(metrics[name]) for name in sorted(metrics, key=lambda n: n != "loss")}
