"""Inverse temperatures by round: soft attention first, sharp attention last.

Queries are multiplied by the round's inverse temperature, so that early rounds spread gradients
over many keys and late rounds choose few.

Source: progressive sharpening of canvas-engineering 0.5.0 (`sharpening.py`), from 1.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float

from roam_jax.spelling import check_choice

SHARPENINGS = ("none", "linear", "exponential", "cosine")


def inverse_temperatures(kind: str, *, rounds: int, final: float) -> Float[np.ndarray, " R"]:
    """Inverse temperature of every round: 1 in the first, `final` in the last; one round has 1.

    Args:
        kind: one of `SHARPENINGS`; none is 1 in every round.
        rounds: number of rounds R.
        final: at least 1.

    Raises:
        ValueError: no such kind (names the nearest), no round, or `final` below 1 or not finite.
    """
    check_choice("sharpening", kind, SHARPENINGS)
    if rounds < 1:
        raise ValueError(f"rounds = {rounds}: expected at least 1")
    if not 1 <= final < math.inf:
        raise ValueError(
            f"final inverse temperature = {final}: expected a finite number, at least 1"
        )
    done = np.arange(rounds) / max(rounds - 1, 1)
    values = {
        "none": np.ones(rounds),
        "linear": 1 + done * (final - 1),
        "exponential": final**done,
        "cosine": 1 + (final - 1) * (1 - np.cos(np.pi * done)) / 2,
    }
    return values[kind].astype(np.float32)
