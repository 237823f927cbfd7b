"""Walkers as MuJoCo sees them, and their gaits as functions of time."""

import mujoco
import numpy as np
import pytest

from roam_jax.morphology import ROOT
from roam_jax.sim.walkers import (
    CONTROL_PERIOD,
    ROOT_JOINTS,
    WALKERS,
    Gait,
    alternating,
    walker_mjcf,
)


@pytest.fixture(params=WALKERS)
def body(request):
    return WALKERS[request.param]


def test_the_model_has_the_declared_joints(body):
    model = mujoco.MjModel.from_xml_string(walker_mjcf(body))
    names = [model.joint(i).name for i in range(model.njnt)]
    joints = body.morphology.joints
    assert names == [*ROOT_JOINTS, *body.morphology.joint_names]
    assert [model.actuator(i).name for i in range(model.nu)] == names[3:]
    for joint in joints:
        np.testing.assert_allclose(model.joint(joint.name).range, (joint.low, joint.high))
        np.testing.assert_allclose(model.actuator(joint.name).ctrlrange, (joint.low, joint.high))
    assert [j.parent for j in joints] == [p for k in range(len(body.hips)) for p in (ROOT, 2 * k)]


def test_the_lowest_foot_just_touches_the_floor(body):
    model = mujoco.MjModel.from_xml_string(walker_mjcf(body))
    data = mujoco.MjData(model)
    joints = body.positions(np.random.default_rng(0).uniform(-1, 1, (1, len(body.morphology))))
    (height,) = body.standing_height(joints)
    data.qpos[1] = height - body.height
    data.qpos[3:] = joints[0]
    mujoco.mj_forward(model, data)
    feet = [data.geom(f"foot_{leg}") for leg in range(len(body.hips))]
    lowest = min(foot.xpos[2] for foot in feet) - model.geom("foot_0").size[0]
    assert lowest == pytest.approx(0.0, abs=1e-9)
    assert data.geom("torso").xpos[2] == pytest.approx(height)
    stance = body.positions(np.zeros((1, len(body.morphology))))
    assert body.standing_height(stance)[0] == pytest.approx(body.height)


def test_friction_and_mass_are_the_model_s(body):
    model = mujoco.MjModel.from_xml_string(walker_mjcf(body, friction=0.7, torso_mass=2.5))
    np.testing.assert_allclose(model.pair_friction[:, :2], 0.7)
    assert model.npair == 1 + len(body.hips)
    assert model.body("torso").mass[0] == pytest.approx(2.5)


def test_episodes_start_one_action_before_the_gait(body):
    np.testing.assert_allclose(body.start, body.positions(body.gait(-CONTROL_PERIOD)))
    low, high = (
        np.array([getattr(joint, end) for joint in body.morphology.joints])
        for end in ("low", "high")
    )
    positions = body.positions(body.gait(np.linspace(0, 2, 41)))
    assert (low - 1e-9 <= positions).all() and (positions <= high + 1e-9).all()
    assert (np.ptp(positions, axis=0) > 0.01).all(), "every joint moves"


def test_a_gait_is_a_sinusoid_a_joint_and_clipped():
    gait = Gait(2.0, offsets=(0.1, 0.8), amplitudes=(0.5, 0.5), phases=(0.0, 0.25))
    np.testing.assert_allclose(gait(0.0), (0.1, 1.0))
    np.testing.assert_allclose(gait(np.array([0.125, 0.25])), ((0.6, 0.8), (0.1, 0.3)), atol=1e-12)
    groups = ((0.1, 0.2, 0.3, 0.4, 0.5), (-0.1, 0.2, -0.3, 0.4, 0.1))
    assert alternating(3, 1.0, *groups, phase=0.25) == Gait(
        1.0,
        offsets=(0.1, 0.3, -0.1, -0.3, 0.1, 0.3),
        amplitudes=(0.2, 0.4) * 3,
        phases=(0.0, 0.5, 0.25, 0.35, 0.0, 0.5),
    )


def test_low_or_steep_is_fallen(body):
    heights = body.height * np.array([1.0, 0.5, 1.0])
    np.testing.assert_array_equal(
        body.fallen(heights, np.array([0.1, 0.1, -0.9])), [False, True, True]
    )
