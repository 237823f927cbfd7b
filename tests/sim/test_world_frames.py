"""Frames of worlds: what is where, by projecting points through a pinhole."""

import numpy as np
import pytest

from roam_jax.sim.native import NativeWorlds
from roam_jax.sim.world_frames import TABLE_VIEW
from roam_jax.sim.worlds import make_world

SIZE = 96


def made(environment: str, body: str, count: int = 8) -> NativeWorlds:
    world = make_world(environment, body)
    return NativeWorlds(world, world.draw(np.random.default_rng(0), count))


def pixel(point: np.ndarray) -> tuple[int, int]:
    """Row and column of a point in metres, by the pinhole's definition."""
    camera = TABLE_VIEW.camera
    right, up = camera.axes()
    forward = np.cross(up, right)
    ray = point - np.array(camera.position)
    half = np.tan(np.radians(camera.fovy) / 2)
    x, y = (ray @ axis / (ray @ forward) / half for axis in (right, up))
    return int((1 - y) / 2 * SIZE), int((1 + x) / 2 * SIZE)


def test_a_prop_is_drawn_in_its_colour_where_it_lies():
    worlds = made("push", "gantry")
    draws = worlds.draws
    worlds.qpos[:, 0] = -50.0  # the gantry, out of view
    seen = 0
    for i in range(worlds.count):
        row, column = pixel(np.array([*draws.prop[i, :2], draws.size[i]]))
        colour = worlds.frame(i, SIZE)[row, column] / 255.0
        cosine = colour @ draws.rgb[i] / np.linalg.norm(colour) / np.linalg.norm(draws.rgb[i])
        seen += cosine > 0.99
        row, column = pixel(np.array([*draws.goal[i, :2], 0.0]))
        light = worlds.frame(i, SIZE)[row, column].astype(int)
        assert np.ptp(light) < 12, "the goal is a white disc"
    assert seen == worlds.count


def test_the_goal_of_a_reach_is_drawn_in_its_colour():
    worlds = made("reach", "gantry", count=4)
    worlds.qpos[:, 0] = -50.0
    for i in range(4):
        row, column = pixel(worlds.draws.goal[i])
        colour = worlds.frame(i, SIZE)[row, column] / 255.0
        goal = worlds.draws.rgb[i]
        assert colour @ goal / np.linalg.norm(colour) / np.linalg.norm(goal) > 0.99


def test_the_camera_goes_along_with_a_walker():
    worlds = made("walk", "biped", count=1)
    first = worlds.frame(0, 48)
    worlds.qpos[0, 0] += 0.5  # two tiles, each of another colour than the next
    np.testing.assert_allclose(worlds.frame(0, 48).astype(int), first.astype(int), atol=1)
    worlds.qpos[0, 0] += 0.25
    assert (worlds.frame(0, 48) != first).any()


@pytest.mark.parametrize("body", ["arm3"])
def test_frames_follow_the_joints(body):
    worlds = made("reach", body, count=2)
    before = worlds.frame(0, 32)
    worlds.qpos[0, 0] += 0.5
    assert (worlds.frame(0, 32) != before).any()
