"""Many seeds of one config as one program: their steps are vmapped over stacked states and batches.

Small models leave most of a machine idle; several of them at once do not. How many are trained
together is decided by what XLA says that the compiled step needs and by the memory that there is;
what is left over is trained after it, group by group.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from roam_jax.axes import MESH_AXES
from roam_jax.contracts import Task
from roam_jax.train import sharding
from roam_jax.train.advance import advance
from roam_jax.train.checkpoint import Checkpoints
from roam_jax.train.curriculum import Curriculum
from roam_jax.train.group import Group, Member
from roam_jax.train.guard import Guard
from roam_jax.train.interrupts import Interrupts
from roam_jax.train.journal import Journal
from roam_jax.train.lock import only_run
from roam_jax.train.loop import check_train
from roam_jax.train.metrics import MetricsLog
from roam_jax.train.pause import Evaluate
from roam_jax.train.profile import Profiler
from roam_jax.train.retention import Keep
from roam_jax.train.seeds_program import Program, Programs
from roam_jax.train.seeds_workdir import SeedsWorkdir
from roam_jax.train.throughput import Throughput
from roam_jax.train.writers import open_writers, require_wandb

# A kill between the saves of two seeds must leave a step that both have.
LEAST_KEPT = 2


def with_seed(config: ConfigDict, seed: int) -> ConfigDict:
    """A copy of a config for another seed."""
    config = copy.deepcopy(config)
    config.seed = seed
    return config


def run_seeds(
    task: Task,
    open_batches: Callable[[int], contextlib.AbstractContextManager[Any]],
    *,
    seeds: Sequence[int],
    config: ConfigDict,
    workdir: str | pathlib.Path,
    rounds: int | Curriculum,
    rules: sharding.Rules,
    at_once: int | None = None,
    provenances: Mapping[int, Mapping[str, Any]] | None = None,
    evaluate: Evaluate | None = None,
    flops_per_step: Callable[[int], float] | None = None,
    tokens_per_step: int = 0,
) -> None:
    """Train runs that differ in their seed alone, each until `train.steps`.

    A run gives the losses that `loop.run` gives with its seed, to float32 rounding.

    Args:
        task: what is trained; its loss is vmapped over seeds, which enter by parameters, batch and
            key alone.
        open_batches: from a seed to a context with its iterator of batches, see `loop.run`.
        seeds: different ones.
        config: of all; its own seed is not read.
        workdir: folder of the runs, see `seeds_workdir`; runs in it go on.
        rounds, rules, evaluate, flops_per_step, tokens_per_step: as for `loop.run`.
        at_once: so many of them as one program; None = as many as fit in memory.
        provenances: of each seed, as for `loop.run`.

    Raises:
        ValueError: as `loop.run`; a mesh that splits parameters; seeds that do not fit in memory;
            seeds of a workdir that are at different steps.
        FloatingPointError: updates of a seed were refused too often; names the seed.
        SystemExit: after a signal, as `loop.run`.
    """
    check_train(config.train)
    require_wandb(config.train.wandb)
    _check(config, seeds, at_once)
    steps = config.train.steps
    curriculum = rounds if isinstance(rounds, Curriculum) else Curriculum(rounds, (), steps)
    folder = SeedsWorkdir(pathlib.Path(workdir))
    configs = {seed: with_seed(config, seed) for seed in seeds}
    provenances = provenances or {seed: {} for seed in seeds}
    folder.require(configs, provenances)
    programs = Programs(task, config=config, curriculum=curriculum, rules=rules)
    with only_run(folder.path), Interrupts() as interrupts:
        plan = [(group, folder.common_step(group)) for group in folder.plan(seeds)]
        for wanted, start in plan:
            if start == steps:
                logging.info("%s: all %d steps of seeds %s are done", folder.path, steps, wanted)
                continue
            fitting = programs.fitting(len(wanted), at_once=at_once, start=start)
            for part in np.array_split(wanted, -(-len(wanted) // fitting)):
                group = part.tolist()
                logging.info("training seeds %s together", group)
                folder.create({seed: configs[seed] for seed in group}, provenances)
                folder.record(group)
                _train(
                    programs.of(len(group), start=start),
                    {seed: configs[seed] for seed in group},
                    folder=folder,
                    open_batches=open_batches,
                    start=start,
                    evaluate=evaluate,
                    interrupts=interrupts,
                    flops_per_step=flops_per_step,
                    tokens_per_step=tokens_per_step,
                )


def _train(
    program: Program,
    configs: Mapping[int, ConfigDict],
    *,
    folder: SeedsWorkdir,
    open_batches: Callable[[int], contextlib.AbstractContextManager[Any]],
    start: int,
    evaluate: Evaluate | None,
    interrupts: Interrupts,
    flops_per_step: Callable[[int], float] | None,
    tokens_per_step: int,
) -> None:
    """Train one group of seeds from a step on; `configs` has the config of each."""
    seeds = list(configs)
    train = next(iter(configs.values())).train
    keep = Keep.from_config(train)
    keep = dataclasses.replace(keep, last=max(LEAST_KEPT, keep.last))
    with contextlib.ExitStack() as stack:
        members, batches, states = [], [], []
        for seed, config in configs.items():
            run = folder.run(seed)
            checkpoints = stack.enter_context(Checkpoints(run.checkpoints, keep=keep))
            checkpoints.drop_after(start)
            guard = Guard(config.train, folder.incidents_file, seed=seed)
            members.append(Member(config, checkpoints, guard, seed))
            batches.append(stack.enter_context(open_batches(seed)))
            first = (
                members[-1].resume(program.one, batches[-1], mesh=program.mesh, step=start)
                if start
                else program.create(seed)
            )
            states.append(jax.device_get(first))
            journal = Journal(run.journal_file)
            stack.enter_context(journal.running(start, done=members[-1].saved_step))
        group = Group(
            members=members,
            arrangement=program.arrangement,
            batches=batches,
            put=functools.partial(sharding.put_batch, shapes=program.batches),
            steps=program.train_steps(seeds),
            curriculum=program.curriculum,
            frozen=program.create_frozen(seeds),
            mesh=program.mesh,
            compile_seconds=program.compile_seconds,
        )
        writers = {
            seed: open_writers(folder.run(seed), config, last_step=start)
            for seed, config in configs.items()
        }
        profile = folder.run(seeds[0]).profile
        advance(
            program.put(program.arrangement.join(states)),
            group,
            log=stack.enter_context(MetricsLog(folder.metrics_file, writers, last_step=start)),
            evaluate=evaluate,
            interrupts=interrupts,
            profiler=stack.enter_context(Profiler(train.profile, profile, start=start)),
            throughput=Throughput.of_run(
                config,
                program.mesh,
                flops_per_step=flops_per_step,
                tokens_per_step=tokens_per_step,
                runs=len(seeds),
            ),
        )


def _check(config: ConfigDict, seeds: Sequence[int], at_once: int | None) -> None:
    """Refuses what cannot be trained as many seeds."""
    if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0 or max(seeds) >= 1 << 32:
        raise ValueError(f"seeds = {list(seeds)}: expected different seeds, 0 <= seed < 2**32")
    if at_once is not None and at_once < 1:
        raise ValueError(f"--seeds_at_once {at_once}: expected 1 or more")
    mesh = sharding.make_mesh(**config.mesh)
    for axis in MESH_AXES[1:]:
        if mesh.shape[axis] > 1:
            raise ValueError(
                f"mesh.{axis} = {config.mesh[axis]} with --seeds: every seed lies whole on one "
                "device; expected 1, or one run after another without --seeds"
            )
    if jax.process_count() > 1:
        raise ValueError(
            f"--seeds with {jax.process_count()} processes: expected one; start each process with "
            "seeds of its own"
        )
