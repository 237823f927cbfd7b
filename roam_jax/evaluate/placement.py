"""Where an evaluation runs: on the devices that hold the parameters, on each host by itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding
from ml_collections import ConfigDict

from roam_jax.contracts import Params
from roam_jax.train import hosts, names, sharding
from roam_jax.train.sharding import batch_sharding


def _mesh(params: Params) -> Mesh | None:
    sharding = getattr(jax.tree.leaves(params)[0], "sharding", None)
    return sharding.mesh if isinstance(sharding, NamedSharding) else None


def evaluation_mesh(trained: ConfigDict) -> Mesh:
    """A mesh of this process's devices, whatever number of them a run was trained on.

    Args:
        trained: `mesh` of its config; parameters are split over as many devices as there, or over
            all that are here where those do not divide them.
    """
    devices = jax.local_devices()
    fsdp = len(devices) if trained.fsdp == -1 or len(devices) % trained.fsdp else trained.fsdp
    return sharding.make_mesh(-1, fsdp, devices=devices)


def rows_per_batch(batch_size: int, params: Params) -> int:
    """`batch_size` rounded up to a multiple of the devices; rows too many are never counted."""
    mesh = _mesh(params)
    return batch_size if mesh is None else -(-batch_size // mesh.size) * mesh.size


def put_rows(tree: Any, params: Params) -> Any:
    """Splits axis 0 of every array over the devices of `params`; untouched where there is one."""
    mesh = _mesh(params)
    return tree if mesh is None else jax.device_put(tree, batch_sharding(mesh))


def on_each_host(
    measure: Callable[[Params], Mapping[str, float]],
    params: Params,
    *,
    rules: sharding.Rules,
    what: str,
) -> dict[str, float]:
    """Figures of parameters that may be spread over the devices of several hosts.

    Of several processes, all of which call this, each copies the parameters to its own devices,
    split over them as by mesh.fsdp, and measures; the figures of the first one count. All do the
    same because XLA shares the tuning of kernels among the processes of a run: one that compiled
    alone would wait for the others.

    Args:
        measure: from all parameters to figures.
        params: the parameters.
        rules: sharding rules of them.
        what: it is, for messages.
    """
    if not hosts.are_several():
        return dict(measure(params))
    figures = measure(_on_this_host(hosts.whole_copy(params), rules))
    return hosts.of_first(what, lambda: {name: float(x) for name, x in figures.items()})


def _on_this_host(params: Params, rules: sharding.Rules) -> Params:
    mesh = sharding.make_mesh(1, -1, devices=jax.local_devices())
    specs = names.flatten(sharding.match_rules(rules, params, axis_sizes=mesh.shape))
    return names.unflatten(
        {
            name: jax.device_put(leaf, NamedSharding(mesh, specs[name]))
            for name, leaf in names.flatten(params).items()
        }
    )
