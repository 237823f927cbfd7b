"""The training loop, in a fixed order: evaluate, save, next batch, step.

A checkpoint of step k is taken before batch k + 1 is drawn, together with the batch iterator's
state, so that a resumed run sees the same data (the order is kauldron's). Keys are folded from the
step, so nothing else needs to be remembered, and a run that was killed at any moment repeats the
steps since its last checkpoint bit for bit.
"""

from __future__ import annotations

import functools
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from absl import logging
from ml_collections import ConfigDict

from roam_jax.contracts import Batch, Params, Task
from roam_jax.train import optim, sharding
from roam_jax.train.checkpoint import Checkpoints
from roam_jax.train.curriculum import Curriculum
from roam_jax.train.group import Alone, Arrangement, JoinedBatches, Member
from roam_jax.train.interrupts import Interrupts
from roam_jax.train.metrics import MetricsLog
from roam_jax.train.pause import Evaluate, Pause
from roam_jax.train.prefetch import DevicePrefetch
from roam_jax.train.progress import Progress
from roam_jax.train.state import (
    TrainState,
    abstract_params,
    abstract_state,
    create_params,
    create_state,
    load_pretrained,
    partition,
)
from roam_jax.train.step import Metrics, make_train_step
from roam_jax.train.throughput import log_share
from roam_jax.train.workdir import Workdir

# From (state, frozen parameters, batch), of a run or of a group.
TrainStep = Callable[[TrainState, Params, Mapping[str, jax.Array]], tuple[TrainState, Metrics]]


def run(
    task: Task,
    batches: Any,
    *,
    config: ConfigDict,
    workdir: str | pathlib.Path,
    rounds: int | Curriculum,
    rules: sharding.Rules,
    provenance: Mapping[str, Any] | None = None,
    evaluate: Evaluate | None = None,
    flops_per_step: Callable[[int], float] | None = None,
) -> TrainState:
    """Train until `train.steps`, from the workdir's last checkpoint if there is one.

    Args:
        task: what is trained.
        batches: endless iterator of global batches, host arrays, with `get_state()`, the position
            after the batches drawn so far (JSON-serialisable), and `set_state(state)`, as Grain's.
        config: the whole config; used are seed, train.*, optim.*, mesh.*.
        workdir: folder of the run, made if needed.
        rounds: what `task.loss` is given, static: always the same number, or a curriculum.
        rules: sharding rules, see `sharding.match_rules`.
        provenance: stored beside the config; its "fingerprints" must not change on a resume.
        evaluate: from (all parameters, step) to numbers, called every `train.eval_every` steps
            and after the last (0 = never); logged as "eval/...".
        flops_per_step: FLOPs of a step's forward and backward pass, from its number of rounds; the
            log then ends with the share of the machine's matrix-product rate.

    Returns:
        The state after the last step.

    Raises:
        ValueError: config, mesh, rules, weights, batches or workdir that do not fit.
        FloatingPointError: loss or gradient is not finite; the last checkpoint is kept.
        SystemExit: 143 after SIGTERM, 130 after SIGINT, with the state saved.
    """
    # All that can be refused is refused before anything is written.
    check_train(config.train)
    steps = config.train.steps
    curriculum = rounds if isinstance(rounds, Curriculum) else Curriculum(rounds, (), steps)
    folder, provenance = Workdir(pathlib.Path(workdir)), provenance or {}
    mesh = sharding.make_mesh(**config.mesh)
    batch_shapes = sharding.batch_shapes(task.batch_spec, mesh)
    tx, schedule = optim.make_optimizer(config.optim, steps=steps, no_decay=task.no_decay)
    folder.require(config, provenance)
    params = abstract_params(task, mesh, rules=rules)
    pretrained = load_pretrained(task, params)
    trainable, frozen = partition(params, task.trainable)
    like = abstract_state(trainable, tx, mesh)
    frozen = create_params(task, frozen, pretrained=pretrained, seed=config.seed)
    folder.create(config, provenance)

    with (
        Interrupts() as interrupts,
        Checkpoints(folder.checkpoints, keep=config.train.keep) as checkpoints,
    ):
        member = Member(config, checkpoints)
        if checkpoints.steps:
            state = member.resume(like, batches)
        else:
            fresh = create_params(task, trainable, pretrained=pretrained, seed=config.seed)
            state = create_state(fresh, tx, like=like)
        start = int(state.step)
        if start == steps:
            logging.info("%s is finished: all of its %d steps are done", folder.path, steps)
            return state
        train_step = make_train_step(task, tx, schedule, seed=config.seed, like=like)
        # All of them, the largest first: what does not fit in memory fails before any step.
        train_steps = {
            n: compile_step(train_step, like, frozen, batch_shapes, rounds=n)
            for n in curriculum.remaining(start)
        }
        tensorboard = {None: folder.tensorboard}
        with MetricsLog(folder.metrics_file, tensorboard, last_step=start) as log:
            return advance(
                state,
                members=[member],
                arrangement=Alone(),
                batches=[batches],
                put=functools.partial(sharding.put_batch, shapes=batch_shapes),
                train_steps=train_steps,
                curriculum=curriculum,
                frozen=frozen,
                log=log,
                evaluate=evaluate,
                interrupts=interrupts,
                start=start,
                flops_per_step=flops_per_step,
                devices=mesh.size,
            )


def advance(
    state: TrainState,
    *,
    members: Sequence[Member],
    arrangement: Arrangement,
    batches: Sequence[Any],
    put: Callable[[Batch], Mapping[str, jax.Array]],
    train_steps: Mapping[int, TrainStep],
    curriculum: Curriculum,
    frozen: Params,
    log: MetricsLog,
    evaluate: Evaluate | None,
    interrupts: Interrupts,
    start: int,
    flops_per_step: Callable[[int], float] | None,
    devices: int,
) -> TrainState:
    """Train a group of runs from one step to `train.steps`: the loop itself.

    Args:
        state: of the group, after `start` steps.
        members: its runs, in the order of their arrays.
        arrangement: how their arrays lie side by side.
        batches: of each run.
        put: a batch of the group to its devices.
        train_steps: number of rounds -> the compiled step of the group.
        curriculum: of them all.
        frozen: their parameters that do not train.
        log, interrupts: open.
        evaluate, flops_per_step: as for `run`.
        start: finished steps.
        devices: that the group runs on.
    """
    steps = curriculum.steps
    with (
        Progress(start, steps) as progress,
        DevicePrefetch(JoinedBatches(batches, arrangement), put) as ready,
    ):
        pause = Pause(
            members,
            arrangement,
            curriculum=curriculum,
            log=log,
            progress=progress,
            batches=ready,
            frozen=frozen,
            evaluate=evaluate,
        )
        metrics: Metrics = {}
        for step in range(start, steps + 1):
            stop = interrupts.signal is not None  # asked once: what ends here must be saved
            if step > start:  # what a run resumes from was evaluated and saved before
                pause(step, state, metrics, stop=stop)
            if stop:
                logging.info("%s: stopped after step %d", interrupts.signal.name, step)
                raise SystemExit(interrupts.exit_code)
            if step < steps:
                # One step at a time: what the host waits for after it is data.
                jax.block_until_ready(metrics)
                batch = _draw(ready, step, interrupts)
                if batch is None:
                    if step > start:
                        pause.save(step, state, metrics)
                    raise SystemExit(interrupts.exit_code)
                state, metrics = train_steps[curriculum.rounds_at(step)](state, frozen, batch)
                progress.advance()
    if flops_per_step is not None:
        log_share(
            flops_per_step,
            map(curriculum.rounds_at, range(start, steps)),
            runs=len(members),
            seconds=progress.seconds,
            devices=devices,
        )
    return state


def check_train(train: ConfigDict) -> None:
    """Refuses numbers of `train` that are out of range."""
    least = {"steps": 1, "keep": 1, "log_every": 0, "save_every": 0, "eval_every": 0}
    for leaf, bound in least.items():
        if train[leaf] < bound:
            raise ValueError(f"train.{leaf} = {train[leaf]}: expected {bound} or more")


def _draw(
    batches: DevicePrefetch, step: int, interrupts: Interrupts
) -> Mapping[str, jax.Array] | None:
    """The next batch; None where the signal that ends the run has ended its readers as well."""
    try:
        batch = next(batches, None)
    except Exception:
        if interrupts.signal is None:
            raise
        return None
    if batch is None and interrupts.signal is None:
        raise ValueError(f"the batches ended after {step} steps; expected an endless iterator")
    return batch


def compile_step(
    step: Any,
    *args: Any,
    rounds: int,
    what: str = "the training step",
) -> jax.stages.Compiled:
    """Compile ahead of the first batch; the result refuses other shapes, it never recompiles."""
    logging.info("compiling %s (rounds = %d)", what, rounds)
    began = time.perf_counter()
    compiled = step.lower(*args, rounds=rounds).compile()
    logging.info("compiled in %.1f s", time.perf_counter() - began)
    return compiled
