"""Relabelled robot actions: what the arm did, rather than what it was told.

Commands in BridgeData V2 correlate only 0.72 to 0.93 with the motion that follows, so pose actions
are differences of reached states, as in the preprocessing that Octo and OpenVLA share. Two
corrections to it: differences of Euler angles are wrapped, and what a model may see of the gripper
is never decided by looking ahead.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float32

from roam_jax.contracts import ACTION_DIM, ANGLES, GRIPPER

# The first stored action of an episode is all zeros, so reading starts at the second step.
FIRST_STEP = 1
OPEN_ABOVE, CLOSED_BELOW = 0.95, 0.05
UNDECIDED = 0.5


@dataclasses.dataclass(frozen=True)
class EpisodeActions:
    """Actions of an episode's n kept steps; row i is the transition from kept step i to i + 1.

    Args:
        inputs: (n - 1, 7) for past actions: pose in m and rad; gripper 1 open, 0 closed, 0.5 not
            yet decided. Row i depends on kept steps 0..i + 1 alone.
        targets: (n - 1, 7) for predicted actions: the same pose, gripper 1 or 0 by looking ahead.
    """

    inputs: Float32[np.ndarray, "actions 7"]
    targets: Float32[np.ndarray, "actions 7"]


def relabel(
    state: Float32[np.ndarray, "steps 7"], action: Float32[np.ndarray, "steps 7"]
) -> EpisodeActions:
    """Actions between the kept steps of an episode.

    Args:
        state: stored states: x, y, z in m; roll, pitch, yaw in rad; gripper opening.
        action: stored commands; only the gripper's (1 open, 0 closed) is used.

    Returns:
        One row less than kept steps: the last observation has no action. No row for an episode of
        fewer than two kept steps.
    """
    state, action = state[FIRST_STEP:], action[FIRST_STEP:]
    if len(state) < 2:
        return EpisodeActions(*(np.zeros((0, ACTION_DIM), np.float32) for _ in range(2)))
    pose = np.diff(state[:, :GRIPPER], axis=0)
    pose[:, ANGLES] = wrap_angle(pose[:, ANGLES])
    command = action[:, GRIPPER]
    grippers = gripper_inputs(command), gripper_targets(command)
    return EpisodeActions(*(np.column_stack([pose, gripper[:-1]]) for gripper in grippers))


def wrap_angle(angle: Float32[np.ndarray, " ..."]) -> Float32[np.ndarray, " ..."]:
    """The same angle in (-pi, pi], in rad; what lies there already is returned unchanged."""
    # In float64, so that taking off a turn costs no digit of a small difference.
    wrapped = np.pi - np.mod(np.pi - angle.astype(np.float64), 2 * np.pi)
    half_turn = np.float32(np.pi)
    inside = (angle > -half_turn) & (angle <= half_turn)
    wrapped = np.where(inside, angle, wrapped.astype(np.float32))
    return np.where(wrapped == -half_turn, half_turn, wrapped)


def gripper_targets(command: Float32[np.ndarray, " steps"]) -> Float32[np.ndarray, " steps"]:
    """Binary gripper by a reverse scan: an undecided step takes the next decided value.

    What follows the last decided step is on its way to the last command, rounded.
    """
    ending = 1.0 if command[-1] > UNDECIDED else 0.0
    return _carry(command[::-1], start=ending)[::-1]


def gripper_inputs(command: Float32[np.ndarray, " steps"]) -> Float32[np.ndarray, " steps"]:
    """Gripper by a forward scan: an undecided step keeps the last decided value, at first 0.5."""
    return _carry(command, start=UNDECIDED)


def _carry(command: np.ndarray, *, start: float) -> np.ndarray:
    """1 above `OPEN_ABOVE`, 0 below `CLOSED_BELOW`, elsewhere the value before it."""
    is_open = command > OPEN_ABOVE
    decided = is_open | (command < CLOSED_BELOW)
    # Position of the last decided step so far; -1 picks `start`, which is put at the end.
    last = np.maximum.accumulate(np.where(decided, np.arange(len(command)), -1))
    return np.append(is_open, start).astype(np.float32)[last]
