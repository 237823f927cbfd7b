"""Bodies that stand on a table: the tabletop's gantry, and planar arms of two to four hinges.

An arm hangs its links above the props and touches them with a finger at its end, whose hidden
tip alone collides. Joints carry an armature far above the links' inertia, so that one frequency
describes them all, as on the gantry.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float

from roam_jax.morphology import ROOT, Joint, Morphology
from roam_jax.sim.fragments import (
    ARM_FREQUENCY,
    FINGER_TRAVEL,
    FINGERS,
    HIDDEN_GROUP,
    RGB,
    TIP_OFFSET,
    gantry_drives,
    gantry_mjcf,
    rgba,
)
from roam_jax.sim.tabletop import POSE_HIGH, POSE_LOW, Point

LINK_HEIGHT = 0.11  # metres of an arm's links above the table
TIP_HEIGHT = 0.025
TIP_RADIUS = 0.014  # of the sphere that collides
ARMATURE, LINK_MASS = 0.1, 0.05  # kg m2, kg
ARM_STEP = 0.15  # rad that one action may change a command by
AXES = {"x": (1.0, 0.0, 0.0), "y": (0.0, 1.0, 0.0), "z": (0.0, 0.0, 1.0)}


@dataclasses.dataclass(frozen=True)
class TableBody:
    """A body with a tip, on a table.

    Args:
        morphology: its joints.
        axes: "x", "y" or "z" of each joint, in its parent's frame.
        offsets: from the parent joint's frame to each joint's, in m.
        tip: joints on the way to the tip, from the root.
        tip_offset: from the last of them to the tip, in m.
        steps: how far one action of 1 changes each commanded position, in rad or m.
        start_low, start_high: range of joint positions at the start of an episode.
        touch: from the tip's centre to the centre of the sphere that collides, in m.
        height: range of the heights (m) that the tip can be told to reach.
    """

    morphology: Morphology
    axes: tuple[str, ...]
    offsets: tuple[Point, ...]
    tip: tuple[int, ...]
    tip_offset: Point
    steps: tuple[float, ...]
    start_low: tuple[float, ...]
    start_high: tuple[float, ...]
    touch: float
    height: tuple[float, float]

    @property
    def low(self) -> Float[np.ndarray, " J"]:
        """Lowest commanded positions in rad or m."""
        return np.array([joint.low for joint in self.morphology.joints])

    @property
    def high(self) -> Float[np.ndarray, " J"]:
        """Highest commanded positions in rad or m."""
        return np.array([joint.high for joint in self.morphology.joints])

    def tip_position(self, positions):
        """Where the tip is: forward kinematics.

        Args:
            positions: of the joints in rad or m, (..., J), of NumPy or JAX.

        Returns:
            (..., 3) in m.
        """
        return self._chain(positions)[0]

    def tip_jacobian(self, positions):
        """Tip positions (..., 3) and their derivatives by the joints (..., 3, J)."""
        xp = positions.__array_namespace__()
        tip, places, directions = self._chain(positions)
        columns = [xp.zeros_like(tip)] * len(self.morphology)
        for index, place, direction in zip(self.tip, places, directions, strict=True):
            slides = self.morphology.joints[index].kind == "slide"
            columns[index] = direction if slides else xp.cross(direction, tip - place)
        return tip, xp.stack(columns, axis=-1)

    def _chain(self, positions):
        """The tip, and the place and axis in the world of each joint on the way to it."""
        xp = positions.__array_namespace__()
        batch = positions.shape[:-1]
        place = xp.zeros((*batch, 3), positions.dtype)
        rotation = xp.broadcast_to(xp.eye(3, dtype=positions.dtype), (*batch, 3, 3))
        places, directions = [], []
        for index in self.tip:
            axis = "xyz".index(self.axes[index])
            if any(self.offsets[index]):
                place = place + rotation @ xp.asarray(self.offsets[index], dtype=positions.dtype)
            directions.append(rotation[..., axis])
            moved = positions[..., index]
            if self.morphology.joints[index].kind == "slide":
                place = place + rotation[..., axis] * moved[..., None]
            else:
                rotation = rotation @ _turn(xp, axis, moved)
            places.append(place)
        offset = xp.asarray(self.tip_offset, dtype=positions.dtype)
        return place + rotation @ offset, places, directions

    def mjcf(self, rgb: RGB) -> str:
        """The bodies' MJCF, with joints of the class "drive" and a geom and a site "tip"."""
        if self.morphology.name == "gantry":
            return gantry_mjcf(rgb)
        return _arm_mjcf(self.morphology, rgb)

    def drives(self) -> str:
        """Position actuators, one a joint in order."""
        names = self.morphology.joint_names
        if self.morphology.name == "gantry":
            return gantry_drives(names)
        stiffness = ARMATURE * ARM_FREQUENCY**2
        return "".join(
            f'<position name="{n}" joint="{n}" kp="{stiffness:.9g}" dampratio="1"/>' for n in names
        )

    @property
    def armature(self) -> float:
        """Of the class "drive", in kg or kg m2."""
        return 1.0 if self.morphology.name == "gantry" else ARMATURE


def _turn(xp, axis: int, angle):
    """Rotation matrices (..., 3, 3) about a coordinate axis."""
    c, s = xp.cos(angle), xp.sin(angle)
    one, zero = xp.ones_like(c), xp.zeros_like(c)
    rows = {
        0: (one, zero, zero, zero, c, -s, zero, s, c),
        1: (c, zero, s, zero, one, zero, -s, zero, c),
        2: (c, -s, zero, s, c, zero, zero, zero, one),
    }[axis]
    return xp.stack(rows, axis=-1).reshape(*c.shape, 3, 3)


def _arm_mjcf(morphology: Morphology, rgb: RGB) -> str:
    """Nested links along x, and a finger that reaches down from the last one's end."""
    dark = rgba((0.2, 0.2, 0.24))
    opened, closed = "", ""
    place = f"0 0 {LINK_HEIGHT}"
    for joint in morphology.joints:
        end = joint.length
        opened += f"""
    <body name="{joint.name}" pos="{place}">
      <joint name="{joint.name}" axis="0 0 1"/>
      <geom name="{joint.name}" type="capsule" fromto="0 0 0 {end:.9g} 0 0" size="0.013"
            mass="{LINK_MASS}" rgba="{rgba(rgb)}"/>
      <geom name="{joint.name}_hub" type="cylinder" size="0.018 0.016" mass="0.001"
            rgba="{dark}"/>"""
        closed += "</body>"
        place = f"{end:.9g} 0 0"
    down = LINK_HEIGHT - TIP_HEIGHT
    finger = f"""
      <geom name="finger" type="capsule" fromto="{end:.9g} 0 0 {end:.9g} 0 {-down:.9g}"
            size="0.012" mass="0.001" rgba="{dark}"/>
      <geom name="tip" type="sphere" pos="{end:.9g} 0 {-down:.9g}" size="{TIP_RADIUS}"
            mass="0.001" group="{HIDDEN_GROUP}"/>
      <site name="tip" pos="{end:.9g} 0 {-down:.9g}"/>"""
    return opened + finger + closed


def _arm(name: str, lengths: tuple[float, ...], ranges, starts) -> TableBody:
    joints = tuple(
        Joint(f"hinge_{i}", i - 1 if i else ROOT, "hinge", low, high, length)
        for i, (length, (low, high)) in enumerate(zip(lengths, ranges, strict=True))
    )
    return TableBody(
        morphology=Morphology(name, joints),
        axes=("z",) * len(lengths),
        offsets=((0.0, 0.0, LINK_HEIGHT), *((length, 0.0, 0.0) for length in lengths[:-1])),
        tip=tuple(range(len(lengths))),
        tip_offset=(lengths[-1], 0.0, TIP_HEIGHT - LINK_HEIGHT),
        steps=(ARM_STEP,) * len(lengths),
        start_low=tuple(low for low, _ in starts),
        start_high=tuple(high for _, high in starts),
        touch=0.0,
        height=(TIP_HEIGHT, TIP_HEIGHT),
    )


def _gantry() -> TableBody:
    """The tabletop's gantry, told joint positions in place of the tips' pose."""
    (x, y, z, *angles), (x1, y1, z1, *angles1) = POSE_LOW.tolist(), POSE_HIGH.tolist()
    rows = (
        # name, parent, kind, low, high, length, step, start low, start high
        ("x", ROOT, "slide", x, x1, 0.0, 0.03, 0.18, 0.34),
        ("y", 0, "slide", y, y1, 0.0, 0.03, -0.12, 0.12),
        ("z", 1, "slide", z + TIP_OFFSET, z1 + TIP_OFFSET, 0.0, 0.03, 0.22, 0.28),
        ("yaw", 2, "hinge", angles[2], angles1[2], 0.0, 0.16, -0.5, 0.5),
        ("pitch", 3, "hinge", angles[1], angles1[1], 0.0, 0.16, -0.2, 0.2),
        ("roll", 4, "hinge", angles[0], angles1[0], TIP_OFFSET, 0.16, -0.2, 0.2),
        (FINGERS[0], 5, "slide", 0.0, FINGER_TRAVEL, 0.034, 0.01, 0.0, FINGER_TRAVEL),
        (FINGERS[1], 5, "slide", 0.0, FINGER_TRAVEL, 0.034, 0.01, 0.0, FINGER_TRAVEL),
    )
    joints = tuple(Joint(*row[:6]) for row in rows)
    fingers = ((0.0, 0.008, -0.076), (0.0, -0.008, -0.076))
    return TableBody(
        morphology=Morphology("gantry", joints),
        axes=("x", "y", "z", "z", "y", "x", "y", "y"),
        offsets=((0.0, 0.0, 0.0),) * 6 + fingers,
        tip=tuple(range(6)),
        tip_offset=(0.0, 0.0, -TIP_OFFSET),
        steps=tuple(row[6] for row in rows),
        start_low=tuple(row[7] for row in rows),
        start_high=tuple(row[8] for row in rows),
        touch=0.014,
        height=(0.03, 0.20),
    )


# The tip's place is a function of the elbow's sign; ranges leave one sign each.
BODIES: dict[str, TableBody] = {
    body.morphology.name: body
    for body in (
        _gantry(),
        _arm(
            "arm2",
            (0.28, 0.24),
            ranges=((-2.6, 1.6), (0.15, 2.7)),
            starts=((-1.2, -0.5), (1.3, 1.9)),
        ),
        _arm(
            "arm3",
            (0.20, 0.17, 0.15),
            ranges=((-2.6, 1.6), (-0.2, 2.4), (-0.2, 2.4)),
            starts=((-1.2, -0.5), (0.6, 1.1), (0.6, 1.1)),
        ),
        _arm(
            "arm4",
            (0.15, 0.14, 0.12, 0.11),
            ranges=((-2.6, 1.6), (-0.2, 2.0), (-0.2, 2.0), (-0.2, 2.0)),
            starts=((-1.2, -0.5), (0.4, 0.8), (0.4, 0.8), (0.4, 0.8)),
        ),
    )
}
