"""Batched native worlds against loops of `mj_step`, and what they refuse."""

import mujoco
import numpy as np
import pytest

from roam_jax.morphology import PIXELS
from roam_jax.sim.native import NativeWorlds
from roam_jax.sim.worlds import make_world


def made(environment: str, body: str, count: int, **options) -> NativeWorlds:
    world = make_world(environment, body)
    return NativeWorlds(world, world.draw(np.random.default_rng(3), count), **options)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    ("environment", "body"), [("reach", "gantry"), ("push", "arm3"), ("walk", "biped")]
)
def test_equals_a_loop_of_mj_step(environment, body, threads):
    worlds = made(environment, body, 5, threads=threads)
    world = worlds.world
    alone = [mujoco.MjData(model) for model in worlds.models]
    for data, qpos in zip(alone, worlds.qpos, strict=True):
        data.qpos[:] = qpos
    rng = np.random.default_rng(0)
    command = worlds.command
    for _ in range(4):
        actions = rng.uniform(-1, 1, command.shape)
        worlds.step(actions)
        command = world.commanded(command, actions)
        for model, data, told in zip(worlds.models, alone, command, strict=True):
            data.ctrl[:] = told
            mujoco.mj_step(model, data, nstep=world.substeps)
    np.testing.assert_array_equal(worlds.qpos, [data.qpos for data in alone])
    np.testing.assert_array_equal(worlds.qvel, [data.qvel for data in alone])
    np.testing.assert_allclose(world.substeps * world.model.opt.timestep, world.spec.period)
    joints = worlds.observe()["joints"]
    np.testing.assert_allclose(joints[..., 0], worlds.qpos[:, world.joints], rtol=1e-6)
    np.testing.assert_allclose(joints[..., 2], command - worlds.qpos[:, world.joints], atol=1e-6)


@pytest.mark.parametrize("body", ["gantry", "arm3"])
def test_a_prop_moves_only_while_it_is_pushed(body):
    worlds = made("push", body, 6)
    world, start = worlds.world, worlds.prop[:, :2]
    worlds.step(np.zeros(worlds.command.shape))
    np.testing.assert_allclose(worlds.prop[:, :2], start, atol=1e-6)
    height = 0.022 if body == "gantry" else world.table_body.height[0]
    for _ in range(20):  # straight at the prop: down beside it, then through it
        tip, jacobian = world.table_body.tip_jacobian(worlds.command)
        target = np.append(start, np.full((6, 1), height), axis=1)
        move = 0.3 * (target - tip)
        back = jacobian.swapaxes(1, 2)
        inverse = back @ np.linalg.inv(jacobian @ back + 1e-4 * np.eye(3))
        steps = (inverse @ move[..., None])[..., 0] / world.table_body.steps
        worlds.step(np.clip(steps, -1, 1))
    moved = np.linalg.norm(worlds.prop[:, :2] - start, axis=1)
    assert (moved > 0.01).all() and not worlds.diverged.any()
    resting = worlds.prop.copy()
    for _ in range(3):
        worlds.step(np.zeros(worlds.command.shape))
    np.testing.assert_allclose(worlds.prop, resting, atol=5e-3)


def test_commands_stay_within_the_joints_ranges():
    worlds = made("reach", "arm4", 2)
    for _ in range(60):
        worlds.step(np.ones((2, 4)))
    np.testing.assert_array_equal(worlds.command, [worlds.world.table_body.high] * 2)
    assert worlds.done and worlds.time == 60


def test_a_walkers_action_is_a_part_of_half_its_range():
    worlds = made("walk", "biped", 1)
    worlds.step(np.array([[-1.0, 1.0, 0.0, 0.5]]))
    joints = worlds.world.spec.morphology.joints
    expected = [
        (joint.low + joint.high) / 2 + part * (joint.high - joint.low) / 2
        for joint, part in zip(joints, (-1.0, 1.0, 0.0, 0.5), strict=True)
    ]
    np.testing.assert_allclose(worlds.command[0], expected)


@pytest.mark.parametrize("value", [1e12, np.nan])
def test_one_that_diverges_is_reported_and_the_others_go_on(value, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # MuJoCo logs its warning into the working directory
    worlds, other = made("push", "arm3", 4), made("push", "arm3", 4)
    worlds.qvel[1, 3] = value
    last = worlds.qpos[1].copy()
    actions = np.full(worlds.command.shape, 0.5)
    for _ in range(3):
        outcome, expected = worlds.step(actions), other.step(actions)
    assert outcome.diverged.tolist() == worlds.diverged.tolist() == [False, True, False, False]
    assert not expected.diverged.any()
    assert outcome.reward[1] == 0 and not outcome.success[1]
    np.testing.assert_array_equal(worlds.qpos[1], last)
    rest = [0, 2, 3]
    np.testing.assert_array_equal(worlds.qpos[rest], other.qpos[rest])
    np.testing.assert_array_equal(outcome.reward[rest], expected.reward[rest])
    worlds.diverged[:] = True
    assert worlds.step(actions).diverged.all()


def test_refuses_other_actions():
    worlds = made("reach", "arm3", 2)
    with pytest.raises(ValueError, match=r"shape \(2, 4\).*'reach/arm3' expects \(2, 3\).*hinge_0"):
        worlds.step(np.zeros((2, 4)))
    actions = np.zeros((2, 3))
    actions[1, 2] = 1.5
    with pytest.raises(ValueError, match=r"action 1\.5 of joint 'hinge_2' in episode 1.*\[-1, 1\]"):
        worlds.step(actions)
    actions[1, 2] = np.nan
    with pytest.raises(ValueError, match="action nan of joint 'hinge_2'"):
        worlds.step(actions)
    worlds.step(np.full((2, 3), np.float32(1.0) + np.float32(2e-7)))


def test_refuses_draws_of_another_body():
    draws = make_world("reach", "arm2").draw(np.random.default_rng(0), 3)
    with pytest.raises(ValueError, match="2 joints: world 'reach/arm3' takes at least one, of 3"):
        NativeWorlds(make_world("reach", "arm3"), draws)
    with pytest.raises(ValueError, match="draws of 0 episodes"):
        NativeWorlds(make_world("reach", "arm2"), draws[:0])


def test_frames_are_observed_where_asked_for():
    worlds = made("push", "arm2", 3)
    observed = worlds.observe(pixels=16)
    assert observed[PIXELS].shape == (3, 16, 16, 3) and observed[PIXELS].dtype == np.uint8
    np.testing.assert_array_equal(observed[PIXELS][1], worlds.frame(1, 16))
    assert PIXELS not in worlds.observe()
