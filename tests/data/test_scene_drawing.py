"""Placing and painting shapes, against numpy."""

import jax
import jax.numpy as jnp
import numpy as np

from roam_jax.data import scene_drawing as drawing


def bounced(start, velocity, frames, *, low, steps=400):
    """A point that is moved in small steps and turned round at the walls, in float64."""
    place, velocity = np.array(start, np.float64), np.array(velocity, np.float64)
    for _ in range(round(frames * steps)):
        place = place + velocity / steps
        for wall, beyond in ((low, place < low), (1 - low, place > 1 - low)):
            place = np.where(beyond, 2 * wall - place, place)
            velocity = np.where(beyond, -velocity, velocity)
    return place


def test_reflections_are_those_of_small_steps():
    rng = np.random.default_rng(0)
    start = rng.uniform(0.2, 0.8, (20, 2)).astype(np.float32)
    velocity = rng.uniform(-0.3, 0.3, (20, 2)).astype(np.float32)
    times = np.array([0, 1, 4.5, 9], np.float32)
    found = drawing.reflect(jnp.asarray(start), jnp.asarray(velocity), times, low=0.15)
    for time, places in zip(times, found, strict=True):
        expected = bounced(start, velocity, time, low=0.15)
        np.testing.assert_allclose(places, expected, atol=1e-5)


def test_places_keep_apart_and_inside():
    numbers = jnp.asarray(np.random.default_rng(1).random((500, 15)), jnp.float32)
    low, spacing = 0.12, 0.25
    places = jax.vmap(
        lambda row: drawing.random_places(row[:9], row[9:].reshape(3, 2), low=low, spacing=spacing)
    )(numbers)
    places = np.asarray(places, np.float64)
    assert places.min() >= low - 1e-6 and places.max() <= 1 - low + 1e-6
    apart = np.abs(places[:, :, None] - places[:, None]).max(axis=-1)
    apart[:, np.arange(9), np.arange(9)] = 1
    assert apart.min() >= spacing - 1e-6
    # All of the room is used, and no place is the first one's more often than another's.
    assert places.min() < low + 0.02 and places.max() > 1 - low - 0.02
    cells = ((places[:, 0] - low) / (1 - 2 * low) * 3).astype(int).clip(0, 2)
    counts = np.bincount(3 * cells[:, 1] + cells[:, 0], minlength=9)
    assert counts.min() > 25 and counts.max() < 100


def test_painting_covers_the_share_of_a_pixel_that_the_edge_leaves():
    size, centre, radius = 8, (0.4, 0.6), 0.2
    colour = np.array([1.0, -0.5, 0.25])
    x, y = np.meshgrid((np.arange(size) + 0.5) / size, (np.arange(size) + 0.5) / size)
    away = {
        drawing.round_distance: np.hypot(x - centre[0], y - centre[1]),
        drawing.square_distance: np.maximum(abs(x - centre[0]), abs(y - centre[1])),
        drawing.diamond_distance: abs(x - centre[0]) + abs(y - centre[1]),
    }
    offsets = drawing.offsets(jnp.array([centre]), size)
    for distance, expected in away.items():
        found = distance(offsets)
        np.testing.assert_allclose(found[0], expected, atol=1e-6)
        frame = drawing.paint(drawing.blank(1, size), found, radius, jnp.asarray(colour))
        covered = np.clip(0.5 + (radius - expected) * size, 0, 1)[..., None]
        ground = np.array(drawing.BACKGROUND)
        np.testing.assert_allclose(frame[0], ground + covered * (colour - ground), atol=1e-6)
    square = drawing.round_or_square(offsets, jnp.array(True))
    np.testing.assert_array_equal(square, drawing.square_distance(offsets))


def test_colours_are_told_apart():
    colours = [*drawing.COLOURS.values(), drawing.HAND_COLOUR, drawing.BACKGROUND]
    apart = np.linalg.norm(np.array(colours)[:, None] - np.array(colours), axis=-1)
    assert (apart + 9 * np.eye(len(colours))).min() > 0.9
    np.testing.assert_allclose(drawing.palette(jnp.array([3, 0])), [colours[3], colours[0]])
