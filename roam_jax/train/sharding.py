"""The device mesh, and which parameter is split over which of its axes.

Arrays carry their sharding and XLA places the collectives: what used to be `pjit` is `jax.jit` on
arrays with a `NamedSharding`. Which parameter is split is an ordered list of (regular expression,
spec) rules, as in big_vision and MaxText; the first rule found in a name decides. A spec may name
what the parameter's axes hold (`logical.axes`), and the table of logical axes says what is split.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from roam_jax.axes import BATCH_AXES, MESH_AXES, SEQUENCE, TENSOR
from roam_jax.contracts import Params
from roam_jax.logical import HEADS, Axes, shard_largest
from roam_jax.train import names
from roam_jax.train.shares import share_of

# From (shape, size of each mesh axis) to the spec of one parameter.
SpecFn = Callable[[tuple[int, ...], Mapping[str, int]], PartitionSpec]
Rules = Sequence[tuple[str, PartitionSpec | SpecFn]]


def make_mesh(
    data: int = -1,
    fsdp: int = 1,
    sequence: int = 1,
    tensor: int = 1,
    *,
    devices: Sequence[jax.Device] | None = None,
) -> Mesh:
    """Mesh with the axes `roam_jax.axes.MESH_AXES`.

    Args:
        data: devices along "data"; parameters are copied along it. -1 = the rest.
        fsdp: devices along "fsdp"; parameters are split along it, and the batch as along "data".
        sequence: devices along "sequence"; the cells of a sequence are split along it.
        tensor: devices along "tensor"; heads and hidden units are split along it.
        devices: the devices to use; None = all of them.

    Raises:
        ValueError: the product of the sizes is not the number of devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    count = len(devices)
    asked = dict(zip(MESH_AXES, (data, fsdp, sequence, tensor), strict=True))
    sizes = tuple(asked.values())
    known = math.prod(size for size in sizes if size != -1)
    if sizes.count(-1) == 1 and known > 0 and count % known == 0:
        sizes = tuple(count // known if size == -1 else size for size in sizes)
    if min(sizes) < 1 or math.prod(sizes) != count:
        near = _nearest_mesh(tuple(asked.values()), count)
        raise ValueError(
            f"{_spelt(asked)}: expected a product of {count}, the number of devices (one may be "
            f"-1, the rest); nearest that works: {_spelt(dict(zip(MESH_AXES, near, strict=True)))}"
        )
    return jax.make_mesh(
        sizes, MESH_AXES, devices=devices, axis_types=(AxisType.Auto,) * len(MESH_AXES)
    )


def _spelt(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"mesh.{axis} = {size}" for axis, size in sizes.items())


def _nearest_mesh(sizes: tuple[int, ...], count: int) -> tuple[int, ...]:
    """The sizes with product `count` that are nearest in ratio; those below 1 are free."""

    def distance(mesh: tuple[int, ...]) -> float:
        pairs = zip(mesh, sizes, strict=True)
        return math.fsum(abs(math.log(new / old)) for new, old in pairs if old >= 1)

    return min(_factorings(count, len(sizes)), key=distance)


def _factorings(count: int, factors: int) -> Iterator[tuple[int, ...]]:
    """All ways to write a number as a product of so many ordered factors."""
    if factors == 1:
        yield (count,)
        return
    for first in range(1, count + 1):
        if count % first == 0:
            for rest in _factorings(count // first, factors - 1):
                yield first, *rest


# What to pass where nothing better is known of a tree.
DEFAULT_RULES: Rules = ((".*", shard_largest),)


def match_rules(rules: Rules, shapes: Params, *, axis_sizes: Mapping[str, int]) -> Params:
    """The PartitionSpec of each parameter, by the first rule found in its name.

    Args:
        rules: (regular expression, spec), in order. The spec is a `PartitionSpec`, which must
            divide the parameter, or a function that looks at the shape: `logical.axes(...)`,
            `logical.shard_largest`.
        shapes: tree of anything with a `shape`.
        axis_sizes: devices along each mesh axis, `mesh.shape`.

    Returns:
        A tree like `shapes`, of PartitionSpecs.

    Raises:
        ValueError: parameters that no rule matches, rules that decide no parameter, specs that do
            not fit their parameter, and mesh axes over which nothing of this model is split, all
            in one message.
    """
    specs, problems, used = {}, [], set()
    for name, leaf in names.flatten(shapes).items():
        index = next((i for i, (regex, _) in enumerate(rules) if re.search(regex, name)), None)
        if index is None:
            problems.append(f"parameter {name} {leaf.shape} is matched by no rule")
            continue
        used.add(index)
        regex, rule = rules[index]
        shape, said = tuple(leaf.shape), f"rule {regex!r} -> {{}} on parameter {name} {leaf.shape}"
        try:
            spec = rule if isinstance(rule, PartitionSpec) else rule(shape, axis_sizes)
        except ValueError as error:
            problems.append(f"{said.format(rule)}: {error}")
            continue
        if misfit := _misfit(spec, shape, axis_sizes):
            result = f"{rule} = {spec}" if isinstance(rule, Axes) else spec
            problems.append(f"{said.format(result)}: {misfit}")
        specs[name] = spec
    problems += [
        f"rule {regex!r} decides no parameter"
        for i, (regex, _) in enumerate(rules)
        if i not in used
    ]
    problems += _idle_axes(rules, specs.values(), axis_sizes)
    if problems:
        raise ValueError("sharding rules: " + "; ".join(problems))
    return names.unflatten(specs)


def _idle_axes(
    rules: Rules, specs: Iterable[PartitionSpec], axis_sizes: Mapping[str, int]
) -> list[str]:
    """Mesh axes that ask for what the model of these rules has not: heads, cells in a sequence."""
    if any(isinstance(rule, Axes) and HEADS in rule.names for _, rule in rules):
        return []
    named = {axis for spec in specs for entry in spec for axis in _axes_of(entry)}
    return [
        f"mesh.{axis} = {axis_sizes[axis]}: nothing of this model is split along it (it has no "
        "attention over cells); expected 1"
        for axis in (SEQUENCE, TENSOR)
        if axis_sizes.get(axis, 1) > 1 and axis not in named
    ]


def _axes_of(entry: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """The mesh axes that an entry of a spec names."""
    return () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry)


def _misfit(spec: PartitionSpec, shape: tuple[int, ...], axis_sizes: Mapping[str, int]) -> str:
    """Why the spec does not fit the shape; empty where it does."""
    if len(spec) > len(shape):
        return f"the spec has {len(spec)} axes, the parameter {len(shape)}"
    for i, entry in enumerate(spec):
        axes = _axes_of(entry)
        unknown = [axis for axis in axes if axis not in axis_sizes]
        if unknown:
            return f"mesh axis {unknown[0]!r} is none of {tuple(axis_sizes)}"
        devices = math.prod(axis_sizes[axis] for axis in axes)
        if shape[i] % devices:
            along = " x ".join(f"mesh.{axis}" for axis in axes)
            return f"axis {i} of size {shape[i]} does not divide by {along} = {devices} devices"
    return ""


def replicated(mesh: Mesh) -> NamedSharding:
    """A copy on each device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Axis 0 split over `BATCH_AXES`: fsdp devices see different rows as well."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def batch_shards(mesh: Mesh) -> int:
    """Parts that the rows of a batch are split into."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def batch_shapes(batch_spec: Mapping[str, Any], mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """The batch that a step is compiled for.

    Args:
        batch_spec: name -> `ArraySpec` of the global batch.
        mesh: the device mesh.

    Raises:
        ValueError: the batch does not divide by the devices along `BATCH_AXES`.
    """
    rows = {spec.shape[0] for spec in batch_spec.values()}
    shards = batch_shards(mesh)
    if len(rows) != 1 or min(rows) % shards:
        raise ValueError(
            f"train.batch_size = {', '.join(map(str, sorted(rows)))} does not divide by "
            f"mesh.data x mesh.fsdp = {shards} devices"
        )
    sharding = batch_sharding(mesh)
    return {
        name: jax.ShapeDtypeStruct(spec.shape, spec.dtype, sharding=sharding)
        for name, spec in batch_spec.items()
    }


def place(array: np.ndarray, where: jax.sharding.Sharding) -> jax.Array:
    """A host array on its devices, which may be those of several hosts that all have it.

    Each host puts its own shards; `jax.device_put` would send the array around to compare it.
    """
    if where.is_fully_addressable:
        return jax.device_put(array, where)
    return jax.make_array_from_callback(array.shape, where, lambda index: array[index])


def put_batch(
    batch: Mapping[str, Any], shapes: Mapping[str, jax.ShapeDtypeStruct]
) -> dict[str, jax.Array]:
    """A host batch on the devices, each with its rows.

    Args:
        batch: name -> host array; of several processes, each brings the rows that its devices need,
            see `shares.share_of`.
        shapes: what the step was compiled for, from `batch_shapes`.

    Raises:
        ValueError: a field is missing or unexpected, or has another shape or dtype.
    """
    mesh = next(iter(shapes.values())).sharding.mesh
    processes = share_of(mesh)[1]
    want = {
        name: ((spec.shape[0] // processes, *spec.shape[1:]), str(spec.dtype))
        for name, spec in shapes.items()
    }
    have = {name: (tuple(array.shape), str(array.dtype)) for name, array in batch.items()}
    wrong = [
        f"{name} is {have.get(name, 'missing')}, expected {want.get(name, 'no such field')}"
        for name in sorted(want.keys() | have.keys())
        if want.get(name) != have.get(name)
    ]
    if wrong:
        raise ValueError("batch does not fit Task.batch_spec: " + "; ".join(wrong))
    return {
        name: jax.make_array_from_process_local_data(
            shapes[name].sharding, array, shapes[name].shape
        )
        for name, array in batch.items()
    }
