"""Which rows of every batch a process makes: those that its devices need."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from roam_jax.axes import BATCH_AXES


def share_of(mesh: Mesh) -> tuple[int, int]:
    """Which share of every batch this process's devices need: (index, of how many).

    Rows are split over `BATCH_AXES` and lie in the order of the devices. Where the devices of a
    host hold a part of a row's cells or heads alone, several processes need the same share.

    Raises:
        ValueError: two processes need rows that overlap in part.
    """
    if jax.process_count() == 1:
        return 0, 1
    return _share(mesh, jax.process_index())


@functools.lru_cache
def _share(mesh: Mesh, process: int) -> tuple[int, int]:
    places = [mesh.axis_names.index(axis) for axis in BATCH_AXES]
    devices = np.moveaxis(mesh.devices, places, range(len(places)))
    rows = devices.reshape(math.prod(devices.shape[: len(places)]), -1)
    owners = [{device.process_index for device in row} for row in rows]
    return share_among(owners, process)


def share_among(owners: Sequence[set[int]], process: int) -> tuple[int, int]:
    """`share_of`, from the processes that need each of the parts in which rows are split.

    Args:
        owners: of each part, in the order of the rows.
        process: whose share it is.

    Raises:
        ValueError: two processes need rows that overlap in part.
    """
    groups = list(dict.fromkeys(map(frozenset, owners)))
    size, left = divmod(len(owners), len(groups))
    even = not left and owners == [group for group in groups for _ in range(size)]
    if not even or len({*itertools.chain(*groups)}) < sum(map(len, groups)):
        needed = ", ".join("+".join(map(str, sorted(group))) for group in owners)
        raise ValueError(
            f"mesh: the {len(owners)} parts of a batch (mesh.data x mesh.fsdp) are needed by "
            f"processes {needed}: expected equal shares; choose mesh.sequence x mesh.tensor so "
            "that it divides the devices of a process, or is a multiple of them"
        )
    return next(i for i, group in enumerate(groups) if process in group), len(groups)
