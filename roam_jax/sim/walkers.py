"""Planar walkers: a torso with legs of two hinges, as MJCF from capsules, and the gaits they use.

The torso moves on two slides and a hinge that nothing drives, so that a walker can only fall
forwards or backwards. Feet and the torso are all that touches the floor, one pair each: the model
stays small enough for MJX. Gait constants were found by `benchmarks/gaits.py`.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from jaxtyping import Float

from roam_jax.morphology import ROOT, Joint, Morphology
from roam_jax.sim.fragments import RGB, rgba

TIMESTEP = 0.005
CONTROL_PERIOD = 0.05  # seconds between actions
TORSO_RADIUS, LEG_RADIUS, FOOT_RADIUS = 0.05, 0.025, 0.035
TORSO_MASS, LINK_MASS = 3.0, 0.25
# Stance: hips lean forwards and knees bend back by twice as much, so that feet are below hips.
LEAN = 0.35  # rad
HALF_RANGES = (0.45, 0.5)  # rad each way from the stance, of hips and knees
STIFFNESS, DAMPING, TORQUE = 60.0, 2.0, 25.0  # N m/rad, N m s/rad, N m
# A walker has fallen when its torso is lower than this part of its height in stance, or leans more.
LOWEST, STEEPEST = 0.6, 0.8  # of the height; rad
ROOT_JOINTS = ("root_x", "root_z", "root_pitch")


@dataclasses.dataclass(frozen=True)
class Gait:
    """A sinusoid a joint: action_j(t) = offset_j + amplitude_j * sin(2 pi (frequency t + phase_j)).

    Args:
        frequency: strides a second.
        offsets, amplitudes: of actions; what leaves [-1, 1] is clipped.
        phases: parts of a stride.
    """

    frequency: float
    offsets: tuple[float, ...]
    amplitudes: tuple[float, ...]
    phases: tuple[float, ...]

    def __call__(self, time: float | Float[np.ndarray, " T"]) -> Float[np.ndarray, "*T J"]:
        """Actions in [-1, 1] at a time or at each of many, in seconds."""
        turns = self.frequency * np.asarray(time)[..., None] + np.array(self.phases)
        actions = np.array(self.offsets) + np.array(self.amplitudes) * np.sin(2 * np.pi * turns)
        return np.clip(actions, -1.0, 1.0)


@dataclasses.dataclass(frozen=True)
class Walker:
    """A walker's shape and its gait. Joints are hip and knee of each leg, from back to front.

    Args:
        name: of the body.
        hips: places of the hips along the torso in m, forwards positive.
        thigh, shank: lengths in m.
        gait: how its expert walks.
        speed: m/s that the gait was measured at.
    """

    name: str
    hips: tuple[float, ...]
    thigh: float
    shank: float
    gait: Gait
    speed: float

    @property
    def morphology(self) -> Morphology:
        """Two driven joints a leg; the root's three are not driven and not listed."""
        joints = []
        for leg in range(len(self.hips)):
            for kind, parent, middle, half, length in (
                ("hip", ROOT, LEAN, HALF_RANGES[0], self.thigh),
                ("knee", 2 * leg, -2 * LEAN, HALF_RANGES[1], self.shank),
            ):
                low, high = middle - half, middle + half
                joints.append(Joint(f"{kind}_{leg}", parent, "hinge", low, high, length))
        return Morphology(self.name, tuple(joints))

    @property
    def height(self) -> float:
        """Of the torso's centre above the floor in stance, in m."""
        return (self.thigh + self.shank) * math.cos(LEAN) + FOOT_RADIUS

    @property
    def length(self) -> float:
        """Of the torso in m."""
        return self.hips[-1] - self.hips[0] + 2 * TORSO_RADIUS

    @property
    def start(self) -> Float[np.ndarray, " J"]:
        """Joint positions one action before the gait begins, in rad: episodes start near these."""
        return self.positions(self.gait(-CONTROL_PERIOD))

    def positions(self, actions):
        """Commanded joint positions (rad) of actions in [-1, 1], (..., J), of NumPy or JAX."""
        joints = self.morphology.joints
        low = np.array([joint.low for joint in joints])
        high = np.array([joint.high for joint in joints])
        return (low + high) / 2 + actions * (high - low) / 2

    def standing_height(self, positions: Float[np.ndarray, "B J"]) -> Float[np.ndarray, " B"]:
        """Height (m) at which a level torso's lowest foot just touches the floor."""
        hip, knee = positions[..., 0::2], positions[..., 1::2]
        reach = self.thigh * np.cos(hip) + self.shank * np.cos(hip + knee)
        return reach.max(-1) + FOOT_RADIUS

    def fallen(self, height, pitch):
        """Whether a torso at this height (m) and pitch (rad) lies rather than walks.

        Both of any one shape, of NumPy or JAX; the result is boolean.
        """
        return (height < LOWEST * self.height) | (abs(pitch) > STEEPEST)


def alternating(legs: int, frequency: float, *groups: tuple[float, ...], phase: float) -> Gait:
    """A gait of two groups of legs, which alternate from back to front.

    Args:
        legs: number of them.
        frequency: strides a second.
        groups: for the back leg's group, and for the other, the offset and amplitude of hips, the
            offset and amplitude of knees, and the part of a stride that knees are ahead of hips.
        phase: part of a stride that the second group is ahead of the first.
    """
    offsets, amplitudes, phases = [], [], []
    for leg in range(legs):
        hip, hip_swing, knee, knee_swing, ahead = groups[leg % 2]
        first = leg % 2 * phase
        offsets += [hip, knee]
        amplitudes += [hip_swing, knee_swing]
        phases += [first, first + ahead]
    return Gait(frequency, tuple(offsets), tuple(amplitudes), tuple(phases))


WALKERS: dict[str, Walker] = {
    walker.name: walker
    for walker in (
        Walker(
            "biped",
            hips=(-0.26, 0.26),
            thigh=0.15,
            shank=0.14,
            gait=alternating(
                2,
                1.796,
                (0.148, 0.96, -0.043, 0.286, 0.103),
                (0.354, 0.422, 0.372, 0.023, 0.404),
                phase=0.486,
            ),
            speed=0.73,
        ),
        Walker(
            "triped",
            hips=(-0.24, 0.0, 0.24),
            thigh=0.16,
            shank=0.20,
            gait=alternating(
                3,
                1.999,
                (0.101, 0.588, -0.121, 0.363, -0.199),
                (0.094, 0.917, 0.212, 0.849, -0.252),
                phase=0.569,
            ),
            speed=0.78,
        ),
        Walker(
            "quadruped",
            hips=(-0.3, -0.1, 0.1, 0.3),
            thigh=0.18,
            shank=0.16,
            gait=alternating(
                4,
                1.893,
                (0.382, 0.774, 0.114, 0.852, 0.011),
                (-0.241, 0.79, -0.289, 0.679, -0.268),
                phase=0.462,
            ),
            speed=1.13,
        ),
    )
}


def walker_mjcf(
    body: Walker,
    *,
    friction: float = 1.0,
    torso_mass: float = TORSO_MASS,
    rgb: RGB = (0.25, 0.45, 0.7),
) -> str:
    """The walker on its floor as MJCF.

    Generalised positions are x (m), z (m above the height in stance) and pitch (rad, nose down
    positive) of the torso, then hip and knee of each leg (rad, forwards positive), which position
    actuators drive in that order.

    Args:
        friction: of feet and torso on the floor, sliding.
        torso_mass: kg.
        rgb: of torso and legs, in [0, 1].
    """
    colour = rgba(rgb)
    legs = "".join(_leg_mjcf(body, leg, colour) for leg in range(len(body.hips)))
    joints = body.morphology.joints
    drives = "".join(
        f'<position name="{j.name}" joint="{j.name}" ctrlrange="{j.low:.9g} {j.high:.9g}"/>'
        for j in joints
    )
    touching = ["torso", *(f"foot_{leg}" for leg in range(len(body.hips)))]
    slide = f"{friction:.9g} {friction:.9g} 0.01 0.001 0.001"
    pairs = "".join(
        f'<pair geom1="{geom}" geom2="floor" condim="3" friction="{slide}"/>' for geom in touching
    )
    return f"""
<mujoco model="{body.name}">
  <compiler angle="radian" autolimits="true"/>
  <option timestep="{TIMESTEP}" integrator="implicitfast" iterations="8" ls_iterations="8"/>
  <default>
    <geom contype="0" conaffinity="0"/>
    <joint armature="0.02" damping="0.2"/>
    <position kp="{STIFFNESS}" kv="{DAMPING}" forcerange="{-TORQUE} {TORQUE}"/>
  </default>
  <worldbody>
    <geom name="floor" type="plane" size="0 0 0.1" rgba="0.7 0.66 0.58 1"/>
    <body name="torso" pos="0 0 {body.height:.9g}">
      <joint name="root_x" type="slide" axis="1 0 0" armature="0" damping="0"/>
      <joint name="root_z" type="slide" axis="0 0 1" armature="0" damping="0"/>
      <joint name="root_pitch" axis="0 1 0" armature="0" damping="0"/>
      <geom name="torso" type="capsule" fromto="{body.hips[0]} 0 0 {body.hips[-1]} 0 0"
            size="{TORSO_RADIUS}" mass="{torso_mass:.9g}" rgba="{colour}"/>{legs}
    </body>
  </worldbody>
  <contact>{pairs}</contact>
  <actuator>{drives}</actuator>
</mujoco>"""


def _leg_mjcf(body: Walker, leg: int, colour: str) -> str:
    """Thigh, shank and foot; both hang straight down where their joints are zero."""
    hip, knee = body.morphology.joints[2 * leg : 2 * leg + 2]
    side = 0.05 if leg % 2 else -0.05
    return f"""
      <body name="thigh_{leg}" pos="{body.hips[leg]} {side} 0">
        <joint name="{hip.name}" axis="0 -1 0" range="{hip.low:.9g} {hip.high:.9g}"/>
        <geom name="thigh_{leg}" type="capsule" fromto="0 0 0 0 0 {-body.thigh}"
              size="{LEG_RADIUS}" mass="{LINK_MASS}" rgba="{colour}"/>
        <body name="shank_{leg}" pos="0 0 {-body.thigh}">
          <joint name="{knee.name}" axis="0 -1 0" range="{knee.low:.9g} {knee.high:.9g}"/>
          <geom name="shank_{leg}" type="capsule" fromto="0 0 0 0 0 {-body.shank}"
                size="{LEG_RADIUS}" mass="{LINK_MASS}" rgba="{colour}"/>
          <geom name="foot_{leg}" type="sphere" pos="0 0 {-body.shank}" size="{FOOT_RADIUS}"
                mass="0.05" rgba="0.2 0.2 0.22 1"/>
        </body>
      </body>"""
