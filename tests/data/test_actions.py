"""Relabelled actions against step-by-step references."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from roam_jax.data.actions import gripper_inputs, gripper_targets, relabel, wrap_angle
from roam_jax.data.dataset import EpisodeReader
from tests.data import rlds


def reverse_scan(command):
    """The rule, a step at a time from the end."""
    carried = 1.0 if command[-1] > 0.5 else 0.0
    out = []
    for value in reversed(command):
        carried = 1.0 if value > 0.95 else 0.0 if value < 0.05 else carried
        out.append(carried)
    return out[::-1]


def forward_scan(command):
    carried, out = 0.5, []
    for value in command:
        carried = 1.0 if value > 0.95 else 0.0 if value < 0.05 else carried
        out.append(carried)
    return out


COMMANDS = st.lists(
    st.sampled_from([0.0, 0.04, 0.05, 0.3, 0.5, 0.7, 0.95, 0.96, 1.0]), min_size=1, max_size=12
)


@given(COMMANDS)
def test_gripper_scans_equal_a_step_by_step_scan(command):
    command = np.array(command, np.float32)
    np.testing.assert_array_equal(gripper_targets(command), reverse_scan(command))
    np.testing.assert_array_equal(gripper_inputs(command), forward_scan(command))


def test_gripper_by_hand():
    command = np.array([0.5, 1.0, 0.6, 0.0, 0.4, 1.0, 0.3], np.float32)
    np.testing.assert_array_equal(gripper_targets(command), [1, 1, 0, 0, 1, 1, 0])
    np.testing.assert_array_equal(gripper_inputs(command), [0.5, 1, 1, 0, 0, 1, 1])


@given(st.lists(st.floats(-20, 20, width=32), min_size=1, max_size=8))
def test_wrapped_angles_are_the_same_angles(angles):
    angles = np.array(angles, np.float32)
    wrapped = wrap_angle(angles).astype(np.float64)
    assert (np.abs(wrapped) <= np.float32(np.pi)).all()
    np.testing.assert_allclose(np.cos(wrapped), np.cos(angles.astype(np.float64)), atol=1e-5)
    np.testing.assert_allclose(np.sin(wrapped), np.sin(angles.astype(np.float64)), atol=1e-5)
    inside = np.abs(angles) < 3.14
    np.testing.assert_array_equal(wrapped[inside], angles[inside])


def test_half_a_turn_is_positive():
    turns = np.array([np.pi, -np.pi, 3 * np.pi, 0, 6.28], np.float32)
    expected = [np.pi, np.pi, np.pi, 0, 6.28 - 2 * np.pi]
    np.testing.assert_allclose(wrap_angle(turns), expected, atol=1e-6)


def test_a_yaw_jump_is_a_small_turn():
    state = np.zeros((3, 7), np.float32)
    state[1:, 5] = 3.1, -3.1
    pose = relabel(state, np.ones((3, 7), np.float32)).targets
    np.testing.assert_allclose(pose[0, 5], 2 * np.pi - 6.2, atol=1e-6)


def test_pose_is_the_difference_of_kept_states():
    episode = rlds.StoredEpisode.random(0, 9)
    actions = relabel(episode.state, episode.action)
    assert actions.targets.shape == actions.inputs.shape == (7, 7)
    for i in range(7):
        change = episode.state[i + 2] - episode.state[i + 1]
        np.testing.assert_array_equal(actions.targets[i, :3], change[:3])
        angle = np.arctan2(np.sin(change[3:6]), np.cos(change[3:6]))
        np.testing.assert_allclose(actions.targets[i, 3:6], angle, atol=1e-6)
    np.testing.assert_array_equal(actions.inputs[:, :6], actions.targets[:, :6])
    kept = episode.action[1:, 6]
    np.testing.assert_array_equal(actions.targets[:, 6], reverse_scan(kept)[:-1])
    np.testing.assert_array_equal(actions.inputs[:, 6], forward_scan(kept)[:-1])


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_no_action_between_fewer_than_two_kept_steps(steps):
    episode = np.zeros((steps, 7), np.float32)
    assert relabel(episode, episode).targets.shape == (0, 7)


@given(st.integers(0, 6), st.integers(0, 99))
def test_inputs_never_see_a_later_step(row, seed):
    episode = rlds.StoredEpisode.random(1, 9)
    other = rlds.StoredEpisode.random(100 + seed, 9)
    before = relabel(episode.state, episode.action).inputs[: row + 1]
    # Input row i may depend on the states around it and on the command given at its start.
    state, action = episode.state.copy(), episode.action.copy()
    state[row + 3 :] = other.state[row + 3 :]
    action[row + 2 :] = other.action[row + 2 :]
    np.testing.assert_array_equal(relabel(state, action).inputs[: row + 1], before)


def test_real_motion_follows_the_command_of_its_own_step(bridge_root):
    """Motion correlates with the command of its step, and much less with the next one's."""
    episodes = list(EpisodeReader(bridge_root, "train"))
    motion = np.stack([relabel(e.state, e.action).targets[1:-1, :6] for e in episodes])
    stored = np.stack([e.action for e in episodes])

    def correlation(lag):
        # Row 1 of the targets is the motion after stored step 2.
        command = stored[:, 2 + lag : 8 + lag, :6]
        pairs = zip(motion.reshape(-1, 6).T, command.reshape(-1, 6).T, strict=True)
        return np.array([np.corrcoef(*pair)[0, 1] for pair in pairs])

    assert (correlation(0) > 0.6).all() and correlation(0).mean() > 0.8
    assert (correlation(0) > correlation(1) + 0.1).all()
