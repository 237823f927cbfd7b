"""One row of a batch at a time, so that a row's numbers do not depend on the rows beside it.

XLA chooses how to sum a convolution by its shape: a window that is encoded in a batch of 8 differs
in its last bits from the same window alone. Mapped over rows, the shape is always that of one row,
and latents from a cache equal those that are made within a step, bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.sharding import AxisType, PartitionSpec

from roam_jax.contracts import Params
from roam_jax.logical import BATCH, constrain

Rows = Any  # a tree of arrays with a common axis 0


def map_rows(function: Callable[[Params, Rows], Rows], params: Params, rows: Rows) -> Rows:
    """`function(params, row)` for each row, in turn, on the device that holds the row.

    Args:
        function: of parameters and one row, without its batch axis.
        params: the same for all rows; must not be split over devices.
        rows: at least one array; under a mesh, axis 0 is split over as many devices as divide it.
    """

    def in_turn(params: Params, rows: Rows) -> Rows:
        return jax.lax.map(lambda row: function(params, row), rows)

    first = jax.tree.leaves(rows)[0]
    mesh = jax.typeof(first).sharding.mesh
    # Within a `shard_map`, rows are those of one device already.
    apart = AxisType.Manual in mesh.axis_types
    if apart or mesh.empty or mesh.size == 1:
        return in_turn(params, rows)
    # Without this, XLA would bring every row to every device: a loop's axis cannot stay split.
    split = PartitionSpec(_dividing_axes(mesh.shape, first.shape[0]))
    found = jax.shard_map(
        in_turn, mesh=mesh, in_specs=(PartitionSpec(), split), out_specs=split, check_vma=False
    )(params, rows)
    # From here on as every batch is split, or what follows would be split in the same odd way.
    return jax.tree.map(lambda x: constrain(x, BATCH, *[None] * (x.ndim - 1)), found)


def _dividing_axes(sizes: Mapping[str, int], rows: int) -> tuple[str, ...]:
    """The first mesh axes, as many as divide the rows."""
    names = tuple(sizes)
    for count in range(len(names), 0, -1):
        if rows % math.prod(sizes[name] for name in names[:count]) == 0:
            return names[:count]
    return ()
