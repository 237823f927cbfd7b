"""Names, specs and draws of worlds, and what is observed, rewarded and called a success."""

import pathlib
import re

import numpy as np
import pytest

from roam_jax.morphology import JOINT_NUMBERS, JOINTS, WorldSpec
from roam_jax.sim.native import NativeWorlds
from roam_jax.sim.table_world import NEAREST_START, PUSHED, REACHED, SIZES
from roam_jax.sim.tabletop import SHAPES
from roam_jax.sim.worlds import WORLDS, make_world

EVERY = [(environment, body) for environment, bodies in WORLDS.items() for body in bodies]


def drawn(environment: str, body: str, count: int = 16, seed: int = 0) -> NativeWorlds:
    world = make_world(environment, body)
    return NativeWorlds(world, world.draw(np.random.default_rng(seed), count), threads=1)


@pytest.mark.parametrize(("environment", "body"), EVERY)
def test_a_spec_says_what_is_observed(environment, body):
    worlds = drawn(environment, body, count=3)
    spec = worlds.world.spec
    assert make_world(environment, body) is worlds.world
    assert WorldSpec.from_json(spec.to_json()) == spec and spec.name == f"{environment}/{body}"
    assert spec.streams[0].name == JOINTS and spec.streams[0].dimensions == JOINT_NUMBERS
    observed = worlds.observe()
    assert {n: v.shape[1:] for n, v in observed.items()} == {s.name: s.shape for s in spec.streams}
    assert all(value.dtype == np.float32 for value in observed.values())
    for joint, cell in zip(spec.morphology.joints, observed[JOINTS][0], strict=True):
        assert joint.low - 1e-6 <= cell[0] <= joint.high + 1e-6
        assert cell[1] == 0 and abs(cell[2]) < 1e-6


@pytest.mark.parametrize(("environment", "body"), EVERY)
def test_draws_are_functions_of_the_seed(environment, body):
    first, again, other = (drawn(environment, body, seed=seed).draws for seed in (1, 1, 2))
    assert len(first) == 16
    np.testing.assert_array_equal(first.joints, again.joints)
    np.testing.assert_array_equal(first.rgb, again.rgb)
    assert (first.joints != other.joints).any()
    np.testing.assert_array_equal(first[3:5].joints, first.take([3, 4]).joints)


def test_names_that_do_not_exist_name_the_nearest():
    with pytest.raises(ValueError, match=r"environment 'raech'.*did you mean 'reach'"):
        make_world("raech", "arm3")
    with pytest.raises(ValueError, match=r"body of push 'arm5'.*did you mean 'arm4'"):
        make_world("push", "arm5")
    with pytest.raises(ValueError, match=r"body of walk 'bipde'.*did you mean 'biped'"):
        make_world("walk", "bipde")


@pytest.mark.parametrize("body", WORLDS["push"])
def test_pushes_have_room_and_vary(body):
    draws = drawn("push", body, count=100).draws
    way = np.linalg.norm((draws.prop - draws.goal)[:, :2], axis=1)
    assert way.min() > NEAREST_START and np.ptp(way) > 0.05
    assert set(draws.shape) == set(range(len(SHAPES)))
    assert SIZES[0] <= draws.size.min() and draws.size.max() <= SIZES[1]
    tip = make_world("push", body).table_body.tip_position(draws.joints)
    assert (np.linalg.norm((tip - draws.prop)[:, :2], axis=1) > draws.size + 0.02).all()
    assert len(np.unique(draws.rgb, axis=0)) > 2


def test_models_have_the_drawn_masses_sizes_and_friction():
    worlds = drawn("push", "arm2", count=6)
    draws = worlds.draws
    for i, model in enumerate(worlds.models):
        chosen = SHAPES[draws.shape[i]]
        assert model.body("prop").mass[0] == draws.mass[i]
        assert model.geom(chosen).size[0] == draws.size[i] == model.geom(chosen).pos[2]
        assert all(model.geom(shape).pos[2] < 0 for shape in SHAPES if shape != chosen)
        assert model.dof_frictionloss[-3] == draws.friction[i]
        np.testing.assert_allclose(model.geom(chosen).rgba[:3], draws.rgb[i], atol=1e-6)
        np.testing.assert_allclose(model.dof_M0[-3:-1], draws.mass[i])
    walkers = drawn("walk", "biped", count=3)
    for i, model in enumerate(walkers.models):
        assert model.body("torso").mass[0] == walkers.draws.mass[i]
        assert (model.pair_friction[:, 0] == walkers.draws.friction[i]).all()


def test_reach_rewards_nearness_and_succeeds_at_the_goal():
    worlds = drawn("reach", "arm2", count=2)
    worlds.draws.goal[0] = worlds.tip[0]
    outcome = worlds.step(np.zeros((2, 2)))
    assert outcome.success.tolist() == [True, False]
    distance = np.linalg.norm(worlds.tip - worlds.draws.goal, axis=1)
    assert distance[0] < REACHED < distance[1]
    np.testing.assert_allclose(outcome.reward, -distance * worlds.world.spec.period)


def test_push_succeeds_where_the_prop_is_at_the_goal():
    worlds = drawn("push", "gantry", count=2)
    worlds.draws.goal[0, :2] = worlds.prop[0, :2] + (0.9 * PUSHED, 0.0)
    outcome = worlds.step(np.zeros((2, 8)))
    assert outcome.success.tolist() == [True, False]
    np.testing.assert_allclose(outcome.reward[0], -0.9 * PUSHED * 0.1, rtol=1e-6)


def test_walk_pays_forward_metres_until_the_fall():
    worlds = drawn("walk", "quadruped", count=3)
    world = worlds.world
    worlds.qvel[0, 0] = 3.0
    worlds.qpos[2, 2] = 1.2  # pitch
    before = worlds.qpos[:, 0].copy()
    outcome = worlds.step(np.zeros((3, 8)))
    forward = worlds.qpos[:, 0] - before
    assert worlds.fallen.tolist() == [False, False, True]
    np.testing.assert_allclose(outcome.reward, [forward[0], forward[1], 0.0])
    assert outcome.success.tolist() == [True, False, False]
    worlds.qpos[2, 2] = 0.0
    assert not worlds.step(np.zeros((3, 8))).success[2] and worlds.fallen[2]
    root = worlds.observe()["root"][0, 0]
    np.testing.assert_allclose(root[0], world.walker.height + worlds.qpos[0, 1], rtol=1e-6)
    np.testing.assert_allclose(root[2], worlds.qvel[0, 0], rtol=1e-6)


def test_what_a_world_has_not_is_named():
    with pytest.raises(ValueError, match="'walk/biped' has no tip"):
        _ = drawn("walk", "biped", count=1).tip
    with pytest.raises(ValueError, match="'reach/arm2' has no prop"):
        _ = drawn("reach", "arm2", count=1).prop


def test_the_page_on_worlds_runs(capsys):
    page = pathlib.Path(__file__).parents[2] / "docs" / "worlds.md"
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    names: dict[str, object] = {}
    exec("\n".join(blocks), names)
    assert capsys.readouterr().out.split()[1:] == ["0.0", "0"]
    assert names["frame"].shape == (64, 64, 3) and names["truncated"] is False
