"""Treating a stated share of a batch's rows differently."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool


def share_of_rows(rng: jax.Array, size: int, fraction: float) -> Bool[Array, " B"]:
    """Which rows of a batch belong to the share: the first ones, as data is shuffled.

    Args:
        rng: decides about the one row that the share covers in part.
        size: rows of the batch.
        fraction: 0..1; `size * fraction` rows are chosen on average, exactly if that is whole.

    Raises:
        ValueError: `fraction` is out of range.
    """
    if not 0 <= fraction <= 1:
        raise ValueError(f"a share of {fraction} of the rows: expected 0 to 1")
    return jnp.arange(size) + jax.random.uniform(rng) < size * fraction
