"""Where the rows of an evaluation batch go: split over the devices that hold the parameters."""

from __future__ import annotations

from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding

from roam_jax.contracts import Params
from roam_jax.train.sharding import batch_sharding


def _mesh(params: Params) -> Mesh | None:
    sharding = getattr(jax.tree.leaves(params)[0], "sharding", None)
    return sharding.mesh if isinstance(sharding, NamedSharding) else None


def rows_per_batch(batch_size: int, params: Params) -> int:
    """`batch_size` rounded up to a multiple of the devices; rows too many are never counted."""
    mesh = _mesh(params)
    return batch_size if mesh is None else -(-batch_size // mesh.size) * mesh.size


def put_rows(tree: Any, params: Params) -> Any:
    """Splits axis 0 of every array over the devices of `params`; untouched where there is one."""
    mesh = _mesh(params)
    return tree if mesh is None else jax.device_put(tree, batch_sharding(mesh))
