"""What is done between two steps, each when it is due: judge, evaluate, log, save."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from roam_jax.contracts import Batch, Params
from roam_jax.spelling import did_you_mean
from roam_jax.train.group import Group
from roam_jax.train.guard import Verdict
from roam_jax.train.memory import used_bytes
from roam_jax.train.metrics import MetricsLog
from roam_jax.train.prefetch import DevicePrefetch
from roam_jax.train.progress import Progress
from roam_jax.train.state import TrainState, merge
from roam_jax.train.step import Metrics
from roam_jax.train.throughput import Throughput

Evaluate = Callable[[Params, int], Mapping[str, float]]


class Pause:
    """Called after every step of a group.

    Args:
        group: what is trained.
        log, progress: where numbers go.
        batches: of the group; its positions are saved.
        evaluate: see `loop.run`.
        throughput: of a step of the group.
    """

    def __init__(
        self,
        group: Group,
        *,
        log: MetricsLog,
        progress: Progress,
        batches: DevicePrefetch,
        evaluate: Evaluate | None,
        throughput: Throughput,
    ):
        self._group, self._log = group, log
        self._progress, self._batches = progress, batches
        self._evaluate, self._throughput = evaluate, throughput
        self._config = group.members[0].config  # but for the seed the same of all
        self._once = {"compile_seconds": group.compile_seconds}
        self._save_due = False

    def judge(self, step: int, metrics: Metrics, batch: Batch) -> Verdict:
        """Looks whether the update was refused, and what follows from it.

        Args:
            step: that was done.
            metrics: of it, of the group.
            batch: that it was done on.

        Raises:
            FloatingPointError: the run has to stop.
        """
        refused = np.ravel(jax.device_get(metrics["refused"]))
        # All numbers are looked at only where something is wrong.
        accepted = [{"refused": 0.0}] * len(refused)
        rows = self._rows(metrics) if refused.any() else accepted
        verdicts = [
            member.guard.check(step, row, batch)
            for member, row in zip(self._group.members, rows, strict=True)
        ]
        return verdicts[0] if len(verdicts) == 1 else "accepted"

    def go_back(self, step: int) -> None:
        """The group goes on from an earlier step."""
        self._log.rewind(step)
        self._progress.go_back(step)

    def __call__(self, step: int, state: TrainState, metrics: Metrics, *, stop: bool) -> None:
        """Does what is due.

        Args:
            step: finished steps.
            state: after them, of the group.
            metrics: of the last of them, of the group.
            stop: the run ends here, so that it is saved.
        """
        train = self._config.train
        evaluate = self._evaluate is not None and self._due(step, train.eval_every)
        log = evaluate or step == 1 or self._due(step, train.log_every)
        # What updates in a row are refused on is not what a run should go back to.
        bad = any(member.guard.in_a_row for member in self._group.members)
        due = self._due(step, train.save_every) or (evaluate and train.keep_best > 0)
        self._save_due = self._save_due or due
        save = stop or step == train.steps or (self._save_due and not bad)
        if not (log or save):
            return
        rows = self._rows(metrics)
        figures = self._figures(step, float(np.mean([row["loss"] for row in rows])))
        found = self._evaluated(step, state) if evaluate else [{}] * len(rows)
        rows = [{**row, **more} for row, more in zip(rows, found, strict=True)]
        if evaluate:
            _require_best_metric(train, rows[0])
        if log:
            first = {"rounds": self._group.curriculum.rounds_at(step - 1)}
            once, self._once = self._once, {}
            for member, row in zip(self._group.members, rows, strict=True):
                self._log.write(step, {**first, **row, **figures, **once}, seed=member.seed)
        if save:
            self._save(step, state, rows)
            self._save_due = False
        self._progress.restart_lap()

    def save(self, step: int, state: TrainState, metrics: Metrics) -> None:
        """Saves the state of a step, unless that was done."""
        self._save(step, state, self._rows(metrics))

    def _save(self, step: int, state: TrainState, rows: Sequence[Mapping[str, float]]) -> None:
        group = self._group
        parts, positions = group.arrangement.split(state), self._batches.get_state()
        for member in group.members:  # all have the step before when the first one saves this
            member.checkpoints.wait()
        for member, part, data, row in zip(group.members, parts, positions, rows, strict=True):
            member.save(step, part, data=data, metrics=row, mesh=group.mesh)

    def _figures(self, step: int, loss: float) -> dict[str, float]:
        """What the steps since the last pause took."""
        steps, seconds = self._progress.lap_steps, self._progress.lap(loss)
        waiting = self._batches.seconds_waited() / max(1, steps)
        return {
            "seconds_per_step": seconds,
            "seconds_waiting": waiting,
            **self._throughput.figures(seconds, self._group.curriculum.rounds_at(step - 1)),
            **used_bytes(self._group.mesh.local_devices),
        }

    def _rows(self, metrics: Metrics) -> list[dict[str, float]]:
        """Numbers of each run."""
        return [_ordered(row) for row in self._group.arrangement.split(jax.device_get(metrics))]

    def _evaluated(self, step: int, state: TrainState) -> list[dict[str, float]]:
        """What the evaluation finds of every run; of their averages where it is to look at them."""
        group = self._group
        trained = state.ema if self._config.eval.ema and state.ema else state.trainable
        parts = group.arrangement.split(trained)
        frozen = group.arrangement.split_frozen(group.frozen)
        found = (
            self._evaluate(_on_devices(merge(*params)), step)
            for params in zip(parts, frozen, strict=True)
        )
        return [
            {f"eval/{name}": float(value) for name, value in figures.items()} for figures in found
        ]

    def _due(self, step: int, every: int) -> bool:
        return every > 0 and (step % every == 0 or step == self._config.train.steps)


def _on_devices(params: Params) -> Params:
    """Host arrays, of one run of many, on a device; those of a run alone stay where they are."""
    return jax.tree.map(lambda x: x if isinstance(x, jax.Array) else jax.device_put(x), params)


def _require_best_metric(train: ConfigDict, row: Mapping[str, float]) -> None:
    """Refuses a metric to keep checkpoints by that not even an evaluated step has.

    Raises:
        ValueError: names the nearest that there is.
    """
    if train.keep_best and train.best_metric not in row:
        raise ValueError(
            f"train.best_metric = {train.best_metric!r} with train.keep_best = {train.keep_best}: "
            f"no such number at an evaluated step; {did_you_mean(train.best_metric, row)}"
        )


def _ordered(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Numbers of one run, the loss first."""
    return {name: float(metrics[name]) for name in sorted(metrics, key=lambda n: n != "loss")}
