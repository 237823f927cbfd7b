"""Environments on the tabletop: reach a prop, or push one some way, told by an instruction.

An environment is a scene drawn from a start-state distribution, a goal, and a test of success.
Two props of different colours lie on every table, so the instruction decides what to do.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float

from roam_jax.sim.tabletop import (
    POSE_HIGH,
    POSE_LOW,
    RGB,
    SHAPES,
    TEXTURES,
    Camera,
    Point,
    Prop,
    Scene,
    Table,
    Tabletop,
)

# Unit steps on the table; the camera looks along +x, so +y is the image's left.
DIRECTIONS = {
    "to the left": (0.0, 1.0),
    "to the right": (0.0, -1.0),
    "forward": (1.0, 0.0),
    "backward": (-1.0, 0.0),
}
KINDS = ("reach", "push")
REACH_VERBS = ("reach", "touch", "move to")
PUSH_VERBS = ("push", "slide")

HOVER = 0.012  # metres between a reached prop's top and the fingertips
REACHED = 0.02  # metres from the hover point that count as success
PUSH_LENGTH = 0.10  # metres a push aims at
PUSHED = 0.06  # metres along the direction that count as success
SIDEWAYS = 0.04  # metres a pushed prop may stray from its line

# Centres of props at the start (x, y), and the room that a push needs beside the other prop.
START_LOW, START_HIGH = (0.19, -0.12), (0.37, 0.12)
CLEARANCE = 0.095
RUN_UP = 0.09

PRIMARY: dict[str, RGB] = {
    "red": (0.86, 0.12, 0.10),
    "blue": (0.10, 0.26, 0.88),
    "green": (0.08, 0.58, 0.20),
    "yellow": (0.96, 0.80, 0.08),
}
EXTENDED: dict[str, RGB] = PRIMARY | {
    "orange": (0.96, 0.48, 0.06),
    "purple": (0.50, 0.16, 0.66),
    "cyan": (0.10, 0.74, 0.80),
    "pink": (0.95, 0.45, 0.66),
    "white": (0.95, 0.95, 0.95),
    "black": (0.07, 0.07, 0.08),
}


@dataclasses.dataclass(frozen=True)
class Look:
    """What varies between scenes besides where things lie.

    Args:
        palette: colours of props by name.
        shapes: shapes of props.
        size: range of half widths in metres.
        tables: the tables to draw from; with none, table and gripper get random colours, and the
            table a random texture.
        camera_jitter: half width in metres of the box around the camera and around its target.
        lamp_jitter: half width in metres of the box around the lamp.
    """

    palette: tuple[tuple[str, RGB], ...] = tuple(PRIMARY.items())
    shapes: tuple[str, ...] = SHAPES
    size: tuple[float, float] = (0.029, 0.034)
    tables: tuple[Table, ...] = (Table(),)
    camera_jitter: float = 0.0
    lamp_jitter: float = 0.0


PLAIN_LOOK = Look()
VARIED_LOOK = Look(
    palette=tuple(EXTENDED.items()),
    size=(0.024, 0.036),
    tables=(),
    camera_jitter=0.03,
    lamp_jitter=0.25,
)


@dataclasses.dataclass(frozen=True)
class Goal:
    """What to do with prop `prop` (an index); `direction` is a key of `DIRECTIONS` for a push."""

    kind: str
    prop: int
    direction: str | None = None


@dataclasses.dataclass(frozen=True)
class Environment:
    """A scene, a goal in it and the words for the goal."""

    scene: Scene
    goal: Goal
    instruction: str

    def hover(self, table: Tabletop) -> Float[np.ndarray, " 3"]:
        """The point just above the goal's prop, where it is now."""
        prop = self.scene.props[self.goal.prop]
        return np.array([*table.prop_position(self.goal.prop), 2 * prop.size + HOVER])

    def pushed(self, table: Tabletop) -> tuple[float, float]:
        """How far the goal's prop went along the push's direction and sideways, in metres."""
        start = np.array(self.scene.props[self.goal.prop].position)
        moved = table.prop_position(self.goal.prop) - start
        x, y = DIRECTIONS[self.goal.direction]
        return float(moved @ (x, y)), float(moved @ (-y, x))

    def success(self, table: Tabletop) -> bool:
        """Whether the goal is met: fingertips at the hover point, or prop pushed along its line."""
        if self.goal.kind == "reach":
            return bool(np.linalg.norm(table.state[:3] - self.hover(table)) < REACHED)
        along, sideways = self.pushed(table)
        return along > PUSHED and abs(sideways) < SIDEWAYS


def draw_environment(
    rng: np.random.Generator, *, kind: str, look: Look = PLAIN_LOOK
) -> Environment:
    """A random environment of `kind` ("reach" or "push").

    Raises:
        ValueError: unknown kind.
    """
    if kind not in KINDS:
        raise ValueError(f"environment kind {kind!r}: expected one of {KINDS}")
    direction = str(rng.choice(list(DIRECTIONS))) if kind == "push" else None
    goal = Goal(kind, int(rng.integers(2)), direction)
    sizes = rng.uniform(*look.size, size=2)
    positions = _place(rng, goal)
    colours = rng.choice(len(look.palette), size=2, replace=False)
    props = tuple(
        Prop(
            shape=str(rng.choice(look.shapes)),
            colour=look.palette[colour][0],
            rgb=look.palette[colour][1],
            size=float(size),
            position=(float(x), float(y)),
            yaw=float(rng.uniform(-0.4, 0.4)),
        )
        for colour, size, (x, y) in zip(colours, sizes, positions, strict=True)
    )
    low, high = (0.18, -0.12, 0.11, -0.2, -0.2, -0.5), (0.34, 0.12, 0.17, 0.2, 0.2, 0.5)
    scene = Scene(
        props=props,
        start=tuple(float(value) for value in rng.uniform(low, high)),
        gripper=float(rng.integers(2)) if kind == "push" else 0.0,
        **_appearance(rng, look),
    )
    return Environment(scene, goal, _instruction(rng, goal, props[goal.prop]))


def _place(rng: np.random.Generator, goal: Goal) -> Float[np.ndarray, "2 2"]:
    """Two centres with room for the goal: a push needs its way and its run-up free."""
    step = np.array(DIRECTIONS[goal.direction]) if goal.direction else np.zeros(2)
    while True:
        positions = rng.uniform(START_LOW, START_HIGH, size=(2, 2))
        moved, other = positions[goal.prop], positions[1 - goal.prop]
        begin, end = moved - RUN_UP * step, moved + PUSH_LENGTH * step
        inside = (POSE_LOW[:2] < begin) & (begin < POSE_HIGH[:2]) & (end < POSE_HIGH[:2])
        way = begin + np.linspace(0.0, 1.0, 8)[:, None] * (end - begin)
        if inside.all() and np.linalg.norm(way - other, axis=-1).min() > CLEARANCE:
            return positions


def _appearance(rng: np.random.Generator, look: Look) -> dict[str, Table | Camera | Point]:
    """Table, gripper, camera and lamp of a scene."""
    if look.tables:
        table, gripper = look.tables[rng.integers(len(look.tables))], Scene.gripper_rgb
    else:
        base = rng.uniform(0.25, 0.85, size=3)
        contrast = rng.uniform(0.7, 0.92)
        table = Table(
            texture=str(rng.choice(TEXTURES)),
            light_rgb=tuple(float(value) for value in base),
            dark_rgb=tuple(float(value) for value in base * contrast),
            period=float(rng.uniform(0.05, 0.11)),
        )
        gripper = tuple(float(value) for value in rng.uniform(0.1, 0.6, size=3))
    return {
        "table": table,
        "gripper_rgb": gripper,
        "camera": Camera(
            position=_jitter(rng, Camera.position, look.camera_jitter),
            target=_jitter(rng, Camera.target, look.camera_jitter),
        ),
        "light": _jitter(rng, Scene.light, look.lamp_jitter),
    }


def _jitter(rng: np.random.Generator, point: Point, width: float) -> Point:
    x, y, z = np.add(point, rng.uniform(-width, width, size=3)).tolist()
    return x, y, z


def _instruction(rng: np.random.Generator, goal: Goal, prop: Prop) -> str:
    if goal.kind == "reach":
        return f"{rng.choice(REACH_VERBS)} the {prop.name}"
    return f"{rng.choice(PUSH_VERBS)} the {prop.name} {goal.direction}"
