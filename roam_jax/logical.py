"""Logical axes of parameters and activations, and the mesh axes that split each: one table.

A model says what an axis holds (`constrain(hidden, BATCH, CELLS, HIDDEN)`), a sharding rule says it
of a parameter (`axes(DEPTH, WIDTH, HEADS)`), and the table alone says what is split over which
devices, as in MaxText and Flax's logical partitioning. Nothing is global: the mesh is the one that
the array itself was traced under.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import jax
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

from roam_jax.axes import BATCH_AXES, FSDP, MESH_AXES, SEQUENCE, TENSOR
from roam_jax.spelling import check_choice

# Rows of a batch, cells of a sequence, attention heads (and their channels side by side), hidden
# units of a feed-forward layer, what modulates a layer, channels of a cell, distinct blocks.
BATCH = "batch"
CELLS = "cells"
HEADS = "heads"
HIDDEN = "hidden"
MODULATION = "modulation"
WIDTH = "width"
DEPTH = "depth"

TABLE: Mapping[str, tuple[str, ...]] = {
    BATCH: BATCH_AXES,
    CELLS: (SEQUENCE,),
    HEADS: (TENSOR,),
    HIDDEN: (TENSOR,),
    MODULATION: (TENSOR,),
    WIDTH: (),
    DEPTH: (),
}

# Below this many elements a gather costs more than the copies that sharding saves.
MIN_SHARDED_SIZE = 1 << 12


def mesh_of(x: jax.Array) -> AbstractMesh | None:
    """The mesh of several devices that an array is traced under.

    None outside of `jit`, on one device, within a `shard_map`, and under meshes that have other
    axes than `MESH_AXES`, such as that of many seeds.
    """
    if not isinstance(x, jax.core.Tracer):
        return None
    mesh = jax.typeof(x).sharding.mesh
    foreign = mesh.empty or not set(mesh.axis_names) <= set(MESH_AXES)
    if foreign or mesh.size == 1 or any(kind != AxisType.Auto for kind in mesh.axis_types):
        return None
    return mesh


def devices_along(sizes: Mapping[str, int], axis: str) -> int:
    """Devices that a logical axis is split over; 1 for mesh axes that are not there.

    Args:
        sizes: of the mesh axes, `mesh.shape`.
        axis: logical.
    """
    return math.prod(sizes.get(name, 1) for name in TABLE[axis])


def shards(x: jax.Array, axis: str) -> int:
    """Devices that a logical axis is split over, under the mesh of an array; 1 without a mesh."""
    mesh = mesh_of(x)
    return 1 if mesh is None else devices_along(mesh.shape, axis)


def spec(x: jax.Array, *axes: str | None) -> PartitionSpec:
    """What splits an array that has a mesh; a size that does not divide is not split.

    Args:
        x: the array.
        axes: logical axis of each of its axes; None = not split.
    """
    sizes = mesh_of(x).shape
    entries = []
    for size, axis in zip(x.shape, axes, strict=True):
        names = () if axis is None else tuple(n for n in TABLE[axis] if n in sizes)
        devices = math.prod(sizes[name] for name in names)
        entries.append(names if names and size % devices == 0 else None)
    return PartitionSpec(*entries)


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """The array, split over devices as the table says; itself where it has no mesh (`mesh_of`).

    Args:
        x: an array.
        axes: logical axis of each of its axes; None, or one that nothing splits, = on all devices.
    """
    mesh = mesh_of(x)
    if mesh is None:
        return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec(x, *axes)))


@dataclasses.dataclass(frozen=True)
class Axes:
    """Right-hand side of a sharding rule: what the axes of a parameter hold.

    The table splits them. Of a matrix, which has an axis `WIDTH`, the largest axis that is left
    whole and divides goes over "fsdp" as well (`shard_largest`).

    Args:
        names: of the parameter's axes.
    """

    names: tuple[str, ...]

    def __call__(self, shape: tuple[int, ...], axis_sizes: Mapping[str, int]) -> PartitionSpec:
        """The spec of a parameter of this shape; sizes may not divide, which the rules refuse.

        Raises:
            ValueError: the parameter has another number of axes.
        """
        if len(shape) != len(self.names):
            raise ValueError(f"{self} names {len(self.names)} axes, the parameter has {len(shape)}")
        entries: list[str | tuple[str, ...] | None] = []
        for name in self.names:
            over = tuple(axis for axis in TABLE[name] if axis_sizes.get(axis, 1) > 1)
            entries.append(over[0] if len(over) == 1 else over or None)
        if WIDTH in self.names:
            return shard_largest(shape, axis_sizes, taken=tuple(entries))
        return _trimmed(entries)

    def __str__(self) -> str:
        return f"axes({', '.join(self.names)})"


def axes(*names: str) -> Axes:
    """`Axes` of a parameter, by the names of the table.

    Raises:
        ValueError: no such logical axis.
    """
    for name in names:
        check_choice("logical axis", name, TABLE)
    return Axes(names)


def shard_largest(
    shape: tuple[int, ...],
    axis_sizes: Mapping[str, int],
    *,
    axis: str = FSDP,
    min_size: int = MIN_SHARDED_SIZE,
    taken: tuple[str | tuple[str, ...] | None, ...] = (),
) -> PartitionSpec:
    """A rule's right-hand side: split the largest axis that divides, else copy.

    Args:
        shape: shape of the parameter.
        axis_sizes: devices along each mesh axis.
        axis: the mesh axis to split over.
        min_size: parameters with fewer elements are copied.
        taken: what splits each of the parameter's axes already; () = nothing.
    """
    entries = list(taken) if taken else [None] * len(shape)
    devices = axis_sizes[axis]
    free = [
        (size, -i) for i, size in enumerate(shape) if entries[i] is None and size % devices == 0
    ]
    if math.prod(shape) >= min_size and free:
        entries[-max(free)[1]] = axis
    return _trimmed(entries)


def _trimmed(entries: list[str | tuple[str, ...] | None]) -> PartitionSpec:
    """A spec without the axes at its end that nothing splits, as JAX writes it."""
    while entries and entries[-1] is None:
        entries.pop()
    return PartitionSpec(*entries)
