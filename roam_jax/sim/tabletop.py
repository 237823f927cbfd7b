"""A tabletop gantry: one declaration of a scene, its MJCF, and the simulated robot.

Three slides carry a wrist of three hinges and a two-finger gripper over a table with one or two
props. Everything is a primitive and every prop slides on planar joints with dry friction in place
of a contact with the table, so that at most two contact pairs (fingertip and prop) remain and the
model stays small enough for MJX. Actions and state follow BridgeData V2 (Walke et al., CoRL 2023).
"""

from __future__ import annotations

import dataclasses
import math

import mujoco
import numpy as np
from jaxtyping import Float

from roam_jax.contracts import ACTION_DIM, ACTION_NAMES, GRIPPER
from roam_jax.sim.fragments import (
    FINGER_TRAVEL,
    FINGERS,
    RGB,
    TABLE_MJCF,
    TIP_OFFSET,
    gantry_drives,
    gantry_mjcf,
    planar_joints_mjcf,
    rgba,
    vector,
)
from roam_jax.spelling import nearest

CONTROL_PERIOD = 0.2  # seconds between actions: Bridge's 5 Hz
TIMESTEP = 0.005
MAX_PROPS = 2  # one contact pair each
SHAPES = ("cube", "ball", "cylinder")
TEXTURES = ("checker", "stripes", "plain")
CAMERA = "over_shoulder"
# Commanded poses saturate here, as a robot's do at its joint limits (metres, radians).
POSE_LOW = np.array([0.08, -0.26, 0.012, -0.6, -0.6, -1.2])
POSE_HIGH = np.array([0.50, 0.26, 0.300, 0.6, 0.6, 1.2])

Point = tuple[float, float, float]


class SimulationDivergedError(RuntimeError):
    """The simulated state left the finite range; the episode is worthless."""


def _check_name(what: str, name: str, known: tuple[str, ...]):
    if name not in known:
        hint = f"did you mean {nearest(name, known)!r}?"
        raise ValueError(f"{what} {name!r}: expected one of {known} ({hint})")


@dataclasses.dataclass(frozen=True)
class Prop:
    """A thing on the table.

    Args:
        shape: one of `SHAPES`.
        colour: the word that instructions use.
        rgb: colour in [0, 1].
        size: half width, or radius, in metres; the prop is as high as it is wide.
        position: centre on the table (x, y) in metres.
        yaw: radians.

    Raises:
        ValueError: unknown shape, or a size that is not positive.
    """

    shape: str
    colour: str
    rgb: RGB
    size: float
    position: tuple[float, float]
    yaw: float = 0.0

    def __post_init__(self):
        _check_name("prop shape", self.shape, SHAPES)
        if self.size <= 0:
            raise ValueError(
                f"size of the {self.name} is {self.size} m: expected a positive length"
            )

    @property
    def name(self) -> str:
        """How instructions call it, for instance "red cube"."""
        return f"{self.colour} {self.shape}"


@dataclasses.dataclass(frozen=True)
class Table:
    """The table top's procedural texture, one of `TEXTURES`; `period` is metres a tile or stripe.

    Raises:
        ValueError: unknown texture.
    """

    texture: str = "checker"
    light_rgb: RGB = (0.78, 0.72, 0.62)
    dark_rgb: RGB = (0.64, 0.58, 0.49)
    period: float = 0.08

    def __post_init__(self):
        _check_name("table texture", self.texture, TEXTURES)


@dataclasses.dataclass(frozen=True)
class Camera:
    """A pinhole camera at `position` that looks at `target`; vertical field of view in degrees."""

    position: Point = (-0.12, -0.10, 0.50)
    target: Point = (0.29, 0.0, 0.065)
    fovy: float = 42.0

    def axes(self) -> Float[np.ndarray, "2 3"]:
        """The image's right and up directions in the world."""
        forward = np.subtract(self.target, self.position)
        right = np.cross(forward, (0.0, 0.0, 1.0))
        up = np.cross(right, forward)
        return np.stack([right / np.linalg.norm(right), up / np.linalg.norm(up)])


@dataclasses.dataclass(frozen=True)
class Scene:
    """All that is fixed before an episode starts.

    Args:
        props: one or two things on the table.
        start: first pose of the fingertips (x, y, z, roll, pitch, yaw), metres and radians.
        gripper: first gripper opening, 1 open, 0 closed.
        table, camera, light, gripper_rgb, background_rgb: appearance; `light` is a point (m).

    Raises:
        ValueError: no prop or too many, two props of one name, a start outside the workspace.
    """

    props: tuple[Prop, ...]
    start: tuple[float, ...] = (0.26, 0.0, 0.18, 0.0, 0.0, 0.0)
    gripper: float = 1.0
    table: Table = Table()
    camera: Camera = Camera()
    light: Point = (0.1, 0.45, 1.3)
    gripper_rgb: RGB = (0.22, 0.22, 0.26)
    background_rgb: RGB = (0.42, 0.46, 0.52)

    def __post_init__(self):
        names = [prop.name for prop in self.props]
        if not 1 <= len(names) <= MAX_PROPS or len(set(names)) < len(names):
            raise ValueError(f"props {names}: expected 1 to {MAX_PROPS} of different names")
        outside = (np.array(self.start) < POSE_LOW) | (np.array(self.start) > POSE_HIGH)
        if outside.any():
            axis = int(outside.argmax())
            raise ValueError(
                f"start {ACTION_NAMES[axis]} = {self.start[axis]}: expected "
                f"{POSE_LOW[axis]} to {POSE_HIGH[axis]}"
            )


def _prop_mjcf(index: int, prop: Prop) -> str:
    """A body on planar joints: dry friction and damping stand in for the table's contact."""
    size = f"{prop.size:.9g}"
    kind, sizes = {
        "cube": ("box", f"{size} {size} {size}"),
        "ball": ("sphere", size),
        "cylinder": ("cylinder", f"{size} {size}"),
    }[prop.shape]
    x, y = prop.position
    return f"""
    <body name="prop_{index}" pos="{x:.9g} {y:.9g} {size}">
      {planar_joints_mjcf(f"prop_{index}")}
      <geom name="prop_{index}" type="{kind}" size="{sizes}" euler="0 0 {prop.yaw:.9g}" mass="0.1"
            rgba="{rgba(prop.rgb)}"/>
    </body>"""


def to_mjcf(scene: Scene) -> str:
    """The scene as MJCF: primitives only, one contact pair a prop.

    Slides and hinges carry an armature far above the bodies' inertia, so that the axes are nearly
    decoupled unit masses and one frequency describes them all.
    """
    props = "".join(_prop_mjcf(i, prop) for i, prop in enumerate(scene.props))
    pairs = "".join(
        f'<pair geom1="tip" geom2="prop_{i}" condim="3" friction="0.5 0.5 0.01 0.001 0.001"/>'
        for i in range(len(scene.props))
    )
    (right, up), view = scene.camera.axes(), scene.camera
    drives = gantry_drives((*ACTION_NAMES[:GRIPPER], *FINGERS))
    return f"""
<mujoco model="tabletop">
  <compiler angle="radian"/>
  <option timestep="{TIMESTEP}" gravity="0 0 0" integrator="implicitfast"/>
  <default>
    <geom contype="0" conaffinity="0"/>
    <default class="drive"><joint armature="1"/></default>
  </default>
  <worldbody>
    <camera name="{CAMERA}" pos="{vector(view.position)}" fovy="{view.fovy:.9g}"
            xyaxes="{vector(right)} {vector(up)}"/>
    {TABLE_MJCF}
{gantry_mjcf(scene.gripper_rgb)}{props}
  </worldbody>
  <contact>{pairs}</contact>
  <actuator>{drives}</actuator>
</mujoco>"""


def wrist_position(pose: Float[np.ndarray, " 6"]) -> Float[np.ndarray, " 3"]:
    """Where the slides must be for the fingertips to have this pose: inverse kinematics."""
    roll, pitch, yaw = pose[3:]
    # Third column of Rz(yaw) Ry(pitch) Rx(roll): the direction from the tips up to the wrist.
    up = np.array(
        [
            math.cos(yaw) * math.sin(pitch) * math.cos(roll) + math.sin(yaw) * math.sin(roll),
            math.sin(yaw) * math.sin(pitch) * math.cos(roll) - math.cos(yaw) * math.sin(roll),
            math.cos(pitch) * math.cos(roll),
        ]
    )
    return pose[:3] + TIP_OFFSET * up


class Tabletop:
    """The simulated robot of one scene, stepped at 5 Hz.

    A state is (x, y, z, roll, pitch, yaw, gripper) of the fingertips, in metres, radians and
    opening (1 open, 0 closed; it ramps). An action is a pose delta on the commanded pose, as on
    Bridge's robots, and the absolute gripper command; the state follows with the joints' lag.
    """

    def __init__(self, scene: Scene):
        self.scene = scene
        self.model = mujoco.MjModel.from_xml_string(to_mjcf(scene))
        self.data = mujoco.MjData(self.model)
        self._joints = {
            self.model.joint(i).name: int(self.model.jnt_qposadr[i]) for i in range(self.model.njnt)
        }
        self._tip = self.model.site("tip").id
        self._substeps = round(CONTROL_PERIOD / TIMESTEP)
        self.reset()

    def reset(self) -> Float[np.ndarray, " 7"]:
        """Put everything at its start, at rest, and return the state."""
        mujoco.mj_resetData(self.model, self.data)
        self.command = np.array(self.scene.start, dtype=np.float64)
        controls = self._controls(self.scene.gripper)
        self.data.ctrl[:] = controls
        for actuator, value in enumerate(controls):
            self.data.qpos[self._joints[self.model.actuator(actuator).name]] = value
        mujoco.mj_forward(self.model, self.data)
        return self.state

    def step(self, action: Float[np.ndarray, " 7"]) -> Float[np.ndarray, " 7"]:
        """Hold one action for a control period and return the state after it.

        The commanded pose saturates at `POSE_LOW`, `POSE_HIGH`, the gripper at [0, 1].

        Raises:
            ValueError: the action has not 7 finite values.
            SimulationDivergedError: the physics blew up.
        """
        action = np.asarray(action, dtype=np.float64)
        if action.shape != (ACTION_DIM,) or not np.isfinite(action).all():
            raise ValueError(f"action {action}: expected {ACTION_DIM} finite values")
        self.command = np.clip(self.command + action[:GRIPPER], POSE_LOW, POSE_HIGH)
        self.data.ctrl[:] = self._controls(float(np.clip(action[GRIPPER], 0.0, 1.0)))
        mujoco.mj_step(self.model, self.data, nstep=self._substeps)
        # MuJoCo resets a state that blew up and goes on; only its warnings tell.
        for kind in _BAD_STATE:
            warning = self.data.warning[kind]
            if warning.number:
                raise SimulationDivergedError(
                    f"{kind.name} at degree of freedom {warning.lastinfo} on the way to "
                    f"{self.command}: expected a finite state"
                )
        # mj_step leaves the bodies where they were one substep ago; state and frame must agree.
        mujoco.mj_kinematics(self.model, self.data)
        return self.state

    @property
    def state(self) -> Float[np.ndarray, " 7"]:
        """Measured pose of the fingertips and the gripper's opening."""
        angles = [self._position(name) for name in ACTION_NAMES[3:GRIPPER]]
        opening = (self._position("left") + self._position("right")) / (2 * FINGER_TRAVEL)
        return np.array([*self.data.site_xpos[self._tip], *angles, opening])

    def prop_position(self, index: int) -> Float[np.ndarray, " 2"]:
        """Where prop `index` is now on the table, in metres."""
        return self.data.xpos[self.model.body(f"prop_{index}").id][:2].copy()

    def _position(self, joint: str) -> float:
        return float(self.data.qpos[self._joints[joint]])

    def _controls(self, gripper: float) -> Float[np.ndarray, " 8"]:
        fingers = [FINGER_TRAVEL * gripper] * 2
        return np.array([*wrist_position(self.command), *self.command[3:], *fingers])


_BAD_STATE = (
    mujoco.mjtWarning.mjWARN_BADQPOS,
    mujoco.mjtWarning.mjWARN_BADQVEL,
    mujoco.mjtWarning.mjWARN_BADQACC,
)
