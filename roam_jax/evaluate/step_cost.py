"""What a training step costs, traced and not run: FLOPs, and bytes on a device.

The trace is of the task's real loss and its gradient, so remat, frozen weights and the number of
rounds all show. Nothing is allocated: a 2B model takes seconds.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from jax.sharding import PartitionSpec

from roam_jax.axes import BATCH_AXES, MESH_AXES
from roam_jax.contracts import Task
from roam_jax.evaluate.flops import count_flops
from roam_jax.evaluate.parameters import Stored, stored_parameters
from roam_jax.train import names, sharding
from roam_jax.train.optim import make_optimizer
from roam_jax.train.state import abstract_params, abstract_state, merge, partition
from roam_jax.train.step import make_train_step
from roam_jax.train.step_options import StepOptions

# Pass -> the scopes of its products; the first expression found decides. JAX's own scope names.
PASSES = {"recomputed": "rematted_computation", "backward": r"transpose\(", "forward": ""}
# Part -> the same, by flax module names.
PARTS = {
    "VAE": r"\bVAE\b",
    "scene": r"\bscene\b",
    "projections": r"/attn1?/to_(q|k|v|out)\b",
    "attention": r"/attn1?\b",
    "feed-forward": r"/ff/",
    "modulation": r"/norm\d/linear\b",
    "encoders, decoders": r"/(graft|cells|decoders)\b",
    "embedding, output": "",
}


@dataclasses.dataclass(frozen=True)
class StepTrace:
    """What one training step computes and keeps.

    Args:
        rounds: number of rounds it was traced for.
        passes: FLOPs of the forward pass, of what remat computes again, and of the backward pass.
        parts: the same FLOPs by part of the network.
        kept: bytes that the backward pass keeps from the forward one, over the whole batch; what
            it recomputes block by block comes on top.
    """

    rounds: int
    passes: Mapping[str, int]
    parts: Mapping[str, int]
    kept: int

    @property
    def flops(self) -> int:
        """FLOPs of the step."""
        return sum(self.passes.values())


def trace_step(task: Task, stored: Stored, *, rounds: int) -> StepTrace:
    """Traces loss and gradient of one batch.

    Args:
        task: what is trained.
        stored: its parameters, from `parameters.stored_parameters`.
        rounds: number of rounds.
    """

    def step(trainable, frozen, batch, rng):
        inputs = {id(leaf) for leaf in jax.tree.leaves((trainable, frozen, batch))}
        loss, pull, _ = jax.vjp(
            lambda trained: task.loss(merge(trained, frozen), batch, rng, rounds),
            trainable,
            has_aux=True,
        )
        # The pullback is a tree of all that it needs: parameters, and what the forward pass made.
        kept = {id(leaf): leaf for leaf in jax.tree.leaves(pull) if id(leaf) not in inputs}
        return pull(jnp.ones_like(loss)), list(kept.values())

    trainable, frozen = partition(names.unflatten(stored), task.trainable)
    batch = _abstract(task.batch_spec)
    key = jax.eval_shape(jax.random.key, 0)
    jaxpr, (_, kept) = jax.make_jaxpr(step, return_shape=True)(trainable, frozen, batch, key)
    flops = count_flops(jaxpr)
    return StepTrace(
        rounds=rounds,
        passes=_grouped(flops, PASSES),
        parts=_grouped(flops, PARTS),
        kept=sum(leaf.size * leaf.dtype.itemsize for leaf in kept),
    )


def trace_flops(function: Callable[..., Any], *args: Any) -> int:
    """FLOPs of a function of arrays, or of trees of shapes."""
    return count_flops(jax.make_jaxpr(function)(*args)).total()


def _grouped(flops: Mapping[str, int], patterns: Mapping[str, str]) -> dict[str, int]:
    """FLOPs by the first pattern that is found in their scope, in the order of `patterns`."""
    groups: collections.Counter[str] = collections.Counter()
    for scope, count in flops.items():
        groups[next(name for name, regex in patterns.items() if re.search(regex, scope))] += count
    return {name: groups[name] for name in patterns if groups[name]}


def _abstract(spec: Mapping[str, Any]) -> dict[str, jax.ShapeDtypeStruct]:
    return {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in spec.items()}


def mesh_sizes(mesh: ml_collections.ConfigDict) -> dict[str, int]:
    """Devices along each axis of the mesh that a config asks for; -1, the rest, counts as one."""
    return {axis: 1 if mesh[axis] == -1 else mesh[axis] for axis in MESH_AXES}


def device_bytes(
    task: Task, stored: Stored, *, rules: sharding.Rules, axis_sizes: Mapping[str, int]
) -> dict[str, int]:
    """Bytes on each device of what lies there through the whole step.

    Args:
        task: what is trained.
        stored: its parameters.
        rules: sharding rules.
        axis_sizes: devices along each mesh axis.

    Returns:
        "frozen", "trained" (float32), "gradients", "moments" (Adam's two) and "batch".

    Raises:
        ValueError: rules do not fit, or the batch does not divide by the devices along
            `BATCH_AXES`.
    """
    specs = sharding.match_rules(rules, names.unflatten(stored), axis_sizes=axis_sizes)
    held = {"frozen": 0, "trained": 0}
    for name, spec in names.flatten(specs).items():
        size = stored[name].size * stored[name].dtype.itemsize // _shards(spec, axis_sizes)
        held["trained" if names.matches(name, task.trainable) else "frozen"] += size
    devices = math.prod(axis_sizes[axis] for axis in BATCH_AXES)
    rows = next(iter(task.batch_spec.values())).shape[0]
    if rows % devices:
        raise ValueError(
            f"train.batch_size = {rows} does not divide by mesh.data x mesh.fsdp = {devices} "
            "devices"
        )
    batch = sum(spec.nbytes for spec in task.batch_spec.values()) // devices
    trained = held["trained"]
    return {**held, "gradients": trained, "moments": 2 * trained, "batch": batch}


def _shards(spec: PartitionSpec, axis_sizes: Mapping[str, int]) -> int:
    """Into how many pieces a spec splits its parameter."""
    entries = [(entry,) if isinstance(entry, str) else entry for entry in spec if entry]
    return math.prod(axis_sizes[axis] for axes in entries for axis in axes)


def compiled_bytes(
    task: Task, config: ml_collections.ConfigDict, *, rules: sharding.Rules, rounds: int
) -> dict[str, int]:
    """Memory of the compiled step on one device of this machine, by XLA's own account.

    Takes a compilation, seconds to minutes, but no arrays.

    Args:
        task: what is trained.
        config: read are `seed`, `optim`, and of `train` steps, accumulate and spike_factor.
        rules: sharding rules.
        rounds: number of rounds.

    Returns:
        "arguments" (parameters, moments, batch) and "temporaries".
    """
    mesh = sharding.make_mesh(1, 1, devices=jax.devices()[:1])
    tx, schedule = make_optimizer(config.optim, steps=config.train.steps, no_decay=task.no_decay)
    options = StepOptions.from_config(config)
    stored = stored_parameters(task)
    params = {
        name: leaf.update(dtype=stored[name].dtype)
        for name, leaf in names.flatten(abstract_params(task, mesh, rules=rules)).items()
    }
    trainable, frozen = partition(names.unflatten(params), task.trainable)
    state = abstract_state(trainable, tx, mesh, options)
    step = make_train_step(task, tx, schedule, seed=config.seed, like=state, options=options)
    batch = sharding.batch_shapes(task.batch_spec, mesh)
    compiled = step.lower(state, frozen, batch, rounds=rounds).compile()
    memory = compiled.memory_analysis()
    return {
        "arguments": memory.argument_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
    }
