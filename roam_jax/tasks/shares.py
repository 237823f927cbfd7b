"""Which rows of a run's batches this process makes."""

from __future__ import annotations

import jax
import ml_collections

from roam_jax.data.position import Process
from roam_jax.train.sharding import make_mesh
from roam_jax.train.shares import share_of


def process_share(config: ml_collections.ConfigDict) -> Process:
    """Those that its devices need in the config's mesh; all of them in a process that runs alone.

    Raises:
        ValueError: the mesh does not fit the devices, or splits rows unevenly over processes.
    """
    if jax.process_count() == 1:
        return Process()
    return Process(*share_of(make_mesh(**config.mesh)))
