"""A training run from config to last step: what is made ahead of the loop (`advance.py`), and how.

A checkpoint of step k is taken before batch k + 1 is drawn, together with the batch iterator's
state, so that a resumed run sees the same data (the order is kauldron's). Keys are folded from the
step, so nothing else needs to be remembered, and a run that was killed at any moment repeats the
steps since its last checkpoint bit for bit.
"""

from __future__ import annotations

import contextlib
import functools
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
from absl import logging
from ml_collections import ConfigDict

from roam_jax.contracts import Task
from roam_jax.train import hosts, optim, sharding
from roam_jax.train.advance import Group, advance
from roam_jax.train.checkpoint import Checkpoints
from roam_jax.train.compiling import compile_steps
from roam_jax.train.curriculum import Curriculum
from roam_jax.train.group import Alone, Member
from roam_jax.train.guard import Guard
from roam_jax.train.interrupts import Interrupts
from roam_jax.train.journal import Journal
from roam_jax.train.lock import only_run
from roam_jax.train.metrics import MetricsLog
from roam_jax.train.pause import Evaluate
from roam_jax.train.profile import Profiler, parse_steps
from roam_jax.train.retention import Keep
from roam_jax.train.state import (
    TrainState,
    abstract_params,
    abstract_state,
    create_params,
    create_state,
    load_pretrained,
    partition,
)
from roam_jax.train.step import make_train_step
from roam_jax.train.step_options import StepOptions
from roam_jax.train.throughput import Throughput
from roam_jax.train.workdir import Workdir
from roam_jax.train.writers import open_writers, require_wandb


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
    tokens_per_step: int = 0,
) -> TrainState:
    """Train until `train.steps`, from the workdir's last checkpoint if there is one.

    Of several processes each calls this with its own share of the batches (`shares.share_of`).

    Args:
        task: what is trained.
        batches: endless iterator of global batches, host arrays, with `get_state()`, the position
            after the batches drawn so far (JSON-serialisable), and `set_state(state)`, as Grain's.
        config: the whole config; used are seed, train.*, optim.*, mesh.*.
        workdir: folder of the run, made if needed; of several processes, one that all hosts share.
        rounds: what `task.loss` is given, static: always the same number, or a curriculum.
        rules: sharding rules, see `sharding.match_rules`.
        provenance: stored beside the config; its "fingerprints" must not change on a resume.
        evaluate: from (all parameters, step) to numbers, called every `train.eval_every` steps
            and after the last (0 = never); logged as "eval/...".
        flops_per_step: FLOPs of a step's forward and backward pass, from its number of rounds.
        tokens_per_step: cells that a step passes through the model; 0 = not known.

    Returns:
        The state after the last step.

    Raises:
        ValueError: config, mesh, rules, weights, batches or workdir that do not fit, or that differ
            between processes.
        FloatingPointError: updates were refused too often, see `guard`.
        SystemExit: `interrupts.REQUEUE` after a signal, with the state saved.
    """
    # All that can be refused is refused before anything is written.
    check_train(config.train)
    require_wandb(config.train.wandb)
    options = StepOptions.from_config(config)
    steps = config.train.steps
    curriculum = rounds if isinstance(rounds, Curriculum) else Curriculum(rounds, (), steps)
    folder, provenance = Workdir(pathlib.Path(workdir)), provenance or {}
    hosts.require_same(config, provenance)
    mesh = sharding.make_mesh(**config.mesh)
    batch_shapes = sharding.batch_shapes(task.batch_spec, mesh)
    options.check_rows(task.batch_spec, shards=sharding.batch_shards(mesh))
    tx, schedule = optim.make_optimizer(config.optim, steps=steps, no_decay=task.no_decay)
    folder.require(config, provenance)
    params = abstract_params(task, mesh, rules=rules)
    pretrained = load_pretrained(task, params)
    trainable, frozen = partition(params, task.trainable)
    like = abstract_state(trainable, tx, mesh, options)
    frozen = create_params(task, frozen, pretrained=pretrained, seed=config.seed)

    def first_state() -> TrainState:
        fresh = create_params(task, trainable, pretrained=pretrained, seed=config.seed)
        return create_state(fresh, tx, like=like)

    first = hosts.is_first()
    if first:
        folder.create(config, provenance)
    hosts.require_shared(folder.path)
    keep = Keep.from_config(config.train)
    with (
        only_run(folder.path) if first else contextlib.nullcontext(),
        Interrupts() as interrupts,
        Checkpoints(folder.checkpoints, keep=keep) as checkpoints,
    ):
        member = Member(
            config, checkpoints, Guard(config.train, folder.incidents_file if first else None)
        )
        saved = checkpoints.agreed_steps()
        state = member.resume(like, batches, mesh=mesh) if saved else first_state()
        start = int(state.step)
        if start == steps:
            logging.info("%s is finished: all of its %d steps are done", folder.path, steps)
            return state
        step = make_train_step(task, tx, schedule, seed=config.seed, like=like, options=options)
        # JAX names a trace by its host, on which there may be several processes.
        profile = folder.profile / (f"{jax.process_index()}" if hosts.are_several() else "")
        with (
            Journal(folder.journal_file if first else None).running(start, done=member.saved_step),
            Profiler(config.train.profile, profile, start=start) as profiler,
            open_log(folder, config, last_step=start, write=first) as log,
        ):
            compiled = compile_steps(
                step, like, frozen, batch_shapes, rounds=curriculum.remaining(start)
            )
            group = Group(
                members=[member],
                arrangement=Alone(),
                batches=[batches],
                put=functools.partial(sharding.put_batch, shapes=batch_shapes),
                steps=compiled.steps,
                curriculum=curriculum,
                frozen=frozen,
                mesh=mesh,
                compile_seconds=compiled.seconds,
                go_back=lambda: member.last_state(like) or first_state(),
            )
            return advance(
                state,
                group,
                log=log,
                evaluate=evaluate,
                interrupts=interrupts,
                profiler=profiler,
                throughput=Throughput.of_run(
                    config,
                    mesh,
                    flops_per_step=flops_per_step,
                    tokens_per_step=tokens_per_step,
                ),
            )


def check_train(train: ConfigDict) -> None:
    """Refuses values of `train` that are out of range.

    Raises:
        ValueError: names the leaf.
    """
    least = {"steps": 1, "log_every": 0, "save_every": 0, "eval_every": 0}
    for leaf, bound in least.items():
        if train[leaf] < bound:
            raise ValueError(f"train.{leaf} = {train[leaf]}: expected {bound} or more")
    Keep.from_config(train)
    if train.keep_best and train.best_metric.startswith("eval/") and not train.eval_every:
        raise ValueError(
            f"train.keep_best = {train.keep_best} by train.best_metric = {train.best_metric!r} "
            "with train.eval_every = 0: expected 1 or more, or a metric of every step"
        )
    parse_steps(train.profile)


def open_log(folder: Workdir, config: ConfigDict, *, last_step: int, write: bool) -> MetricsLog:
    """The log of a run alone; in a process that does not write, one that keeps nothing."""
    if not write:
        return MetricsLog(None, {None: []}, last_step=last_step)
    writers = {None: open_writers(folder, config, last_step=last_step)}
    return MetricsLog(folder.metrics_file, writers, last_step=last_step)
