"""A batch in parts that pass through a model one after the other, and how a loss treats them.

Gradients of the parts add up to those of the batch where three things hold: a part's rows are given
the random numbers that they have in the batch, a mean over some of the rows is divided by how many
the batch has, and all else is a mean over rows. A loss finds the `Part` in its batch, under `PART`;
without one its batch is whole. Every device keeps the rows that it has: part k is made of the k-th
share of each device's rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import flax.struct
import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from roam_jax.axes import BATCH_AXES

# Where a batch says which part of a larger one it is.
PART = "part"


@flax.struct.dataclass
class Part:
    """Which rows of a whole batch a batch is.

    Args:
        index: of the part, 0..count - 1, may be traced.
        whole: fields of the whole batch, without `PART`.
        count: of the parts.
        shards: devices that the rows of the whole batch lie on.
    """

    index: jax.Array | int
    whole: Mapping[str, jax.Array]
    count: int = flax.struct.field(pytree_node=False)
    shards: int = flax.struct.field(pytree_node=False)

    def take(self, array: jax.Array, axis: int = 0) -> jax.Array:
        """The rows of this part, of an array with the rows of the whole batch along an axis."""
        shape = array.shape
        rows = shape[axis] // (self.count * self.shards)
        apart = (*shape[:axis], self.shards, self.count, rows, *shape[axis + 1 :])
        taken = jax.lax.dynamic_index_in_dim(
            array.reshape(apart), self.index, axis + 1, keepdims=False
        )
        return taken.reshape(*shape[:axis], self.shards * rows, *shape[axis + 1 :])


def part_of(batch: Mapping[str, Any]) -> Part | None:
    """The part that a batch is of a larger one; None where it is whole."""
    return batch.get(PART)


def draw_rows(
    part: Part | None, rows: int, draw: Callable[[int], jax.Array], *, axis: int = 0
) -> jax.Array:
    """Random numbers for the rows of a batch: those that they have in the whole batch.

    Args:
        part: that the batch is; None = it is whole.
        rows: of it, or a multiple of them (an array with several entries a row).
        draw: from a number of rows to an array with so many along an axis.
        axis: which.
    """
    if part is None:
        return draw(rows)
    return part.take(draw(rows * part.count), axis)


def row_shards(array: jax.Array) -> int:
    """Devices that the rows of a traced batch lie on: those along the mesh's batch axes."""
    mesh = jax.typeof(array).sharding.mesh
    return math.prod(mesh.shape[axis] for axis in _batch_axes(mesh))


def split_batch(batch: Mapping[str, jax.Array], count: int) -> Callable[[jax.Array | int], dict]:
    """From the index of a part to that part of a batch, with its `Part`.

    Args:
        batch: arrays with rows along axis 0, which the parts and devices divide.
        count: of the parts.
    """
    first = next(iter(batch.values()))
    mesh, shards = jax.typeof(first).sharding.mesh, row_shards(first)

    def kept_apart(array: jax.Array) -> jax.Array:
        axes = _batch_axes(mesh)
        if not axes:
            return array
        return jax.lax.with_sharding_constraint(array, NamedSharding(mesh, PartitionSpec(axes)))

    def part_at(index: jax.Array | int) -> dict:
        part = Part(index, batch, count, shards)
        return {name: kept_apart(part.take(x)) for name, x in batch.items()} | {PART: part}

    return part_at


def _batch_axes(mesh: Any) -> tuple[str, ...]:
    """Axes of a mesh that rows are split over; none within a `shard_map`, or without a mesh."""
    if mesh.empty or AxisType.Manual in mesh.axis_types:
        return ()
    return tuple(axis for axis in BATCH_AXES if axis in mesh.axis_names)
