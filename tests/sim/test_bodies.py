"""Forward kinematics of bodies against closed forms and MuJoCo's own."""

import mujoco
import numpy as np
import pytest

from roam_jax.sim.bodies import BODIES, TIP_HEIGHT
from roam_jax.sim.fragments import ARM_FREQUENCY
from roam_jax.sim.native import NativeWorlds
from roam_jax.sim.worlds import make_world


def positions(body: str, count: int) -> np.ndarray:
    low, high = BODIES[body].low, BODIES[body].high
    return np.random.default_rng(0).uniform(low, high, (count, len(low)))


@pytest.mark.parametrize("body", ["arm2", "arm3", "arm4"])
def test_an_arm_adds_up_its_links(body):
    q = positions(body, 20)
    angles = np.cumsum(q, axis=1)
    lengths = np.array([joint.length for joint in BODIES[body].morphology.joints])
    expected = np.stack(
        [(lengths * np.cos(angles)).sum(1), (lengths * np.sin(angles)).sum(1)], axis=1
    )
    tip = BODIES[body].tip_position(q)
    np.testing.assert_allclose(tip[:, :2], expected, atol=1e-12)
    np.testing.assert_allclose(tip[:, 2], TIP_HEIGHT)


@pytest.mark.parametrize("body", BODIES)
def test_tip_and_jacobian_are_mujocos(body):
    world = make_world("reach", body)
    data, jacobian = mujoco.MjData(world.model), np.zeros((3, world.model.nv))
    q = positions(body, 5)
    tips, columns = BODIES[body].tip_jacobian(q)
    for row, tip, column in zip(q, tips, columns, strict=True):
        data.qpos[world.joints] = row
        mujoco.mj_kinematics(world.model, data)
        mujoco.mj_comPos(world.model, data)
        mujoco.mj_jacSite(world.model, data, jacobian, None, world.model.site("tip").id)
        np.testing.assert_allclose(tip, data.site("tip").xpos, atol=1e-12)
        np.testing.assert_allclose(column, jacobian[:, world.dofs], atol=1e-12)


@pytest.mark.parametrize("body", BODIES)
def test_a_joint_lags_as_if_critically_damped(body):
    world = make_world("reach", body)
    worlds = NativeWorlds(world, world.draw(np.random.default_rng(0), 4))
    before = worlds.qpos[:, 0].copy()
    actions = np.zeros(worlds.command.shape)
    actions[:, 0] = 0.5
    worlds.step(actions)
    phase = ARM_FREQUENCY * world.spec.period
    part = 1 - (1 + phase) * np.exp(-phase)
    moved = (worlds.qpos[:, 0] - before) / (0.5 * BODIES[body].steps[0])
    np.testing.assert_allclose(moved, part, atol=0.06)
