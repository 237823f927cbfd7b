"""Physics of the gantry against closed forms, and the declarations' checks."""

import dataclasses
import math

import mujoco
import numpy as np
import pytest

from roam_jax.sim import fragments, tabletop
from roam_jax.sim.tabletop import Prop, Scene, SimulationDivergedError, Table, Tabletop

CUBE = Prop("cube", "red", (0.9, 0.1, 0.1), 0.03, (0.30, 0.10))
BALL = Prop("ball", "blue", (0.1, 0.1, 0.9), 0.03, (0.30, -0.10))
SCENE = Scene(props=(CUBE, BALL), start=(0.25, 0.0, 0.15, 0.1, -0.2, 0.3), gripper=0.0)


def rotation(roll: float, pitch: float, yaw: float) -> np.ndarray:
    """Rz(yaw) Ry(pitch) Rx(roll), spelled out."""
    (sr, cr), (sp, cp), (sy, cy) = ((math.sin(a), math.cos(a)) for a in (roll, pitch, yaw))
    x = np.array([[1, 0, 0], [0, cr, -sr], [0, sr, cr]])
    y = np.array([[cp, 0, sp], [0, 1, 0], [-sp, 0, cp]])
    z = np.array([[cy, -sy, 0], [sy, cy, 0], [0, 0, 1]])
    return z @ y @ x


@pytest.mark.parametrize("props", [(CUBE,), (CUBE, BALL)])
def test_model_has_one_contact_pair_a_prop_and_no_other_contacts(props):
    model = Tabletop(Scene(props=props)).model
    assert model.npair == len(props) <= 2
    assert not model.geom_contype.any() and not model.geom_conaffinity.any()
    assert model.nmesh == 0
    assert model.nv == 6 + 2 + 3 * len(props)


def test_starts_where_the_scene_says():
    table = Tabletop(SCENE)
    np.testing.assert_allclose(table.state, [*SCENE.start, SCENE.gripper], atol=1e-12)
    np.testing.assert_allclose(table.prop_position(0), CUBE.position, atol=1e-9)


def test_reaches_the_commanded_pose():
    table = Tabletop(SCENE)
    delta = np.array([0.03, -0.02, -0.01, 0.1, 0.05, -0.15])
    for _ in range(3):
        table.step(np.array([*delta, 1.0]))
    for _ in range(6):
        state = table.step(np.array([*np.zeros(6), 1.0]))
    pose = np.add(SCENE.start, 3 * delta)
    np.testing.assert_allclose(state, [*pose, 1.0], atol=1e-3)
    site = table.data.site("tip")
    np.testing.assert_allclose(site.xpos, pose[:3], atol=1e-3)
    np.testing.assert_allclose(site.xmat.reshape(3, 3), rotation(*pose[3:]), atol=2e-3)


def test_a_turned_prop_is_turned_and_slides_along_the_table_axes():
    turned = dataclasses.replace(CUBE, yaw=0.4)
    table = Tabletop(Scene(props=(turned,)))
    geom = table.data.geom("prop_0").xmat.reshape(3, 3)
    np.testing.assert_allclose(geom, rotation(0.0, 0.0, 0.4), atol=1e-8)
    table.data.joint("prop_0_x").qpos = 0.05
    mujoco.mj_kinematics(table.model, table.data)
    np.testing.assert_allclose(table.prop_position(0), np.add(CUBE.position, (0.05, 0)), atol=1e-9)


def test_one_step_lags_as_a_critically_damped_joint():
    table = Tabletop(SCENE)
    before = table.state
    delta = np.array([0.02, -0.02, 0.02, 0, 0, 0])
    moved = (table.step(np.array([*delta, 0.0])) - before)[:3]
    phase = fragments.ARM_FREQUENCY * tabletop.CONTROL_PERIOD
    np.testing.assert_allclose(moved / delta[:3], 1 - (1 + phase) * math.exp(-phase), atol=0.03)


def test_gripper_ramps_over_several_states():
    table = Tabletop(SCENE)
    openings = [table.step(np.array([*np.zeros(6), 1.0]))[6] for _ in range(8)]
    phase = fragments.FINGER_FREQUENCY * tabletop.CONTROL_PERIOD * np.arange(1, 9)
    np.testing.assert_allclose(openings, 1 - (1 + phase) * np.exp(-phase), atol=0.03)
    assert sum(0.05 < opening < 0.95 for opening in openings) == 2


def test_commands_saturate_at_the_workspace():
    table = Tabletop(SCENE)
    table.step(np.array([9.0, -9.0, -9.0, 9.0, 9.0, 9.0, 7.0]))
    expected = np.where([1, 0, 0, 1, 1, 1], tabletop.POSE_HIGH, tabletop.POSE_LOW)
    np.testing.assert_array_equal(table.command, expected)
    assert table.data.ctrl[-1] == fragments.FINGER_TRAVEL


@pytest.mark.parametrize("shape", tabletop.SHAPES)
def test_a_prop_moves_only_while_it_is_pushed(shape):
    prop = Prop(shape, "red", (0.9, 0.1, 0.1), 0.03, (0.30, 0.0))
    start = (0.22, 0.0, 0.022, 0.0, 0.0, 0.0)
    table = Tabletop(Scene(props=(prop, BALL), start=start, gripper=0.0))
    forward = np.array([0.02, 0, 0, 0, 0, 0, 0])
    table.step(forward)  # 0.24: still 3 cm from the prop's near side
    np.testing.assert_allclose(table.prop_position(0), prop.position, atol=1e-6)
    for _ in range(5):
        table.step(forward)
    for _ in range(4):
        table.step(np.zeros(7))
    # The fingertip's contact ball (radius 14 mm) ends at 0.34 and the prop ahead of it.
    ahead = table.prop_position(0)[0] - table.state[0]
    assert 0.03 + 0.005 < ahead < 0.03 + 0.014 + 0.01
    assert abs(table.prop_position(0)[1]) < 0.01
    np.testing.assert_allclose(table.prop_position(1), BALL.position, atol=1e-6)
    resting = table.prop_position(0)
    table.step(np.array([-0.05, 0, 0, 0, 0, 0, 0]))
    np.testing.assert_allclose(table.prop_position(0), resting, atol=1e-3)


def test_reset_repeats_an_episode_bit_for_bit():
    table = Tabletop(SCENE)
    action = np.array([0.01, 0.02, -0.02, 0.05, 0.0, 0.1, 1.0])
    first = [table.step(action) for _ in range(3)]
    table.reset()
    np.testing.assert_array_equal(first, [table.step(action) for _ in range(3)])


def test_divergence_is_an_error(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # MuJoCo logs its warning into the working directory
    table = Tabletop(SCENE)
    table.data.qvel[0] = math.nan
    with pytest.raises(SimulationDivergedError, match="mjWARN_BADQVEL at degree of freedom 0"):
        table.step(np.zeros(7))
    table.reset()
    assert np.isfinite(table.step(np.zeros(7))).all()


@pytest.mark.parametrize("action", [np.zeros(6), np.full(7, np.nan)])
def test_refuses_other_actions(action):
    with pytest.raises(Exception, match="7"):
        Tabletop(SCENE).step(action)


def test_declarations_name_what_is_wrong():
    with pytest.raises(ValueError, match=r"prop shape 'cub'.*did you mean 'cube'"):
        Prop("cub", "red", (1.0, 0.0, 0.0), 0.03, (0.3, 0.0))
    with pytest.raises(ValueError, match=r"red cube is -0\.1 m"):
        Prop("cube", "red", (1.0, 0.0, 0.0), -0.1, (0.3, 0.0))
    with pytest.raises(ValueError, match=r"table texture 'chequer'.*did you mean 'checker'"):
        Table(texture="chequer")
    with pytest.raises(ValueError, match="expected 1 to 2"):
        Scene(props=())
    with pytest.raises(ValueError, match="different names"):
        Scene(props=(CUBE, CUBE))
    with pytest.raises(ValueError, match=r"start z = 0\.9: expected 0\.012 to 0\.3"):
        Scene(props=(CUBE,), start=(0.3, 0.0, 0.9, 0.0, 0.0, 0.0))


def test_mjcf_is_read_by_mujoco_alone():
    model = mujoco.MjModel.from_xml_string(tabletop.to_mjcf(SCENE))
    np.testing.assert_allclose(model.geom("prop_0").rgba[:3], CUBE.rgb, atol=1e-6)
    np.testing.assert_allclose(model.geom("prop_1").size[0], BALL.size)
