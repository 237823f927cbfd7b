"""Where an example's random numbers come from, and which stream of them nobody trains on."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt32

# Seed of the examples that models are validated on; no training run may have it.
VALIDATION_SEED = 2**32 - 1


def example_numbers(
    seed: UInt32[Array, ""], index: UInt32[Array, ""], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Float[Array, "..."]]:
    """Random numbers of example `index` in the stream of `seed`, uniform in [0, 1).

    All are drawn at once and cut into arrays of the given shapes, because every draw is compiled
    anew. The generator is named, so that a program's default does not change what examples are.
    """
    key = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), index)
    ends = list(itertools.accumulate(math.prod(shape) for shape in shapes.values()))
    pieces = jnp.split(jax.random.uniform(key, (ends[-1],)), ends[:-1])
    named = zip(shapes.items(), pieces, strict=True)
    return {name: piece.reshape(shape) for (name, shape), piece in named}


def between(low: float, high: float, numbers: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Numbers in [0, 1) stretched to [low, high)."""
    return low + (high - low) * numbers


def either_way(low: float, high: float, numbers: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Numbers in [0, 1) as numbers of size low..high, half of them negative."""
    size = between(low, high, 2 * jnp.abs(numbers - 0.5))
    return jnp.where(numbers < 0.5, -size, size)


def order_of(numbers: Float[Array, " n"]) -> Int[Array, " n"]:
    """Each number's rank among all: 0..n - 1 in random order.

    All pairs are compared: for a handful that compiles in a fraction of the time that a sort takes.
    """
    place = jnp.arange(len(numbers))
    equal = (numbers == numbers[:, None]) & (place < place[:, None])
    return ((numbers < numbers[:, None]) | equal).sum(axis=1)
