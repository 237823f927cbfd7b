"""MJCF fragments that the tabletop and the worlds share: the gantry, its drives, planar props."""

from __future__ import annotations

from collections.abc import Iterable

from roam_jax.contracts import ACTION_NAMES, GRIPPER

RGB = tuple[float, float, float]
# Geoms of this group collide and are not drawn.
HIDDEN_GROUP = 3

TIP_OFFSET = 0.11  # metres from the wrist's centre of rotation down to the point between the tips
FINGER_TRAVEL = 0.034  # metres each finger moves between closed and open
FINGERS = ("left", "right")

# Natural frequencies (rad/s) of the critically damped joints. In one control period an arm joint
# makes 83 % of a step and a finger 48 %: the arm lags a little, and the gripper ramps over two or
# three stored states.
ARM_FREQUENCY = 16.0
FINGER_FREQUENCY = 8.0

TABLE_MJCF = '<geom name="table" type="plane" size="0.5 0.45 0.01" pos="0.35 0 0"/>'


def vector(values: Iterable[float]) -> str:
    """MJCF's text of a vector."""
    return " ".join(f"{value:.9g}" for value in values)


def planar_joints_mjcf(name: str) -> str:
    """Joints `name`_x, _y and _yaw of a prop: dry friction stands in for the table's contact."""
    return f"""<joint name="{name}_x" type="slide" axis="1 0 0" frictionloss="0.2" damping="2"/>
      <joint name="{name}_y" type="slide" axis="0 1 0" frictionloss="0.2" damping="2"/>
      <joint name="{name}_yaw" axis="0 0 1" frictionloss="0.004" damping="0.004"/>"""


def gantry_mjcf(gripper_rgb: RGB) -> str:
    """The gantry's bodies: slides x, y, z, hinges yaw, pitch, roll and two fingers.

    The joints are of the class "drive", which the model has to declare.
    """
    gripper = rgba(gripper_rgb)
    return f"""    <body name="carriage" childclass="drive">
      <joint name="x" type="slide" axis="1 0 0"/>
      <joint name="y" type="slide" axis="0 1 0"/>
      <joint name="z" type="slide" axis="0 0 1"/>
      <geom name="mast" type="cylinder" fromto="0 0 0.02 0 0 0.5" size="0.014" mass="0.01"
            rgba="0.75 0.75 0.78 1"/>
      <body name="wrist">
        <joint name="yaw" axis="0 0 1"/>
        <joint name="pitch" axis="0 1 0"/>
        <joint name="roll" axis="1 0 0"/>
        <geom name="palm" type="box" pos="0 0 -0.02" size="0.022 0.052 0.022" mass="0.01"
              rgba="{gripper}"/>
        <geom name="tip" type="sphere" pos="0 0 -0.096" size="0.014" mass="0.001"
              group="{HIDDEN_GROUP}"/>
        <site name="tip" pos="0 0 {-TIP_OFFSET}"/>
        <body name="left" pos="0 0.008 -0.076">
          <joint name="left" type="slide" axis="0 1 0"/>
          <geom name="left" type="box" size="0.013 0.008 0.034" mass="0.01" rgba="{gripper}"/>
        </body>
        <body name="right" pos="0 -0.008 -0.076">
          <joint name="right" type="slide" axis="0 -1 0"/>
          <geom name="right" type="box" size="0.013 0.008 0.034" mass="0.01" rgba="{gripper}"/>
        </body>
      </body>
    </body>"""


def gantry_drives(joints: Iterable[str]) -> str:
    """Critically damped position actuators of the gantry's joints, in this order."""
    stiffness = {name: ARM_FREQUENCY**2 for name in ACTION_NAMES[:GRIPPER]}
    stiffness |= {name: FINGER_FREQUENCY**2 for name in FINGERS}
    return "".join(
        f'<position name="{name}" joint="{name}" kp="{stiffness[name]:.9g}" dampratio="1"/>'
        for name in joints
    )


def rgba(rgb: RGB) -> str:
    """MJCF's text of an opaque colour."""
    return " ".join(f"{channel:.6g}" for channel in rgb) + " 1"
