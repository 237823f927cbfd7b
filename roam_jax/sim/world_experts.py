"""Experts of the worlds: scripts of where the tip should go, inverse kinematics, and gaits.

Every choice follows from what is seen now (joints, tip, prop, goal), never from a hidden stage of
a script, so that a policy which sees the same can learn it. Inverse kinematics by damped least
squares: Nakamura and Hanafusa, 1986.
"""

from __future__ import annotations

import abc

import numpy as np
from jaxtyping import Float

from roam_jax.sim.bodies import TableBody
from roam_jax.sim.native import NativeWorlds
from roam_jax.sim.world import World

DAMPING = 0.005  # m an action: below this, a direction of the tip counts as one that cannot be had
POSTURE = 0.3  # part of the way to its resting posture that the tip's motion leaves free, an action
REACH_SPEED = 0.035  # m an action
PUSH_SPEED = 0.018  # m an action, on the way round a prop 1.5 times it
CLEAR = 0.078  # m from a prop's middle to the tip's: past every corner of the largest
BEHIND, BESIDE = 0.25, 0.8  # rad off the line through goal and prop: pushes below, goes round above
TURN = 0.8  # part of that angle which an action takes away
ARRIVED, SLOWING = 0.008, 0.02  # m from the goal at which a push stops, and begins to slow down
LOW_TIP = 0.018  # m above the table of the gantry's tip while it pushes
HIGH = 0.03  # m above that at which a tip is clear of nothing yet


class Expert(abc.ABC):
    """Acts in many episodes of a world at once.

    Args:
        world: that it acts in.
    """

    def __init__(self, world: World):
        self.world = world

    def reset(self, worlds: NativeWorlds, rng: np.random.Generator) -> None:  # noqa: B027
        """Begins new episodes, as every player is told; no expert here remembers any."""

    @abc.abstractmethod
    def act(self, worlds: NativeWorlds) -> Float[np.ndarray, "B J"]:
        """The next actions, in [-1, 1]."""


def make_expert(world: World) -> Expert:
    """The expert of a world.

    Raises:
        ValueError: there is none for its environment.
    """
    if world.environment not in EXPERTS:
        raise ValueError(
            f"environment {world.environment!r} has no expert: expected one of {tuple(EXPERTS)}"
        )
    return EXPERTS[world.environment](world)


class ReachExpert(Expert):
    """Brings the tip to the goal on a straight line."""

    def act(self, worlds: NativeWorlds) -> Float[np.ndarray, "B J"]:
        """The next actions, in [-1, 1]."""
        body = self.world.table_body
        move = worlds.draws.goal - body.tip_position(worlds.command)
        return tip_actions(body, worlds.command, shortened(move, REACH_SPEED))


class PushExpert(Expert):
    """Goes round the prop without touching it, then pushes it along its line to the goal."""

    def act(self, worlds: NativeWorlds) -> Float[np.ndarray, "B J"]:
        """The next actions, in [-1, 1]."""
        body, tip = self.world.table_body, worlds.tip
        height = LOW_TIP if body.height[0] < body.height[1] else body.height[0]
        move = push_move(tip, worlds.prop, worlds.draws.goal, height=height)
        # From where the tip is, not from where it was told to be: contacts hold it back.
        lag = body.tip_position(worlds.command) - tip
        return tip_actions(body, worlds.command, move - lag)


class WalkExpert(Expert):
    """Plays the walker's gait from its first phase."""

    def act(self, worlds: NativeWorlds) -> Float[np.ndarray, "B J"]:
        """The next actions, in [-1, 1]."""
        gait = self.world.walker.gait
        return np.tile(gait(worlds.time * self.world.spec.period), (worlds.count, 1))


EXPERTS: dict[str, type[Expert]] = {"reach": ReachExpert, "push": PushExpert, "walk": WalkExpert}


def push_move(
    tip: Float[np.ndarray, "B 3"],
    prop: Float[np.ndarray, "B 3"],
    goal: Float[np.ndarray, "B 3"],
    *,
    height: float,
) -> Float[np.ndarray, "B 3"]:
    """Where the tip should move next, in m: a field of velocities round the prop.

    In polar coordinates about the prop, 0 being straight behind it: the angle goes to 0; the radius
    to `CLEAR` while the angle is large, and inwards, which pushes, while it is small.

    Args:
        tip: place in m.
        prop: x, y in m, and yaw.
        goal: where the prop should go, in m.
        height: of the tip while it pushes.
    """
    way = (goal - prop)[:, :2]
    left = np.linalg.norm(way, axis=-1)
    along = way / np.maximum(left, 1e-6)[:, None]
    place = (tip - prop * (1.0, 1.0, 0.0))[:, :2]
    radius = np.maximum(np.linalg.norm(place, axis=-1), 1e-6)
    outwards = place / radius[:, None]
    across = np.stack([-outwards[:, 1], outwards[:, 0]], axis=-1)
    cross = -along[:, 0] * outwards[:, 1] + along[:, 1] * outwards[:, 0]
    angle = np.arctan2(cross, -(along * outwards).sum(-1))

    above = tip[:, 2] - height
    round_it = ramp(np.abs(angle), BEHIND, BESIDE)
    round_it = np.maximum(round_it, ramp(above, HIGH / 2, HIGH))
    fast = 1.5 * PUSH_SPEED
    push = np.minimum(PUSH_SPEED, PUSH_SPEED * (left / SLOWING))
    outer = np.clip(CLEAR - radius, -fast, fast)
    radial = round_it * outer - (1 - round_it) * push
    # Out first, then round: a tip that leans on the prop would drag it along.
    free = ramp(radius, 0.6 * CLEAR, 0.95 * CLEAR)
    turn = np.clip(TURN * angle * radius, -fast, fast)
    turn = turn * (1 - round_it + round_it * free)
    planar = radial[:, None] * outwards - turn[:, None] * across
    planar = shortened(planar, fast) * ramp(left, ARRIVED, 1.5 * ARRIVED)[:, None]
    descent = np.clip(-above, -fast, fast)
    over_it = (above > HIGH / 2) & (radius < 0.9 * CLEAR)
    return np.concatenate([planar, np.where(over_it, 0.0, descent)[:, None]], axis=-1)


def ramp(value: np.ndarray, low: float, high: float) -> np.ndarray:
    """0 below `low`, 1 above `high`, a straight line between."""
    return np.clip((value - low) / (high - low), 0.0, 1.0)


def shortened(vectors: Float[np.ndarray, "B D"], longest: float) -> Float[np.ndarray, "B D"]:
    """The vectors, none longer than `longest`."""
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors * np.minimum(1.0, longest / np.maximum(length, 1e-9))


def tip_actions(
    body: TableBody, positions: Float[np.ndarray, "B J"], move: Float[np.ndarray, "B 3"]
) -> Float[np.ndarray, "B J"]:
    """Actions in [-1, 1] that move the tip by `move` metres from these joint positions.

    Damped least squares over the joints that are meant for it (a gantry's slides, all hinges of an
    arm); what that leaves free goes towards the middle of the body's starts. Where an action would
    exceed 1, all of the body's shrink alike, so that the tip keeps its direction.
    """
    steps = np.array(body.steps)
    jacobian = body.tip_jacobian(positions)[1] * steps  # metres an action of 1
    kinds = np.array([joint.kind for joint in body.morphology.joints])
    slides = kinds == "slide"
    moving = np.isin(np.arange(len(kinds)), body.tip) & (slides if slides.any() else ~slides)
    resting = (np.array(body.start_low) + np.array(body.start_high)) / 2 - positions
    rest = POSTURE * resting / steps
    rest[:, moving & (slides | (np.arange(len(kinds)) == 0))] = 0.0
    rest = np.clip(rest, -0.3, 0.3)
    weighted = jacobian * moving
    square = weighted @ jacobian.swapaxes(-1, -2) + DAMPING**2 * np.eye(3)
    wanted = move - (jacobian @ rest[..., None])[..., 0]
    solved = np.linalg.solve(square, wanted[..., None])
    actions = rest + (weighted.swapaxes(-1, -2) @ solved)[..., 0]
    return actions / np.maximum(np.abs(actions).max(-1, keepdims=True), 1.0)
