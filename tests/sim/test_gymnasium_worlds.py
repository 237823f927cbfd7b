"""Gymnasium's own checker on every registered environment, and what the wrappers add."""

import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from roam_jax.morphology import PIXELS
from roam_jax.sim.gymnasium_worlds import TabletopEnv, WorldEnv
from roam_jax.sim.tabletop import SimulationDivergedError
from roam_jax.sim.worlds import WORLDS

IDS = [
    *(
        f"roam_jax/{environment}-{body}-v0"
        for environment in WORLDS
        for body in WORLDS[environment]
    ),
    "roam_jax/tabletop-reach-v0",
    "roam_jax/tabletop-push-v0",
]


@pytest.mark.parametrize("name", IDS)
def test_gymnasiums_checker_finds_nothing(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gymnasium.make(name, render_mode="rgb_array", render_size=16).unwrapped)


def test_frames_are_part_of_the_space_where_asked_for():
    env = gymnasium.make("roam_jax/push-arm2-v0", pixels=24, render_mode="rgb_array")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env.unwrapped)
    seen, _ = env.reset(seed=1)
    assert seen[PIXELS].shape == (24, 24, 3) and env.render().shape == (256, 256, 3)


def test_an_episode_is_cut_off_after_its_steps_and_seeds_repeat_it():
    env, totals = WorldEnv("reach", "arm3"), []
    assert env.world_spec.name == "reach/arm3" and env.render() is None
    for _ in range(2):
        env.reset(seed=5)
        rng, total, truncated = np.random.default_rng(0), 0.0, False
        while not truncated:
            action = rng.uniform(-1, 1, 3).astype(np.float32)
            _, reward, terminated, truncated, info = env.step(action)
            total += reward
            assert not terminated and not info["diverged"]
        totals.append(total)
    assert totals[0] == totals[1] < 0
    env.reset()
    assert env.step(np.zeros(3))[1] != totals[0]


def test_divergence_cuts_an_episode_off(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # MuJoCo logs its warning into the working directory
    env = WorldEnv("push", "arm2")
    env.reset(seed=0)
    env._episode.qvel[0, 0] = 1e12
    seen, reward, terminated, truncated, info = env.step(np.zeros(2))
    assert truncated and not terminated and info == {"success": False, "diverged": True}
    assert reward == 0 and all(np.isfinite(value).all() for value in seen.values())

    table = TabletopEnv("push")
    table.reset(seed=0)

    def blow_up(action):
        raise SimulationDivergedError("blown up")

    monkeypatch.setattr(table._table, "step", blow_up)
    assert table.step(np.zeros(7))[1:] == (0.0, False, True, {"success": False, "diverged": True})


def test_a_walker_that_falls_ends_its_episode():
    env = WorldEnv("walk", "biped")
    env.reset(seed=0)
    env._episode.qpos[0, 2] = 1.5
    assert env.step(np.zeros(4))[2]


def test_the_tabletop_is_as_its_instruction_says():
    env = TabletopEnv("reach", size=16, steps=2)
    seen, _ = env.reset(seed=3)
    prop = env._task.scene.props[env._task.goal.prop]
    assert prop.name in seen["instruction"] and seen["image"].shape == (16, 16, 3)
    target = env._task.hover(env._table)
    for _ in range(2):
        move = np.clip(target - env._table.command[:3], -0.1, 0.1)
        seen, reward, _, truncated, info = env.step(np.array([*move, 0, 0, 0, 1.0]))
    assert truncated and reward == float(info["success"])
    assert np.linalg.norm(seen["state"][:3] - target) < 0.12


def test_wrong_names_are_refused():
    with pytest.raises(ValueError, match="did you mean 'reach'"):
        WorldEnv("reech", "arm3")
    with pytest.raises(ValueError, match="kind = 'pull'"):
        TabletopEnv("pull")
    with pytest.raises(ValueError, match="look = 'varid'.*did you mean 'varied'"):
        TabletopEnv("push", look="varid")
    with pytest.raises(ValueError, match="render_mode = 'human'"):
        WorldEnv("reach", "arm3", render_mode="human")
    with pytest.raises(RuntimeError, match="reach/arm3: call `reset`"):
        WorldEnv("reach", "arm3").step(np.zeros(3))


@pytest.mark.parametrize("act", [lambda env: env.step(np.zeros(7)), lambda env: env.render()])
def test_a_tabletop_must_be_reset_first(act):
    with pytest.raises(RuntimeError, match="tabletop push: call `reset`"):
        act(TabletopEnv("push", render_mode="rgb_array"))
