"""Discs in a box: one is pulled to where it is told by a spring, the others are free.

All have the same mass and radius. Lengths are in widths of the frame, times in frames. A substep
moves all discs (symplectic Euler), reflects them from the walls, and lets touching discs that come
closer trade their speeds along the line between them, which keeps momentum and energy.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

RADIUS = 0.1
# Of the spring that pulls the driven disc, a frame squared; what slows it, and the free ones, a
# frame.
STIFFNESS, DAMPING, FRICTION = 2.0, 2.0, 0.1
SUBSTEPS = 8  # of a frame


class Motion(NamedTuple):
    """Discs after every substep, the driven one first: `places` and `speeds` (S, n, 2).

    `touching` (S,) says whether the driven disc then touches another.
    """

    places: Array
    speeds: Array
    touching: Array


def simulate(
    places: Float[Array, "n 2"], speeds: Float[Array, "n 2"], targets: Float[Array, "S 2"]
) -> Motion:
    """Where the discs go; in substep s the driven one is pulled to `targets[s]`."""

    def substep(state, target):
        places, speeds = bounce(*move(*state, target))
        touching = touches(places)
        state = places, collide(places, speeds, touching)
        return state, Motion(*state, touching[0].any())

    return jax.lax.scan(substep, (places, speeds), targets)[1]


def move(
    places: Float[Array, "n 2"], speeds: Float[Array, "n 2"], target: Float[Array, " 2"]
) -> tuple[Float[Array, "n 2"], Float[Array, "n 2"]]:
    """Spring, damping and friction over one substep, then the way that is gone at that speed."""
    forces = (-FRICTION * speeds).at[0].set(STIFFNESS * (target - places[0]) - DAMPING * speeds[0])
    speeds = speeds + forces / SUBSTEPS
    return places + speeds / SUBSTEPS, speeds


def bounce(
    places: Float[Array, "n 2"], speeds: Float[Array, "n 2"]
) -> tuple[Float[Array, "n 2"], Float[Array, "n 2"]]:
    """What has gone into a wall comes back from it as far, with its speed turned round."""
    low, high = RADIUS, 1 - RADIUS
    inside = jnp.where(places < low, 2 * low - places, places)
    inside = jnp.where(places > high, 2 * high - places, inside)
    return inside, jnp.where((places < low) | (places > high), -speeds, speeds)


def touches(places: Float[Array, "n 2"]) -> Bool[Array, "n n"]:
    """Which discs are no farther apart than both their radii."""
    apart = jnp.square(places[:, None] - places).sum(axis=-1)
    return (apart <= (2 * RADIUS) ** 2) & ~jnp.eye(len(places), dtype=bool)


def collide(
    places: Float[Array, "n 2"], speeds: Float[Array, "n 2"], touching: Bool[Array, "n n"]
) -> Float[Array, "n 2"]:
    """Speeds after elastic impacts of all touching pairs that come closer."""
    line = places[:, None] - places
    square = jnp.square(line).sum(axis=-1)
    closing = ((speeds[:, None] - speeds) * line).sum(axis=-1)
    share = jnp.where(touching & (closing < 0), closing / jnp.maximum(square, 1e-12), 0.0)
    return speeds - (share[..., None] * line).sum(axis=1)
