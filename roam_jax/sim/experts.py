"""Scripted experts that reach and push, and the episodes they make.

An expert is a list of phases, each a pose to go to and a gripper command, made from where the
environment says that its props are. A policy learns from the frames, states and actions that come
out and never sees the script.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import Float

from roam_jax.contracts import GRIPPER
from roam_jax.sim.environments import DIRECTIONS, HOVER, PUSH_LENGTH, RUN_UP, Environment
from roam_jax.sim.tabletop import POSE_HIGH, POSE_LOW, Tabletop

Pose = Float[np.ndarray, " 6"]

CRUISE = 0.12  # metres above the table, clear of every prop
PUSH_HEIGHT = 0.022  # of the fingertips while they push
# What one action may change: metres, radians. Bridge's 99th percentiles are 0.04 and 0.2.
MAX_STEP, MAX_TURN = 0.032, 0.16
# Tremor of the hand: standard deviation of an action's deltas.
TREMOR = np.array([0.0015] * 3 + [0.012] * 3)
# Nearer to a pose than this, the hand goes on to the next: metres, radians.
NEAR, ALIGNED = 0.006, 0.08
SPEEDS = {"reach": (0.35, 0.75), "push": (0.8, 1.0)}  # part of MAX_STEP and MAX_TURN
LEAN = 0.15  # radians that the gripper leans into a push
FINGERTIP = 0.016  # metres from a pushed prop's side to the centre of the fingertips


@dataclasses.dataclass(frozen=True)
class Phase:
    """Go to `pose` with this gripper command; over when there, or after `steps`."""

    pose: Pose
    gripper: float
    steps: int


@dataclasses.dataclass(frozen=True)
class Episode:
    """What one expert run leaves. State and frame k were seen before action k.

    Args:
        states: (x, y, z, roll, pitch, yaw, gripper) in m, rad and opening.
        actions: pose deltas and absolute gripper commands; the last was never carried out.
        frames: RGB.
        success: whether the environment's goal was met at the end.
    """

    environment: Environment
    states: Float[np.ndarray, "T 7"]
    actions: Float[np.ndarray, "T 7"]
    frames: list[np.ndarray]
    success: bool


def phases(environment: Environment, rng: np.random.Generator) -> list[Phase]:
    """The expert's script for an environment."""
    return {"reach": _reach, "push": _push}[environment.goal.kind](environment, rng)


def _reach(environment: Environment, rng: np.random.Generator) -> list[Phase]:
    """Go above the prop with the gripper shut, open it, come down."""
    prop = environment.scene.props[environment.goal.prop]
    angles = rng.uniform((-0.15, -0.15, -0.6), (0.15, 0.15, 0.6))
    above = np.array([*prop.position, CRUISE, *angles])
    down = np.array([*prop.position, 2 * prop.size + HOVER, *angles])
    return [Phase(above, 0.0, steps=20), Phase(down, 1.0, steps=10), Phase(down, 1.0, steps=2)]


def _push(environment: Environment, rng: np.random.Generator) -> list[Phase]:
    """Shut the gripper, go behind the prop, push it along its line, lift, open."""
    prop = environment.scene.props[environment.goal.prop]
    step = np.array(DIRECTIONS[environment.goal.direction])
    lean = np.array([-LEAN * step[1], LEAN * step[0], 0.5 * math.copysign(step[1], rng.normal())])
    upright = lean * (0.0, 0.0, 1.0)
    touch = prop.size + FINGERTIP

    def pose(distance: float, height: float, angles: np.ndarray) -> Pose:
        return np.array([*(prop.position + distance * step), height, *angles])

    return [
        Phase(pose(-RUN_UP, CRUISE, lean), 0.0, steps=12),
        Phase(pose(-RUN_UP, PUSH_HEIGHT, lean), 0.0, steps=8),
        Phase(pose(PUSH_LENGTH - touch, PUSH_HEIGHT, lean), 0.0, steps=12),
        Phase(pose(PUSH_LENGTH - 2 * touch, CRUISE, upright), 1.0, steps=4),
    ]


def expert_actions(
    environment: Environment, table: Tabletop, rng: np.random.Generator
) -> Iterator[Float[np.ndarray, " 7"]]:
    """The expert's next action from where the hand was told to be, until the script ends."""
    gripper = environment.scene.gripper
    yield np.array([0.0] * GRIPPER + [gripper])
    for _ in range(rng.integers(4)):
        yield _rest(gripper, rng)
    speed = rng.uniform(*SPEEDS[environment.goal.kind])
    for phase in phases(environment, rng):
        for _ in range(phase.steps):
            error = phase.pose - table.command
            if np.linalg.norm(error[:3]) < NEAR and np.abs(error[3:]).max() < ALIGNED:
                break
            yield np.array([*_towards(error, speed, rng), phase.gripper])


def _towards(error: Pose, speed: float, rng: np.random.Generator) -> Pose:
    """One step along `error`, no longer than a hand moves, with tremor."""
    length = max(float(np.linalg.norm(error[:3])), 1e-9)
    move = error[:3] * min(1.0, speed * MAX_STEP / length)
    turn = np.clip(error[3:], -speed * MAX_TURN, speed * MAX_TURN)
    return np.concatenate([move, turn]) + rng.normal(size=GRIPPER) * TREMOR


def run_expert(
    environment: Environment,
    table: Tabletop,
    *,
    rng: np.random.Generator,
    camera: Callable[[], np.ndarray],
    steps: tuple[int, int] = (16, 28),
) -> Episode:
    """Simulate one episode of at least `steps[0]` and at most `steps[1]` stored steps.

    As in BridgeData V2 the first action is zero. Up to three more idle steps follow, and where
    the script is short the hand rests at the end.

    Args:
        table: of the environment's scene, at its start.
        camera: returns the present frame.
        steps: range of stored steps.

    Raises:
        SimulationDivergedError: the physics blew up.
    """
    script = expert_actions(environment, table, rng)
    states, actions, frames = [], [], []
    gripper = environment.scene.gripper
    while True:
        states.append(table.state)
        frames.append(camera())
        action = next(script, None)
        ended = action is None
        if ended:
            action = _rest(gripper, rng)
        actions.append(_within_workspace(action, table))
        gripper = action[GRIPPER]
        if len(actions) == steps[1] or (ended and len(actions) >= steps[0]):
            break
        table.step(actions[-1])
    success = environment.success(table)
    return Episode(environment, np.stack(states), np.stack(actions), frames, success)


def _rest(gripper: float, rng: np.random.Generator) -> Float[np.ndarray, " 7"]:
    """An action that goes nowhere but for the tremor."""
    return np.array([*rng.normal(size=GRIPPER) * TREMOR, gripper])


def _within_workspace(action: Float[np.ndarray, " 7"], table: Tabletop) -> Float[np.ndarray, " 7"]:
    """The action whose command is within the limits, so that what is stored is what happens."""
    command = np.clip(table.command + action[:GRIPPER], POSE_LOW, POSE_HIGH)
    return np.array([*(command - table.command), action[GRIPPER]])
