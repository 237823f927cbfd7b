"""Experts succeed from unseen starts, and say where the tip should go by geometry alone."""

import numpy as np
import pytest

from roam_jax.sim.native import NativeWorlds
from roam_jax.sim.world_experts import (
    CLEAR,
    PUSH_SPEED,
    ReachExpert,
    make_expert,
    push_move,
    tip_actions,
)
from roam_jax.sim.worlds import WORLDS, make_world

STARTS = 40
HEIGHT = 0.025


def play(environment: str, body: str, count: int, *, seed: int):
    """The worlds after an episode of the expert, its last outcome and all actions."""
    world = make_world(environment, body)
    rng = np.random.default_rng(seed)
    worlds = NativeWorlds(world, world.draw(rng, count))
    expert = make_expert(world)
    expert.reset(worlds, rng)
    actions = []
    while not worlds.done:
        actions.append(expert.act(worlds))
        outcome = worlds.step(actions[-1])
    return worlds, outcome, np.stack(actions)


@pytest.mark.parametrize("environment, body", [(e, b) for e in WORLDS for b in WORLDS[e]])
def test_experts_succeed_from_unseen_starts(environment, body):
    starts = 16 if environment == "walk" else STARTS
    worlds, outcome, actions = play(environment, body, starts, seed=77)
    assert outcome.success.mean() >= 0.95
    assert not outcome.diverged.any() and not worlds.fallen.any()
    assert np.abs(actions).max() <= 1.0 + 1e-9
    assert actions.std() > 0.02


def test_an_action_depends_on_the_present_alone():
    world = make_world("push", "arm3")
    draws = world.draw(np.random.default_rng(0), 3)
    worlds, expert = NativeWorlds(world, draws), make_expert(world)
    first = expert.act(worlds)
    worlds.step(first)
    expert.act(worlds)
    np.testing.assert_array_equal(make_expert(world).act(NativeWorlds(world, draws)), first)


@pytest.mark.parametrize("body", WORLDS["reach"])
def test_small_actions_move_the_tip_as_asked(body):
    table_body = make_world("reach", body).table_body
    rng = np.random.default_rng(3)
    middle = (np.array(table_body.start_low) + np.array(table_body.start_high)) / 2
    positions = middle + rng.uniform(-0.02, 0.02, (5, len(middle)))
    planar = rng.normal(size=(5, 3)) * (1.0, 1.0, body == "gantry")
    move = 0.002 * planar / np.linalg.norm(planar, axis=-1, keepdims=True)
    actions = tip_actions(table_body, positions, move)
    after = table_body.tip_position(positions + actions * np.array(table_body.steps))
    moved = after - table_body.tip_position(positions)
    # Of second order in the step, and less what damping and the resting posture take.
    np.testing.assert_allclose(moved, move, atol=4e-4)


@pytest.mark.parametrize("body", WORLDS["reach"])
def test_long_moves_keep_their_direction(body):
    table_body = make_world("reach", body).table_body
    middle = (np.array(table_body.start_low) + np.array(table_body.start_high))[None] / 2
    actions = tip_actions(table_body, middle, np.array([[0.5, 0.0, 0.0]]))
    assert np.abs(actions).max() == pytest.approx(1.0)
    velocity = table_body.tip_jacobian(middle)[1][0] @ (actions[0] * np.array(table_body.steps))
    assert velocity[0] > 0.9 * np.linalg.norm(velocity)


def field(tip, *, prop=(0.3, 0.0), goal=(0.45, 0.0)):
    """The move of a tip at (x, y, z) for a prop that should go to a goal along x."""
    rows = [np.array([[*point, 0.0]]) for point in (prop, goal)]
    return push_move(np.array([tip]), *rows, height=HEIGHT)[0]


def test_behind_the_prop_the_tip_pushes():
    move = field((0.25, 0.0, HEIGHT))
    np.testing.assert_allclose(move, (PUSH_SPEED, 0.0, 0.0), atol=1e-12)


def test_in_front_of_the_prop_the_tip_goes_out_and_round():
    near = field((0.345, 0.01, HEIGHT))
    assert near @ (0.045, 0.01, 0.0) > 0, "first away from the prop"
    round_it = field((0.3 + CLEAR, 0.01, HEIGHT))
    assert round_it[1] > 0 and abs(round_it[1]) > abs(round_it[0]), "then on the side it is on"


def test_steering_returns_to_the_line():
    left, right = (field((0.25, y, HEIGHT)) for y in (0.01, -0.01))
    assert left[1] < 0 < right[1]
    np.testing.assert_allclose(left[[0, 2]], right[[0, 2]])


def test_a_high_tip_descends_only_beside_the_prop():
    assert field((0.3, 0.001, 0.12))[2] == 0.0
    assert field((0.2, 0.0, 0.12))[2] < 0.0


def test_a_prop_at_its_goal_is_left_alone():
    np.testing.assert_array_equal(field((0.26, 0.0, HEIGHT), goal=(0.304, 0.0)), np.zeros(3))


def test_an_environment_without_an_expert_is_named():
    world = make_world("reach", "arm2")
    other = object.__new__(type(world))
    other.__dict__ = world.__dict__ | {"environment": "juggle"}
    with pytest.raises(ValueError, match="'juggle' has no expert: expected one of .*'reach'"):
        make_expert(other)
    assert isinstance(make_expert(world), ReachExpert)
