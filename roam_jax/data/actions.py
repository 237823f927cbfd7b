"""Robot actions between the frames of a window, by what their dataset's declaration says.

Commands in BridgeData V2 correlate only 0.72 to 0.93 with the motion that follows, so pose actions
are differences of reached states, as in the preprocessing that Octo and OpenVLA share. Two
corrections to it: differences of Euler angles are wrapped, and what a model may see of the gripper
is never decided by looking ahead.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float32

from roam_jax.data.declaration import DatasetDeclaration, Reached, Stored

OPEN_ABOVE, CLOSED_BELOW = 0.95, 0.05
UNDECIDED = 0.5


@dataclasses.dataclass(frozen=True)
class EpisodeActions:
    """Actions of an episode's n kept steps; row i is the transition from kept step i to i + stride.

    Args:
        inputs: (n - stride, A) for past actions; grippers 1 open, 0 closed, 0.5 not yet decided.
            Row i depends on kept steps 0..i + stride alone.
        targets: (n - stride, A) for predicted actions: the same, grippers 1 or 0 by looking ahead.
    """

    inputs: Float32[np.ndarray, "actions A"]
    targets: Float32[np.ndarray, "actions A"]


def episode_actions(
    declaration: DatasetDeclaration,
    state: Float32[np.ndarray, "steps J"],
    command: Float32[np.ndarray, "steps A"],
    *,
    stride: int = 1,
) -> EpisodeActions:
    """Actions between the kept steps of an episode, each over `stride` steps.

    Args:
        declaration: what the numbers mean, and how many steps at the start are dropped.
        state: of every stored step.
        command: stored action of every step; dimensions that are reached are not looked at.
        stride: steps between two frames.

    Returns:
        `stride` rows less than kept steps: the last observations have no action. No row for an
        episode that is shorter.
    """
    state, command = state[declaration.skip_first :], command[declaration.skip_first :]
    rows = max(0, len(state) - stride)
    inputs = np.zeros((rows, command.shape[1]), np.float32)
    targets = np.zeros_like(inputs)
    if not rows:
        return EpisodeActions(inputs, targets)
    first = 0
    for part in declaration.action:
        here = slice(first, first + len(part.names))
        first = here.stop
        if isinstance(part, Stored) and part.kind == "gripper":
            for place in range(here.start, here.stop):
                # The command of the last step before a frame decides what the gripper does by then.
                last = slice(stride - 1, stride - 1 + rows)
                inputs[:, place] = gripper_inputs(command[:, place])[last]
                targets[:, place] = gripper_targets(command[:, place])[last]
            continue
        if isinstance(part, Reached):
            values = _reached(declaration, part, state, stride=stride)
        else:
            values = _commanded(part, command[:, here], stride=stride)
        inputs[:, here] = targets[:, here] = values
    return EpisodeActions(inputs, targets)


def _reached(
    declaration: DatasetDeclaration, part: Reached, state: np.ndarray, *, stride: int
) -> np.ndarray:
    """Change of the named dimensions of the state over `stride` steps."""
    spec = declaration.state_spec
    columns = [spec.names.index(name) for name in part.names]
    moved = state[stride:, columns] - state[:-stride, columns]
    angles = [i for i, column in enumerate(columns) if spec.kinds[column] == "angle"]
    moved[:, angles] = wrap_angle(moved[:, angles])
    return moved


def _commanded(part: Stored, command: np.ndarray, *, stride: int) -> np.ndarray:
    """The command of `stride` steps: deltas add up, of absolute values the last counts."""
    rows = len(command) - stride
    if stride == 1 or part.per_step == "absolute":
        values = command[stride - 1 : stride - 1 + rows]
    else:
        steps = np.lib.stride_tricks.sliding_window_view(command[:-1], stride, axis=0)
        values = steps.sum(axis=-1, dtype=np.float64).astype(np.float32)
    return wrap_angle(values) if part.kind == "angle" else values


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
