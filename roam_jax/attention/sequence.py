"""Attention over a sequence whose cells are split over devices, from within a `shard_map`.

A device keeps its queries. The keys and values that they read come from the devices that hold them,
one message for each distance between two devices, or one gather where all read all. Every device
then runs planned attention with a plan of its own: the branches of one `switch`, since all run the
same program. The backward pass computes a device's attention again, within its branch, or each
branch would have to keep the arrays of all.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from roam_jax.attention import dense
from roam_jax.attention.planned import planned_attention
from roam_jax.axes import SEQUENCE
from roam_jax.canvas.plan import AttentionPlan
from roam_jax.canvas.shards import CellSplit, KeyExchange, key_exchange


def split_attention(
    query: Float[Array, "B N K D"],
    key: Float[Array, "B N K D"],
    value: Float[Array, "B N K Dv"],
    *,
    plan: AttentionPlan,
    split: CellSplit,
) -> Float[Array, "B N K Dv"]:
    """What the queries of this device read, wherever it is; within a `shard_map` over "sequence".

    Args:
        query, key, value: this device's, of `split.places`.
        plan: of the whole sequence.
        split: of the sequence.

    Returns:
        The attended values; anything for cells that carry nothing.

    Raises:
        ValueError: as `key_exchange`.
    """
    exchange = key_exchange(plan, split)
    shard = lax.axis_index(SEQUENCE)
    key, value = (_exchanged(x, exchange, shard) for x in (key, value))
    branches, branch_of, row_of = _branches(exchange)
    numbers = (jnp.asarray(branch_of)[shard], jnp.asarray(row_of)[shard])
    return _switched(branches, numbers, query, key, value)


def _exchanged(
    cells: Float[Array, "B N K D"], exchange: KeyExchange, shard: Array
) -> Float[Array, "B M K D"]:
    """A device's own cells, then those that it was sent; or all cells."""
    if exchange.messages is None:
        return lax.all_gather(cells, SEQUENCE, axis=1, tiled=True)
    found = [cells]
    for message in exchange.messages:
        sent = jnp.take(cells, jnp.asarray(message.cells)[shard], axis=1)
        found.append(lax.ppermute(sent, SEQUENCE, message.pairs))
    return jnp.concatenate(found, axis=1)


Branch = Callable[[Array, Array, Array, Array], Array]


@functools.lru_cache(maxsize=64)
def _branches(exchange: KeyExchange) -> tuple[tuple[Branch, ...], np.ndarray, np.ndarray]:
    """Attention by each distinct plan, and which of them, in which place, each device runs."""
    plans = list(dict.fromkeys(exchange.plans))
    branch_of = np.array([plans.index(plan) for plan in exchange.plans], np.int32)
    row_of = np.array([np.sum(branch_of[:i] == n) for i, n in enumerate(branch_of)], np.int32)
    branches = []
    for number, plan in enumerate(plans):
        places = np.stack([exchange.keys[i] for i in np.flatnonzero(branch_of == number)])
        branches.append(functools.partial(_attend, plan, places))
    return tuple(branches), branch_of, row_of


def _attend(
    plan: AttentionPlan, places: np.ndarray, row: Array, query: Array, key: Array, value: Array
) -> Array:
    """One device's attention.

    Args:
        plan: of its queries over the keys that they read.
        places: (devices of this plan, M), where these lie.
        row: of `places`.
        query: its queries.
        key, value: what `_exchanged` gives.
    """
    if len(places) == 1:
        chosen = _cells_at(places[0])
        key, value = chosen(key), chosen(value)
    else:
        at = jnp.asarray(places)[row]
        key, value = (jnp.take(x, at, axis=1) for x in (key, value))
    if plan.is_free:
        return dense.attention(query, key, value)
    return planned_attention(query, key, value, plan)


def _cells_at(places: np.ndarray) -> Callable[[Array], Array]:
    """Reads cells at places that are known: as few slices, where they lie side by side."""
    ends = np.flatnonzero(np.diff(places) != 1) + 1
    runs = np.split(places, ends)
    if len(runs) > 16:
        return lambda cells: jnp.take(cells, jnp.asarray(places), axis=1)
    bounds = [(int(run[0]), int(run[-1]) + 1) for run in runs]

    def read(cells: Array) -> Array:
        found = [lax.slice_in_dim(cells, first, end, axis=1) for first, end in bounds]
        return jnp.concatenate(found, axis=1) if len(found) > 1 else found[0]

    return read


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _switched(branches: tuple[Branch, ...], numbers: tuple[Array, Array], *heads: Array) -> Array:
    """The branch `numbers[0]` on `numbers[1]` and the heads."""
    return _switch(branches, numbers, *heads)


def _switch(branches: tuple[Callable[..., Any], ...], numbers: tuple[Array, Array], *rest: Array):
    which, row = numbers
    return lax.switch(which, branches, row, *rest)


def _forward(branches, numbers, *heads):
    return _switch(branches, numbers, *heads), (numbers, heads)


def _backward(branches, kept, change):
    numbers, heads = kept

    def gradients(branch: Branch) -> Callable[..., tuple[Array, ...]]:
        def run(row: Array, change: Array, *heads: Array) -> tuple[Array, ...]:
            return jax.vjp(functools.partial(branch, row), *heads)[1](change)

        return run

    found = _switch(tuple(map(gradients, branches)), numbers, change, *heads)
    return None, *found


_switched.defvjp(_forward, _backward)
