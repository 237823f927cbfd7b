"""Actions between frames against step-by-step references, at every stride."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from roam_jax.data.actions import (
    episode_actions,
    gripper_inputs,
    gripper_targets,
    wrap_angle,
)
from roam_jax.data.dataset import EpisodeReader
from roam_jax.data.declaration import DatasetDeclaration, Stored
from roam_jax.data.known import BRIDGE
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


def bridge_actions(state, action, *, stride=1):
    """As for Bridge; the command of pose dimensions is nothing that may be looked at."""
    command = np.full_like(action, np.nan)
    command[:, 6] = action[:, 6]
    return episode_actions(BRIDGE, state, command, stride=stride)


def relabelled(state, action):
    """The published preprocessing with wrapped differences: poses by states, grippers by scans."""
    state, command = state[1:], action[1:, 6]
    pose = np.diff(state[:, :6], axis=0)
    pose[:, 3:] = (pose[:, 3:].astype(np.float64) + np.pi) % (2 * np.pi) - np.pi
    return tuple(
        np.column_stack([pose, scan(command)[:-1]]) for scan in (forward_scan, reverse_scan)
    )


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
    pose = bridge_actions(state, np.ones((3, 7), np.float32)).targets
    np.testing.assert_allclose(pose[0, 5], 2 * np.pi - 6.2, atol=1e-6)


def test_pose_is_the_difference_of_kept_states():
    episode = rlds.StoredEpisode.random(0, 9)
    actions = bridge_actions(episode.state, episode.action)
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


@given(st.integers(0, 99), st.integers(3, 20))
def test_bridge_at_its_own_rate_equals_the_published_relabelling(seed, steps):
    episode = rlds.StoredEpisode.random(seed, steps)
    found = bridge_actions(5 * episode.state, episode.action)
    inputs, targets = relabelled(5 * episode.state, episode.action)
    np.testing.assert_allclose(found.inputs, inputs, atol=2e-6)
    np.testing.assert_allclose(found.targets, targets, atol=2e-6)


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_what_was_reached_over_several_steps(stride):
    episode = rlds.StoredEpisode.random(3, 14)
    state, gripper = 4 * episode.state[1:], episode.action[1:, 6]
    actions = bridge_actions(4 * episode.state, episode.action, stride=stride)
    assert actions.targets.shape == actions.inputs.shape == (13 - stride, 7)
    turned = 0
    for i in range(13 - stride):
        change = state[i + stride] - state[i]
        np.testing.assert_array_equal(actions.targets[i, :3], change[:3])
        angle = np.arctan2(*(f(change[3:6].astype(np.float64)) for f in (np.sin, np.cos)))
        np.testing.assert_allclose(actions.targets[i, 3:6], angle, atol=2e-6)
        turned += (np.abs(change[3:6]) > np.pi).sum()
        # The gripper command of the last step before the frame.
        last = i + stride - 1
        assert actions.targets[i, 6] == reverse_scan(gripper)[last]
        assert actions.inputs[i, 6] == forward_scan(gripper)[last]
    assert turned > 3
    np.testing.assert_array_equal(actions.inputs[:, :6], actions.targets[:, :6])


def stored_arm(*, per_step):
    """An arm whose actions are what it was told, a gripper in the middle."""
    names = ("reach", "lift")
    return DatasetDeclaration(
        name="arm",
        cameras={"wrist": "steps/image"},
        state=(Stored(("a",), "steps/state", unit="rad", kind="angle"),),
        action=(
            Stored(names, "steps/action", unit="m", columns=(0, 3), per_step=per_step),
            Stored(("jaw",), "steps/action", kind="gripper", columns=(2,)),
            Stored(
                ("turn",),
                "steps/action",
                unit="rad",
                kind="angle",
                columns=(1,),
                per_step=per_step,
            ),
        ),
        rate=10.0,
        skip_first=2,
    )


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("per_step", ["delta", "absolute"])
def test_what_was_told_over_several_steps(stride, per_step):
    rng = np.random.default_rng(0)
    # In the order of the action's dimensions, as a reader gives it: reach, lift, jaw, turn.
    command = rng.normal(0, 2, (12, 4)).astype(np.float32)
    command[:, 2] = rng.choice([0.0, 0.5, 1.0], 12)
    state = rng.normal(size=(12, 1)).astype(np.float32)
    found = episode_actions(stored_arm(per_step=per_step), state, command, stride=stride)
    kept = command[2:].astype(np.float64)
    assert found.targets.shape == (10 - stride, 4)
    for i in range(10 - stride):
        rows = kept[i : i + stride]
        told = rows.sum(axis=0) if per_step == "delta" else rows[-1]
        np.testing.assert_allclose(found.targets[i, :2], told[:2], atol=1e-6)
        turn = np.arctan2(np.sin(told[3]), np.cos(told[3]))
        np.testing.assert_allclose(found.targets[i, 3], turn, atol=1e-6)
        assert found.targets[i, 2] == reverse_scan(kept[:, 2])[i + stride - 1]
        assert found.inputs[i, 2] == forward_scan(kept[:, 2])[i + stride - 1]
    np.testing.assert_array_equal(found.inputs[:, [0, 1, 3]], found.targets[:, [0, 1, 3]])


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_no_action_between_fewer_than_two_kept_steps(steps):
    episode = np.zeros((steps, 7), np.float32)
    assert bridge_actions(episode, episode).targets.shape == (0, 7)


@pytest.mark.parametrize("stride", [4, 5, 9])
def test_no_action_over_more_steps_than_there_are(stride):
    episode = np.zeros((5, 7), np.float32)
    found = bridge_actions(episode, episode, stride=stride)
    assert found.targets.shape == found.inputs.shape == (0, 7)


@given(st.integers(0, 6), st.integers(0, 99), st.integers(1, 3))
def test_inputs_never_see_a_later_step(row, seed, stride):
    episode = rlds.StoredEpisode.random(1, 8 + stride)
    other = rlds.StoredEpisode.random(100 + seed, 8 + stride)

    def inputs(state, action):
        return bridge_actions(state, action, stride=stride).inputs[: row + 1]

    before = inputs(episode.state, episode.action)
    assert len(before) == row + 1
    # Input row i may depend on states up to its later frame and on commands before that frame.
    state, action = episode.state.copy(), episode.action.copy()
    state[row + stride + 2 :] = other.state[row + stride + 2 :]
    action[row + stride + 1 :] = other.action[row + stride + 1 :]
    np.testing.assert_array_equal(inputs(state, action), before)


def test_real_motion_follows_the_command_of_its_own_step(bridge_root):
    """Motion correlates with the stored command of its step, and much less with the next one's."""
    episodes = list(EpisodeReader(bridge_root, "train"))
    motion = np.stack([bridge_actions(e.state, e.command).targets[1:-1, :6] for e in episodes])
    stored = np.stack(
        [
            np.stack([step["action"] for step in reference["steps"]])
            for reference in rlds.decoded(bridge_root, "train")
        ]
    )

    def correlation(lag):
        # Row 1 of the targets is the motion after stored step 2.
        command = stored[:, 2 + lag : 8 + lag, :6]
        pairs = zip(motion.reshape(-1, 6).T, command.reshape(-1, 6).T, strict=True)
        return np.array([np.corrcoef(*pair)[0, 1] for pair in pairs])

    assert (correlation(0) > 0.6).all() and correlation(0).mean() > 0.8
    assert (correlation(0) > correlation(1) + 0.1).all()
