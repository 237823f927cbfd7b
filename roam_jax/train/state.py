"""What a step changes, and how it comes to be: created sharded, loaded without a second copy.

Shapes come from `eval_shape(task.init)`; what no file provides is made by one `jit` whose outputs
are already sharded, and the rest goes from its (memory-mapped) file to the devices leaf by leaf.
The pattern is openpi's. Frozen parameters are no part of the state: a step does not change them,
so they are neither donated nor saved, and they keep the dtype of their file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding

from roam_jax.contracts import Params, Task
from roam_jax.spelling import nearest
from roam_jax.train import names, sharding
from roam_jax.train.averages import start_guard
from roam_jax.train.step_options import PLAIN, StepOptions

# No run reaches this step, so that no training step shares its key with the initialisation.
INIT_STEP = np.uint32(2**32 - 1)


@jax.tree_util.register_pytree_with_keys_class
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that a step changes, and exactly what a checkpoint holds.

    What is empty is no part of the tree: a run that keeps no average has the same checkpoints as
    before there were any.

    Args:
        step: number of steps done, () int32; a refused update counts.
        trainable: tree of the parameters that train, float32.
        opt_state: the optimizer's state of `trainable`.
        ema: average of `trainable`, a tree like it; {} = none is kept.
        guard: what spikes are told by, "mean_norm" () float32 and "accepted" () int32; {} = none.
    """

    step: Any
    trainable: Params
    opt_state: Any
    ema: Params = dataclasses.field(default_factory=dict)
    guard: Params = dataclasses.field(default_factory=dict)

    def tree_flatten_with_keys(self) -> tuple[list[tuple[Any, Any]], tuple[str, ...]]:
        """Fields that hold something, by name."""
        always = ("step", "trainable", "opt_state")
        empty = [n for n in ("ema", "guard") if isinstance(x := getattr(self, n), dict) and not x]
        kept = (*always, *(name for name in ("ema", "guard") if name not in empty))
        return [(jax.tree_util.GetAttrKey(name), getattr(self, name)) for name in kept], kept

    @classmethod
    def tree_unflatten(cls, kept: tuple[str, ...], children: Sequence[Any]) -> TrainState:
        """Inverse of `tree_flatten_with_keys`."""
        return cls(**dict(zip(kept, children, strict=True)))

    def replace(self, **changes: Any) -> TrainState:
        """The same with other fields."""
        return dataclasses.replace(self, **changes)


def partition(params: Params, trainable: Sequence[str]) -> tuple[Params, Params]:
    """Split a tree by name into (trainable, frozen).

    Args:
        params: nested dict.
        trainable: regular expressions, searched in "/"-joined names; what matches trains.

    Raises:
        ValueError: a pattern that matches no parameter, or no pattern at all.
    """
    if not trainable:
        raise ValueError("Task.trainable is empty: no parameter would train")
    leaves = names.flatten(params)
    names.require_matches(trainable, leaves, what="Task.trainable")
    trains, frozen = {}, {}
    for name, leaf in leaves.items():
        (trains if names.matches(name, trainable) else frozen)[name] = leaf
    return names.unflatten(trains), names.unflatten(frozen)


def merge(trainable: Params, frozen: Params) -> Params:
    """Inverse of `partition`."""
    return names.unflatten({**names.flatten(trainable), **names.flatten(frozen)})


def abstract_params(task: Task, mesh: Mesh, *, rules: sharding.Rules) -> Params:
    """Shape, storage dtype and sharding of every parameter; nothing is allocated.

    Args:
        task: what is trained; trainable parameters are stored as float32.
        mesh: the device mesh.
        rules: sharding rules, see `sharding.match_rules`.

    Raises:
        ValueError: patterns or rules that do not fit the tree.
    """
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    names.require_matches(task.no_decay, names.flatten(shapes), what="Task.no_decay")
    trainable, frozen = partition(shapes, task.trainable)
    stored = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.float32), trainable)
    specs = names.flatten(sharding.match_rules(rules, shapes, axis_sizes=mesh.shape))
    leaves = {
        name: leaf.update(sharding=NamedSharding(mesh, specs[name]))
        for name, leaf in names.flatten(merge(stored, frozen)).items()
    }
    return names.unflatten({name: leaves[name] for name in specs})


def load_pretrained(task: Task, params: Params) -> dict[str, Any]:
    """The arrays that come from files, by name.

    Args:
        task: what is trained.
        params: tree of shapes, from `abstract_params`.

    Raises:
        ValueError: names that are unexpected, have another shape, or are frozen and in no file
            (random weights that never train are always a mistake), all in one message.
    """
    if task.pretrained is None:
        return {}
    loaded, expected = names.flatten(task.pretrained()), names.flatten(params)
    problems = []
    for name, leaf in loaded.items():
        if name not in expected:
            near = nearest(name, expected)
            problems.append(f"{name} {tuple(leaf.shape)} is unexpected (nearest: {near})")
        elif tuple(leaf.shape) != expected[name].shape:
            problems.append(
                f"{name} has shape {tuple(leaf.shape)}, expected {expected[name].shape}"
            )
    problems += [
        f"{name} {leaf.shape} is frozen and missing"
        for name, leaf in expected.items()
        if name not in loaded and not names.matches(name, task.trainable)
    ]
    if problems:
        raise ValueError("pretrained parameters: " + "; ".join(problems))
    return loaded


def create_params(
    task: Task, wanted: Params, *, pretrained: Mapping[str, Any], seed: int
) -> Params:
    """Parameters on their devices, each created or loaded with its sharding.

    Args:
        task, wanted, pretrained: as for `creator`.
        seed: of the initialisation; a parameter does not depend on which others are wanted.

    Returns:
        A tree like `wanted`. Loaded frozen parameters have `task.frozen_dtype`.
    """
    return creator(task, wanted, pretrained=pretrained)(seed)


def creator(
    task: Task, wanted: Params, *, pretrained: Mapping[str, Any]
) -> Callable[[int], Params]:
    """`create_params` as a function of the seed, compiled once for all of them.

    Args:
        task: what is trained.
        wanted: the part of `abstract_params` to create.
        pretrained: from `load_pretrained`.
    """
    leaves = names.flatten(wanted)
    fresh = {name: leaf for name, leaf in leaves.items() if name not in pretrained}

    def init(rng: jax.Array) -> dict[str, jax.Array]:
        made = names.flatten(task.init(rng))
        return {name: made[name].astype(leaf.dtype) for name, leaf in fresh.items()}

    shardings = {name: leaf.sharding for name, leaf in fresh.items()}
    init = jax.jit(init, out_shardings=shardings)

    def create(seed: int) -> Params:
        key = jax.random.fold_in(jax.random.key(seed), INIT_STEP)
        created = init(key) if fresh else {}
        for name in [name for name in leaves if name not in fresh]:  # the same order on all hosts
            array = pretrained[name]
            if names.matches(name, task.trainable):
                array = np.asarray(array, np.float32)
            elif task.frozen_dtype is not None:  # leaf by leaf: never a second copy of the tree
                array = np.asarray(array).astype(task.frozen_dtype)
            created[name] = sharding.place(array, leaves[name].sharding)
        return names.unflatten({name: created[name] for name in leaves})

    return create


def abstract_state(
    trainable: Params,
    tx: optax.GradientTransformation,
    mesh: Mesh,
    options: StepOptions = PLAIN,
) -> TrainState:
    """Shapes and shardings of the state; moments and average are sharded as their parameters.

    Args:
        trainable: the part of `abstract_params` that trains.
        tx: the optimizer.
        mesh: the device mesh.
        options: of the step.
    """

    def on_mesh(leaf: jax.ShapeDtypeStruct, where: jax.sharding.Sharding) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)

    everywhere = sharding.replicated(mesh)
    return TrainState(
        step=jax.ShapeDtypeStruct((), jnp.int32, sharding=everywhere),
        trainable=trainable,
        opt_state=optax.tree.map_params(
            tx,
            lambda leaf, param: on_mesh(leaf, param.sharding),
            jax.eval_shape(tx.init, trainable),
            trainable,
            transform_non_params=lambda leaf: on_mesh(leaf, everywhere),
        ),
        ema=trainable if options.ema_decay else {},
        guard=jax.tree.map(
            lambda leaf: on_mesh(leaf, everywhere),
            jax.eval_shape(lambda: start_guard(options.spike_factor)),
        ),
    )


def create_state(
    trainable: Params, tx: optax.GradientTransformation, *, like: TrainState
) -> TrainState:
    """The state before the first step, sharded as `like`, and with what `like` has.

    Args:
        trainable: the parameters.
        tx: the optimizer.
        like: from `abstract_state`.
    """
    shardings = jax.tree.map(lambda leaf: leaf.sharding, like)

    def start(trainable: Params) -> tuple[Any, Params]:
        # A copy: what a step is given is donated, so no buffer may be in it twice.
        return tx.init(trainable), jax.tree.map(jnp.copy, trainable) if like.ema != {} else {}

    where = shardings.opt_state, shardings.ema
    opt_state, ema = jax.jit(start, out_shardings=where)(trainable)
    return TrainState(
        step=jax.device_put(np.int32(0), shardings.step),
        trainable=trainable,
        opt_state=opt_state,
        ema=ema,
        guard=jax.tree.map(
            lambda leaf, where: jax.device_put(np.zeros(leaf.shape, leaf.dtype), where),
            like.guard,
            shardings.guard,
        ),
    )
