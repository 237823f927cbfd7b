"""Shapes placed and painted in JAX: what the frames of scenes are made of.

Lengths are in widths of the (square) frame, places are (x, y) with y downwards, colours are RGB in
[-1, 1]. Edges are a pixel wide, so that a place shows to a fraction of a pixel. Nothing here uses a
function that a CPU approximates (sine, exponential), so an example is the same in every batch.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from roam_jax.data.scene_random import order_of

BACKGROUND = (-0.8, -0.8, -0.75)
COLOURS = {
    "red": (0.9, -0.7, -0.7),
    "green": (-0.6, 0.5, -0.7),
    "blue": (-0.6, -0.3, 1.0),
    "yellow": (0.95, 0.75, -0.7),
    "purple": (0.5, -0.6, 0.7),
    "cyan": (-0.5, 0.8, 0.9),
}
# What is moved by commands; no shape has its colour.
HAND_COLOUR = (1.0, 1.0, 1.0)


def random_places(
    cells: Float[Array, "9"], lines: Float[Array, "3 2"], *, low: float, spacing: float
) -> Float[Array, "9 2"]:
    """Places that are at least `spacing` apart along x or along y, in random order.

    They are the cells of a 3 x 3 grid whose columns and rows lie at random.

    Args:
        cells, lines: random numbers in [0, 1).
        low: all lie within low..1 - low on both axes.
        spacing: at most (1 - 2 * low) / 2.
    """
    first, second, third = lines * (1 - 2 * low - 2 * spacing)
    smaller, larger = jnp.minimum(first, second), jnp.maximum(first, second)
    middle = jnp.maximum(smaller, jnp.minimum(larger, third))
    shifts = jnp.stack([jnp.minimum(smaller, third), middle, jnp.maximum(larger, third)])
    columns, rows = (low + spacing * jnp.arange(3)[:, None] + shifts).T
    order = order_of(cells)
    return jnp.stack([columns[order % 3], rows[order // 3]], axis=-1)


def reflect(
    start: Float[Array, "... 2"],
    velocity: Float[Array, "... 2"],
    times: Float[np.ndarray, " T"],
    *,
    low: float,
) -> Float[Array, "T ... 2"]:
    """Where points are that move at constant speed and bounce off the walls of low..1 - low.

    A mirror image of the box beyond each wall makes the path a straight line.
    """
    size = 1 - 2 * low
    times = jnp.asarray(times, jnp.float32).reshape(-1, *(1,) * start.ndim)
    unfolded = jnp.mod(start - low + times * velocity, 2 * size)
    return low + size - jnp.abs(unfolded - size)


def blank(frames: int, size: int) -> Float[Array, "frames size size 3"]:
    """Frames of nothing but background."""
    return jnp.broadcast_to(jnp.asarray(BACKGROUND, jnp.float32), (frames, size, size, 3))


def offsets(centres: Float[Array, "T 2"], size: int) -> Float[Array, "T size size 2"]:
    """From each centre to the middle of each pixel of its frame, (x, y)."""
    middles = (jnp.arange(size, dtype=jnp.float32) + 0.5) / size
    grid = jnp.stack(jnp.meshgrid(middles, middles), axis=-1)
    return grid - centres[:, None, None]


def round_distance(offsets: Float[Array, "T H W 2"]) -> Float[Array, "T H W"]:
    """Euclidean: what lies within a radius is a disc."""
    return jnp.sqrt(jnp.square(offsets).sum(axis=-1))


def square_distance(offsets: Float[Array, "T H W 2"]) -> Float[Array, "T H W"]:
    """The larger of both axes: what lies within a radius is a square."""
    return jnp.abs(offsets).max(axis=-1)


def diamond_distance(offsets: Float[Array, "T H W 2"]) -> Float[Array, "T H W"]:
    """The sum of both axes: what lies within a radius is a square on its tip."""
    return jnp.abs(offsets).sum(axis=-1)


def paint(
    frames: Float[Array, "T H W 3"],
    distance: Float[Array, "T H W"],
    radius: float,
    colour: Float[Array, " 3"],
) -> Float[Array, "T H W 3"]:
    """Frames with a colour wherever the distance is below the radius."""
    covered = jnp.clip(0.5 + (radius - distance) * frames.shape[1], 0, 1)[..., None]
    return frames + covered * (colour - frames)


def palette(chosen: Int[Array, " n"]) -> Float[Array, "n 3"]:
    """RGB of colours by their number in `COLOURS`."""
    return jnp.asarray(list(COLOURS.values()), jnp.float32)[chosen]


def round_or_square(
    offsets: Float[Array, "T H W 2"], is_square: Bool[Array, ""]
) -> Float[Array, "T H W"]:
    """`square_distance` where asked for, else `round_distance`."""
    return jnp.where(is_square, square_distance(offsets), round_distance(offsets))
