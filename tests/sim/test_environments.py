"""Start states, instructions and success tests of the environments."""

import dataclasses

import numpy as np
import pytest

from roam_jax.sim.environments import (
    CLEARANCE,
    DIRECTIONS,
    PLAIN_LOOK,
    PUSH_LENGTH,
    VARIED_LOOK,
    Environment,
    Goal,
    draw_environment,
)
from roam_jax.sim.tabletop import Prop, Scene, Tabletop

PROPS = (
    Prop("cube", "red", (0.9, 0.1, 0.1), 0.03, (0.30, 0.10)),
    Prop("ball", "blue", (0.1, 0.1, 0.9), 0.03, (0.25, -0.10)),
)


@pytest.mark.parametrize("kind", ["reach", "push"])
@pytest.mark.parametrize("look", [PLAIN_LOOK, VARIED_LOOK], ids=["plain", "varied"])
def test_instruction_names_the_one_prop_and_nothing_stands_in_its_way(kind, look):
    for seed in range(50):
        environment = draw_environment(np.random.default_rng(seed), kind=kind, look=look)
        props, goal = environment.scene.props, environment.goal
        assert [prop.name in environment.instruction for prop in props] == [
            index == goal.prop for index in range(2)
        ]
        assert props[0].colour != props[1].colour
        moved, other = (np.array(props[i].position) for i in (goal.prop, 1 - goal.prop))
        assert np.linalg.norm(moved - other) > CLEARANCE
        if kind == "push":
            assert environment.instruction.endswith(goal.direction)
            end = moved + PUSH_LENGTH * np.array(DIRECTIONS[goal.direction])
            assert np.linalg.norm(end - other) > CLEARANCE


def test_draws_repeat_and_vary():
    first, again, other = (
        draw_environment(np.random.default_rng(seed), kind="push", look=VARIED_LOOK)
        for seed in (0, 0, 1)
    )
    assert first == again
    assert first.scene.camera != other.scene.camera and first.scene.table != other.scene.table


def test_plain_look_keeps_camera_table_and_lamp():
    environment = draw_environment(np.random.default_rng(3), kind="reach")
    fixed = Scene(props=environment.scene.props)
    for name in ("camera", "table", "light", "gripper_rgb"):
        assert getattr(environment.scene, name) == getattr(fixed, name)


@pytest.mark.parametrize(
    "direction, moved, success",
    [
        ("to the left", (0.0, 0.07), True),
        ("to the left", (0.0, 0.05), False),  # too short
        ("to the left", (0.05, 0.07), False),  # astray
        ("to the right", (0.0, 0.07), False),  # the wrong way
        ("forward", (0.07, -0.03), True),
        ("backward", (-0.07, 0.03), True),
    ],
)
def test_push_succeeds_by_displacement(direction, moved, success):
    environment = Environment(Scene(props=PROPS), Goal("push", 1, direction), "push the blue ball")
    table = Tabletop(environment.scene)
    for axis, distance in zip("xy", moved, strict=True):
        table.data.joint(f"prop_1_{axis}").qpos = distance
    table.step(np.array([0, 0, 0, 0, 0, 0, 1.0]))
    assert environment.success(table) is success
    along, sideways = environment.pushed(table)
    np.testing.assert_allclose(np.hypot(along, sideways), np.hypot(*moved), atol=1e-6)


@pytest.mark.parametrize("prop, success", [(0, True), (1, False)])
def test_reach_succeeds_above_the_right_prop(prop, success):
    start = (0.31, 0.10, 0.075, 0.0, 0.0, 0.0)
    environment = Environment(Scene(props=PROPS, start=start), Goal("reach", prop), "reach it")
    assert environment.success(Tabletop(environment.scene)) is success
    high = dataclasses.replace(environment.scene, start=(0.31, 0.10, 0.11, 0.0, 0.0, 0.0))
    environment = dataclasses.replace(environment, scene=high)
    assert not environment.success(Tabletop(high))


def test_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="environment kind 'lift'"):
        draw_environment(np.random.default_rng(0), kind="lift")
