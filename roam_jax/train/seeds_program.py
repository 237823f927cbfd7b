"""The compiled step of a number of seeds, and how many of them fit in memory."""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from roam_jax.contracts import Params, Task
from roam_jax.train import optim, sharding, state
from roam_jax.train.compiling import compile_steps
from roam_jax.train.curriculum import Curriculum
from roam_jax.train.group import Stacked, TrainStep
from roam_jax.train.memory import available_bytes, needed_bytes
from roam_jax.train.step import SEEDS, make_seeds_step
from roam_jax.train.step_options import StepOptions


@dataclasses.dataclass(frozen=True)
class Program:
    """What trains a number of seeds at once.

    Args:
        arrangement: of their arrays.
        mesh: devices that they are spread over.
        curriculum: of them all.
        one: the state of one of them: shapes, on the first device.
        like: the state of them all: shapes and shardings.
        batches: the same of their batches.
        steps: number of rounds -> compiled step of (state, frozen, batch, seeds).
        create: the first state of a seed.
        create_frozen: from seeds to the frozen parameters of them all.
        compile_seconds: that compiling `steps` took.
    """

    arrangement: Stacked
    mesh: Mesh
    curriculum: Curriculum
    one: state.TrainState
    like: state.TrainState
    batches: Mapping[str, jax.ShapeDtypeStruct]
    steps: Mapping[int, jax.stages.Compiled]
    create: Callable[[int], state.TrainState]
    create_frozen: Callable[[Sequence[int]], Params]
    compile_seconds: float

    def put(self, tree: Any) -> Any:
        """Stacked host arrays on the devices of their seeds."""
        return jax.device_put(tree, NamedSharding(self.mesh, PartitionSpec(SEEDS)))

    def train_steps(self, seeds: Sequence[int]) -> dict[int, TrainStep]:
        """The steps for these seeds."""
        placed = self.put(np.array(seeds, np.uint32))
        return {
            rounds: lambda state, frozen, batch, step=step: step(state, frozen, batch, placed)
            for rounds, step in self.steps.items()
        }


class Programs:
    """Makes programs for any number of seeds; what is compiled once is kept.

    Args:
        task, config, rules: as for `run_seeds`.
        curriculum: number of rounds of every step.

    Attributes:
        one: the state of one seed: shapes, on the first device.
    """

    def __init__(
        self, task: Task, *, config: ConfigDict, curriculum: Curriculum, rules: sharding.Rules
    ):
        self._task, self._curriculum = task, curriculum
        self._options = StepOptions.from_config(config)
        steps = config.train.steps
        optimizer = optim.make_optimizer(config.optim, steps=steps, no_decay=task.no_decay)
        self._tx, self._schedule = optimizer
        mesh = sharding.make_mesh(1, 1, devices=jax.devices()[:1])
        self._batch = sharding.batch_shapes(task.batch_spec, mesh)
        self._options.check_rows(task.batch_spec, shards=1)
        params = state.abstract_params(task, mesh, rules=rules)
        pretrained = state.load_pretrained(task, params)
        trainable, frozen = state.partition(params, task.trainable)
        self.one = state.abstract_state(trainable, self._tx, mesh, self._options)
        self._create_trainable = state.creator(task, trainable, pretrained=pretrained)
        self._create_frozen = state.creator(task, frozen, pretrained=pretrained)
        # What is frozen and made from a seed differs between runs; what a file gives does not.
        shared = task.pretrained is not None or not jax.tree.leaves(frozen)
        self._frozen = self._create_frozen(0) if shared else frozen
        self._shared_frozen = shared
        self._compiled: dict[tuple[int, int], jax.stages.Compiled] = {}
        self._seconds: collections.Counter[int] = collections.Counter()

    def of(self, count: int, *, start: int) -> Program:
        """The program of so many seeds, from a step on."""
        mesh = _spread(count)
        like = self._stacked(self.one, count, mesh)
        batches = self._stacked(self._batch, count, mesh)
        frozen = self._frozen
        if self._shared_frozen:
            everywhere = sharding.replicated(mesh)
            frozen = jax.tree.map(
                lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere),
                frozen,
            )
        else:
            frozen = self._stacked(frozen, count, mesh)
        step = make_seeds_step(
            self._task,
            self._tx,
            self._schedule,
            mesh=mesh,
            shared_frozen=self._shared_frozen,
            options=self._options,
        )
        seeds = jax.ShapeDtypeStruct(
            (count,), np.uint32, sharding=NamedSharding(mesh, PartitionSpec(SEEDS))
        )
        what, remaining = f"the training step of {count} seeds", self._curriculum.remaining(start)
        new = [rounds for rounds in remaining if (count, rounds) not in self._compiled]
        made = compile_steps(step, like, frozen, batches, seeds, rounds=new, what=what)
        self._compiled |= {(count, rounds): one for rounds, one in made.steps.items()}
        self._seconds[count] += made.seconds
        return Program(
            arrangement=Stacked(count, self._shared_frozen),
            mesh=mesh,
            curriculum=self._curriculum,
            one=self.one,
            like=like,
            batches=batches,
            steps={rounds: self._compiled[count, rounds] for rounds in remaining},
            create=self.create,
            create_frozen=functools.partial(self._frozen_of, mesh=mesh),
            compile_seconds=self._seconds[count],
        )

    def fitting(self, count: int, *, at_once: int | None, start: int) -> int:
        """How many of `count` seeds are trained at once.

        Raises:
            ValueError: `at_once` of them, or not even one, fit in memory.
        """
        wanted = min(count, at_once or count)
        while True:
            program = self.of(wanted, start=start)
            needed = max(map(needed_bytes, program.steps.values()))
            there = available_bytes(program.mesh.devices.ravel().tolist())
            logging.info(
                "%d seeds at once need %s on each of %d devices, which has %s",
                *(wanted, _gigabytes(needed), program.mesh.size, _gigabytes(there)),
            )
            if needed <= there:
                return wanted
            problem = f"{needed:,} bytes needed, {there:,} available"
            if at_once is not None:
                raise ValueError(
                    f"--seeds_at_once {at_once}: a step of {wanted} seeds does not fit in memory "
                    f"({problem}); expected fewer, or to leave it out, for as many as fit"
                )
            if wanted == 1:
                raise ValueError(
                    f"not even one seed fits in memory ({problem}); expected a smaller model or "
                    "train.batch_size"
                )
            wanted = -(-wanted // 2)

    def create(self, seed: int) -> state.TrainState:
        """The first state of one seed, on the first device."""
        return state.create_state(self._create_trainable(seed), self._tx, like=self.one)

    def _frozen_of(self, seeds: Sequence[int], *, mesh: Mesh) -> Params:
        if self._shared_frozen:
            return jax.device_put(self._frozen, sharding.replicated(mesh))
        made = Stacked(len(seeds), False).join([self._create_frozen(seed) for seed in seeds])
        return jax.device_put(made, NamedSharding(mesh, PartitionSpec(SEEDS)))

    @staticmethod
    def _stacked(tree: Any, count: int, mesh: Mesh) -> Any:
        """Shapes with a first axis over the seeds."""
        where = NamedSharding(mesh, PartitionSpec(SEEDS))
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((count, *leaf.shape), leaf.dtype, sharding=where),
            tree,
        )


def _spread(count: int) -> Mesh:
    """The most devices that divide so many seeds evenly."""
    devices = jax.devices()
    used = max(n for n in range(1, len(devices) + 1) if count % n == 0)
    return jax.make_mesh((used,), (SEEDS,), devices=devices[:used], axis_types=(AxisType.Auto,))


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB"
