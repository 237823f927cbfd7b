"""The training step of a config as the trainer makes it, in shapes and shardings alone."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from jax.sharding import Mesh

from roam_jax.budget.program import Program, read_program
from roam_jax.contracts import Params, Task
from roam_jax.evaluate.parameters import stored_parameters
from roam_jax.tasks.sketch import Sketch, sketch
from roam_jax.train import names, sharding
from roam_jax.train.optim import make_optimizer
from roam_jax.train.state import TrainState, abstract_params, abstract_state, partition
from roam_jax.train.step import make_gradients, make_train_step
from roam_jax.train.step_options import StepOptions

# Tasks whose networks compute in bfloat16 on accelerators (`train.dtype = "auto"`).
HALF = ("graft", "video")


@dataclasses.dataclass(frozen=True)
class AbstractStep:
    """A step that nothing was allocated for.

    Args:
        config: of the run.
        sketch: what is built of it.
        task: the trainer's view, on encoded videos where the run has them.
        mesh: that it runs on.
        state, frozen, batch: its arguments, shapes with shardings.
    """

    config: ml_collections.ConfigDict
    sketch: Sketch
    task: Task
    mesh: Mesh
    state: TrainState
    frozen: Params
    batch: Mapping[str, jax.ShapeDtypeStruct]

    @property
    def rounds(self) -> int:
        """Rounds of the largest step."""
        return self.config.loop.rounds

    @property
    def rows(self) -> int:
        """Rows of a batch that each device holds; of a clone's bodies all together."""
        return self.config.train.batch_size // sharding.batch_shards(self.mesh)

    def argument_bytes(self) -> dict[str, int]:
        """Bytes on each device that live through the step, by what they are."""
        held = {
            "frozen": self.frozen,
            "trained": self.state.trainable,
            "optimizer": self.state.opt_state,
            "average": self.state.ema,
            "counters": (self.state.step, self.state.guard),
            "batch": dict(self.batch),
        }
        return {name: _bytes_on_device(tree) for name, tree in held.items()}

    def trace(self) -> jax.stages.Traced:
        """The step on its mesh.

        Raises:
            ValueError: heads do not divide, or edges of the canvas cannot be split over devices.
        """
        options = StepOptions.from_config(self.config)
        tx, schedule = _optimizer(self.config, self.task)
        step = make_train_step(
            self.task, tx, schedule, seed=self.config.seed, like=self.state, options=options
        )
        return step.trace(self.state, self.frozen, self.batch, rounds=self.rounds)


def accelerator_config(
    config: ml_collections.ConfigDict, mesh: Mapping[str, int]
) -> ml_collections.ConfigDict:
    """A copy of a config with the dtype that "auto" means on accelerators, and a mesh.

    Args:
        config: the whole config.
        mesh: devices along some axes; the others get one, and "data" the rest where it is left out.
    """
    config = copy.deepcopy(config)
    with config.unlocked():
        if config.train.dtype == "auto" and config.train.task in HALF:
            config.train.dtype = "bfloat16"
        if mesh:
            for axis in config.mesh:
                config.mesh[axis] = mesh.get(axis, -1 if axis == "data" else 1)
    return config


def abstract_step(config: ml_collections.ConfigDict, mesh: Mesh) -> AbstractStep:
    """The step that `loop.run` would compile.

    Args:
        config: the whole config, from `accelerator_config`.
        mesh: of devices that need not be there.

    Raises:
        FileNotFoundError, ValueError: a value of the config, a rule or the batch does not fit.
    """
    sketched = sketch(config)
    task = _run_task(sketched)
    options = StepOptions.from_config(config)
    batch = sharding.batch_shapes(task.batch_spec, mesh)
    options.check_rows(task.batch_spec, shards=sharding.batch_shards(mesh))
    stored = stored_parameters(task)
    params = names.flatten(abstract_params(task, mesh, rules=sketched.rules))
    params = {name: leaf.update(dtype=stored[name].dtype) for name, leaf in params.items()}
    trainable, frozen = partition(names.unflatten(params), task.trainable)
    tx, _ = _optimizer(config, task)
    state = abstract_state(trainable, tx, mesh, options)
    return AbstractStep(config, sketched, task, mesh, state, frozen, batch)


def gradient_program(config: ml_collections.ConfigDict, *, rows: int) -> Program:
    """Loss and gradients of the rows of one device, traced without any mesh.

    Args:
        config: the whole config, from `accelerator_config`.
        rows: of one device; its parts (`train.accumulate`) are those of the config.
    """
    config = copy.deepcopy(config)
    with config.unlocked():
        config.train.batch_size = rows
        for axis in config.mesh:
            config.mesh[axis] = 1
    task = _run_task(sketch(config))
    gradients = make_gradients(task, config.train.accumulate)
    trainable, frozen = partition(names.unflatten(stored_parameters(task)), task.trainable)
    batch = {n: jax.ShapeDtypeStruct(x.shape, x.dtype) for n, x in task.batch_spec.items()}
    key = jax.eval_shape(jax.random.key, 0)
    step = jax.ShapeDtypeStruct((), jnp.int32)

    def loss_and_gradients(trainable, frozen, batch, rng, step):
        return gradients(trainable, frozen, batch, rng, rounds=config.loop.rounds, step=step)

    return read_program(jax.make_jaxpr(loss_and_gradients)(trainable, frozen, batch, key, step))


def _run_task(sketched: Sketch) -> Task:
    """The task on what a run's batches bring: frames, or latents that were stored before."""
    data = sketched.config.data
    encoded = sketched.has_backbone and data.latents
    return sketched.encoded_task if encoded else sketched.task


def _optimizer(config: ml_collections.ConfigDict, task: Task) -> tuple[Any, Any]:
    return make_optimizer(config.optim, steps=config.train.steps, no_decay=task.no_decay)


def _bytes_on_device(tree: Any) -> int:
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )
