"""Scripted experts that reach and push, and the episodes they make.

An expert is a list of phases; each names a pose to go to, computed anew at every step from where
the prop is now, and a gripper command. The expert reads the simulation, as scripts may; what a
policy learns from are the frames, states and actions that come out.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import Float

from roam_jax.contracts import GRIPPER
from roam_jax.sim.environments import DIRECTIONS, PUSH_LENGTH, RUN_UP, Environment
from roam_jax.sim.tabletop import POSE_HIGH, POSE_LOW, Tabletop

Pose = Float[np.ndarray, " 6"]

CRUISE = 0.12  # metres above the table, clear of every prop
PUSH_HEIGHT = 0.022
# What one action may change: metres, radians. Bridge's 99th percentiles are 0.04 and 0.2.
MAX_STEP, MAX_TURN = 0.032, 0.16
# Tremor of the hand: standard deviation of an action's deltas.
TREMOR = np.array([0.0015] * 3 + [0.012] * 3)
ARRIVED = 0.006
SPEEDS = {"reach": (0.3, 0.7), "push": (0.8, 1.0)}  # part of MAX_STEP and MAX_TURN
LEAN = 0.15  # radians that the gripper leans into a push
FINGERTIP = 0.016  # metres from a pushed prop's side to the centre of the fingertips


@dataclasses.dataclass(frozen=True)
class Phase:
    """Go to `target(table)` with this gripper command; over when there, or after `steps`."""

    target: Callable[[Tabletop], Pose]
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
    angles = rng.uniform((-0.15, -0.15, -0.6), (0.15, 0.15, 0.6))

    def above(table: Tabletop) -> Pose:
        return np.array([*environment.hover(table)[:2], CRUISE, *angles])

    def down(table: Tabletop) -> Pose:
        return np.array([*environment.hover(table), *angles])

    return [Phase(above, 0.0, steps=20), Phase(down, 1.0, steps=10), Phase(down, 1.0, steps=2)]


def _push(environment: Environment, rng: np.random.Generator) -> list[Phase]:
    """Shut the gripper, go behind the prop, push it along its line, lift, open."""
    goal = environment.goal
    prop = environment.scene.props[goal.prop]
    step = np.array(DIRECTIONS[goal.direction])
    start = np.array(prop.position)
    angles = np.array([-LEAN * step[1], LEAN * step[0], 0.5 * math.copysign(step[1], rng.normal())])
    touch = prop.size + FINGERTIP

    upright = np.array([0.0, 0.0, angles[2]])

    def at(distance: float, height: float, angles: np.ndarray) -> Callable[[Tabletop], Pose]:
        pose = np.array([*(start + distance * step), height, *angles])
        return lambda table: pose

    return [
        Phase(at(-RUN_UP, CRUISE, angles), 0.0, steps=12),
        Phase(at(-RUN_UP, PUSH_HEIGHT, angles), 0.0, steps=8),
        Phase(at(PUSH_LENGTH - touch, PUSH_HEIGHT, angles), 0.0, steps=12),
        Phase(at(PUSH_LENGTH - 2 * touch, CRUISE, upright), 1.0, steps=4),
    ]


def expert_actions(
    environment: Environment, table: Tabletop, rng: np.random.Generator
) -> Iterator[Float[np.ndarray, " 7"]]:
    """The expert's next action for the table as it is now, until the script ends."""
    speed = rng.uniform(*SPEEDS[environment.goal.kind])
    for phase in phases(environment, rng):
        for _ in range(phase.steps):
            error = phase.target(table) - table.command
            if np.linalg.norm(error[:3]) < ARRIVED and np.abs(error[3:]).max() < 0.08:
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
    rng: np.random.Generator,
    *,
    draw: Callable[[Tabletop], np.ndarray],
    steps: tuple[int, int] = (16, 28),
) -> Episode:
    """Simulate one episode of at least `steps[0]` and at most `steps[1]` stored steps.

    It starts with one to four idle steps, the first with a zero action as in BridgeData V2, and
    rests at the end where the script is short.

    Args:
        draw: takes the table and returns its frame.
        steps: range of stored steps.

    Raises:
        SimulationDivergedError: the physics blew up.
    """
    table = Tabletop(environment.scene)
    script = expert_actions(environment, table, rng)
    idle = int(rng.integers(1, 5))
    states, actions, frames = [], [], []
    gripper = environment.scene.gripper
    while True:
        states.append(table.state)
        frames.append(draw(table))
        action = None if len(actions) < idle else next(script, None)
        ended = action is None and len(actions) >= idle
        if action is None:
            tremor = rng.normal(size=GRIPPER) * TREMOR * (len(actions) > 0)
            action = np.array([*tremor, gripper])
        gripper = action[GRIPPER]
        actions.append(_within_workspace(action, table))
        if len(actions) == steps[1] or (ended and len(actions) >= steps[0]):
            break
        table.step(actions[-1])
    success = environment.success(table)
    return Episode(environment, np.stack(states), np.stack(actions), frames, success)


def _within_workspace(action: Float[np.ndarray, " 7"], table: Tabletop) -> Float[np.ndarray, " 7"]:
    """The action whose command is within the limits, so that what is stored is what happens."""
    command = np.clip(table.command + action[:GRIPPER], POSE_LOW, POSE_HIGH)
    return np.array([*(command - table.command), action[GRIPPER]])
