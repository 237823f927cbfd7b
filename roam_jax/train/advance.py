"""The loop itself, in a fixed order: evaluate, save, next batch, step.

It trains a group of runs, of which a run alone is one. What is refused in a step is judged before
anything of that step is written down.
"""

from __future__ import annotations

import collections
from collections.abc import Mapping

import jax
from absl import logging

from roam_jax.contracts import Batch
from roam_jax.train import hosts
from roam_jax.train.group import Group, JoinedBatches
from roam_jax.train.interrupts import REQUEUE, Interrupts
from roam_jax.train.metrics import MetricsLog
from roam_jax.train.pause import Evaluate, Pause
from roam_jax.train.prefetch import DevicePrefetch
from roam_jax.train.profile import Profiler
from roam_jax.train.progress import Progress
from roam_jax.train.state import TrainState
from roam_jax.train.step import Metrics
from roam_jax.train.throughput import Throughput


def advance(
    state: TrainState,
    group: Group,
    *,
    log: MetricsLog,
    evaluate: Evaluate | None,
    interrupts: Interrupts,
    profiler: Profiler,
    throughput: Throughput,
) -> TrainState:
    """Train a group of runs from its state to `train.steps`.

    Args:
        state: of the group.
        group: what is trained.
        log, interrupts, profiler: open.
        evaluate: as for `loop.run`.
        throughput: of a step of the group.

    Raises:
        FloatingPointError: updates were refused too often.
        SystemExit: after a signal, with the state saved.
    """
    steps = group.curriculum.steps
    step = group.steps_done(state)
    with (
        Progress(step, steps) as progress,
        DevicePrefetch(JoinedBatches(group.batches, group.arrangement), group.put) as ready,
    ):
        pause = Pause(
            group,
            log=log,
            progress=progress,
            batches=ready,
            evaluate=evaluate,
            throughput=throughput,
        )
        metrics: Metrics = {}
        batch: Batch = {}
        ran: collections.Counter[int] = collections.Counter()
        while True:
            # One step at a time: what the host waits for after it is data.
            jax.block_until_ready(metrics)
            if metrics and pause.judge(step, metrics, batch) == "roll back":
                state, metrics = None, {}  # the devices need not hold it and the saved one
                state = group.go_back()
                step = group.steps_done(state)
                pause.go_back(step)
            # Asked once: what ends here must be saved.
            stop = hosts.agree(interrupts.requested)
            if metrics:  # what a run goes on from was evaluated and saved before
                pause(step, state, metrics, stop=bool(stop))
            if step == steps:
                break
            if stop:
                logging.info("stopped after step %d, to be started again", step)
                raise SystemExit(REQUEUE)
            drawn = _draw(ready, step, interrupts)
            if drawn is None:
                if metrics:
                    pause.save(step, state, metrics)
                raise SystemExit(REQUEUE)
            batch = drawn
            profiler.before_step(step)
            rounds = group.curriculum.rounds_at(step)
            state, metrics = group.steps[rounds](state, group.frozen, batch)
            step, ran[rounds] = step + 1, ran[rounds] + 1
            progress.advance()
    throughput.log_share(ran.elements(), seconds=progress.seconds)
    return state


def _draw(
    batches: DevicePrefetch, step: int, interrupts: Interrupts
) -> Mapping[str, jax.Array] | None:
    """The next batch; None where the signal that ends the run has ended its readers as well."""
    try:
        batch = next(batches, None)
    except Exception:
        # Of several processes, the others would wait in the next step for one that just leaves.
        if not interrupts.requested or hosts.are_several():
            raise
        return None
    if batch is None and (not interrupts.requested or hosts.are_several()):
        raise ValueError(f"the batches ended after {step} steps; expected an endless iterator")
    return batch
