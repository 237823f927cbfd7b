"""Reach and push: a body on a table, and for push a prop on planar joints beside it.

The prop's body carries a cube, a ball and a cylinder of which two lie far below the table, so that
worlds of all shapes are one model: MJX then steps them under one compiled function.
"""

from __future__ import annotations

import copy

import mujoco
import numpy as np
from jaxtyping import Float

from roam_jax.morphology import VectorStream, WorldSpec
from roam_jax.sim.bodies import BODIES, TIP_RADIUS
from roam_jax.sim.draws import Draws, no_draws, rejected
from roam_jax.sim.environments import PRIMARY
from roam_jax.sim.fragments import TABLE_MJCF, planar_joints_mjcf, rgba
from roam_jax.sim.tabletop import SHAPES
from roam_jax.sim.world import INERTIA_FIELDS, World, joint_stream

TIMESTEP, PERIOD = 0.01, 0.1
STEPS = {"reach": 40, "push": 80}
REACHED, PUSHED = 0.02, 0.04  # metres between tip or prop and the goal that count as success
FARTHEST_START, NEAREST_START = 0.22, 0.10  # metres between a prop and its goal at the start
SIZES, MASSES, FRICTIONS = (0.024, 0.036), (0.05, 0.2), (0.1, 0.3)  # m, kg, N
# Turning friction in N m of a friction of 1 N.
LEVER = 0.02
RUN_UP = 0.10  # metres behind a prop that the tip can reach
BURIED = -1.0  # height in m of the shapes that a prop has not
GREY, WHITE = (0.35, 0.38, 0.45), (0.95, 0.95, 0.95)
PROP_FIELDS = (*INERTIA_FIELDS, "dof_frictionloss", "geom_pos", "geom_size", "geom_rbound")
PALETTE = np.array(list(PRIMARY.values()))
# Goals and props lie in this box (m) and at these distances from where arms stand, run-ups in the
# outer ones; a reach starts farther from its goal than FAR_TIP.
BOX, RING = ((0.18, -0.16), (0.42, 0.16)), (0.20, 0.42)
MIDDLE, OUTER_BOX, OUTER_RING = (0.29, 0.0), (0.19, 0.24), (0.15, 0.47)
FAR_TIP = 0.08
POINT = ("x", "y", "z")
# Moment of inertia about the vertical of a mass of 1 kg and a half width of 1 m.
INERTIA = {"cube": 2 / 3, "ball": 2 / 5, "cylinder": 1 / 2}
GEOMS = {
    "cube": ("box", "{0} {0} {0}"),
    "ball": ("sphere", "{0}"),
    "cylinder": ("cylinder", "{0} {0}"),
}


class TableWorld(World):
    """Reach, or push, with one of `BODIES`."""

    def __init__(self, environment: str, body: str):
        self.table_body = BODIES[body]
        self.pushes = environment == "push"
        self.varied = PROP_FIELDS if self.pushes else ()
        streams = [joint_stream(self.table_body.morphology)]
        streams.append(VectorStream("tip", POINT, (0.3, 0.3, 0.3)))
        if self.pushes:
            pose = ("x", "y", "sin_yaw", "cos_yaw")
            streams.append(VectorStream("prop", pose, (0.3, 0.3, 1.0, 1.0)))
        streams.append(VectorStream("goal", POINT, (0.3, 0.3, 0.3)))
        super().__init__(
            environment,
            WorldSpec(
                environment, self.table_body.morphology, tuple(streams), PERIOD, STEPS[environment]
            ),
        )

    def mjcf(self) -> str:
        """One model for all draws, with a buried goal."""
        radius = PUSHED if self.pushes else REACHED
        prop, pairs = _prop_mjcf() if self.pushes else ("", "")
        return f"""
<mujoco model="{self.environment}_{self.body}">
  <compiler angle="radian"/>
  <option timestep="{TIMESTEP}" gravity="0 0 0" integrator="implicitfast" iterations="10"
          ls_iterations="10"/>
  <default>
    <geom contype="0" conaffinity="0"/>
    <default class="drive"><joint armature="{self.table_body.armature}"/></default>
  </default>
  <worldbody>
    {TABLE_MJCF}
    <geom name="goal" type="cylinder" size="{radius} 0.001" pos="0 0 {BURIED}"
          rgba="{rgba(WHITE)}"/>
    <body name="robot" childclass="drive">{self.table_body.mjcf(GREY)}</body>{prop}
  </worldbody>
  <contact>{pairs}</contact>
  <actuator>{self.table_body.drives()}</actuator>
</mujoco>"""

    def draw(self, rng: np.random.Generator, count: int) -> Draws:
        """Starts of `count` episodes: the tip is away from the goal, and a push has room."""
        rows = rejected(lambda n: self._candidates(rng, n), self._accepted, count)
        rows["friction"] = rng.uniform(*FRICTIONS, count) * self.pushes
        rows["mass"] = rng.uniform(*MASSES, count) * self.pushes
        rows["rgb"] = PALETTE[rng.integers(len(PALETTE), size=count)]
        return Draws(**rows)

    def _candidates(self, rng: np.random.Generator, count: int) -> dict[str, np.ndarray]:
        body = self.table_body
        joints = rng.uniform(body.start_low, body.start_high, (count, len(body.start_low)))
        if self.body == "gantry":
            joints[:, 7] = joints[:, 6]
        rows = no_draws(count, joints)
        low, high = BOX
        rows["goal"][:, :2] = rng.uniform(low, high, (count, 2))
        if self.pushes:
            rows["prop"][:] = rng.uniform((*low, -np.pi), (*high, np.pi), (count, 3))
            rows["shape"] = rng.integers(len(SHAPES), size=count)
            rows["size"] = rng.uniform(*SIZES, count)
        else:
            rows["goal"][:, 2] = rng.uniform(*body.height, count)
        return rows

    def _accepted(self, rows: dict[str, np.ndarray]) -> np.ndarray:
        tip, goal, prop = self.table_body.tip_position(rows["joints"]), rows["goal"], rows["prop"]
        if not self.pushes:
            return _within(goal, RING) & (_length(tip - goal) > FAR_TIP)
        way = _length((goal - prop)[:, :2])
        behind = prop[:, :2] - RUN_UP * (goal - prop)[:, :2] / np.maximum(way, 1e-6)[:, None]
        fits = _within(behind, OUTER_RING) & (np.abs(behind - MIDDLE) < OUTER_BOX).all(-1)
        fits &= _within(prop, RING) & _within(goal, RING)
        fits &= (way > NEAREST_START) & (way < FARTHEST_START)
        return fits & (_length((tip - prop)[:, :2]) > 1.5 * rows["size"] + 2 * TIP_RADIUS)

    def models(self, draws: Draws) -> list[mujoco.MjModel]:
        """A model for each episode: its goal, and its prop's shape, size, mass and friction."""
        found, data = [], mujoco.MjData(self.model)
        for i in range(len(draws)):
            model = copy.copy(self.model)
            goal = model.geom("goal")
            goal.pos = draws.goal[i] if not self.pushes else (*draws.goal[i, :2], 0.001)
            if self.pushes:
                _set_prop(model, draws, i)
                mujoco.mj_setConst(model, data)
            else:
                goal.rgba[:3] = draws.rgb[i]
            found.append(model)
        return found

    def start(self, draws: Draws) -> Float[np.ndarray, "B Q"]:
        """Joints, then x, y and yaw of the prop."""
        qpos = np.zeros((len(draws), self.model.nq))
        qpos[:, self.joints] = draws.joints
        if self.pushes:
            qpos[:, -3:] = draws.prop
        return qpos

    def commanded(self, command, action):
        """The command moved by `action` times the body's step, within the joints' ranges."""
        xp = command.__array_namespace__()
        body = self.table_body
        return xp.clip(command + action * np.array(body.steps), body.low, body.high)

    def tip(self, qpos):
        """Where the tip is, (..., 3) in m."""
        return self.table_body.tip_position(qpos[..., self.joints])

    def prop(self, qpos):
        """x, y (m) and yaw (rad) of the prop, (..., 3)."""
        return qpos[..., -3:] if self.pushes else super().prop(qpos)

    def streams(self, qpos, qvel, goal) -> dict:
        """The tip, for push the prop, and the goal."""
        xp = qpos.__array_namespace__()
        found = {"tip": self.tip(qpos)[..., None, :]}
        if self.pushes:
            x, y, yaw = (qpos[..., i] for i in (-3, -2, -1))
            found["prop"] = xp.stack([x, y, xp.sin(yaw), xp.cos(yaw)], axis=-1)[..., None, :]
        return found | {"goal": goal[..., None, :]}

    def distance(self, qpos, goal):
        """From the tip or the prop to the goal, (...) in m."""
        if self.pushes:
            return _length(qpos[..., -3:-1] - goal[..., :2])
        return _length(self.tip(qpos) - goal)

    def reward(self, before, qpos, goal):
        """Minus the distance times the seconds that it lasted."""
        return -self.distance(qpos, goal) * PERIOD

    def success(self, qpos, steps, goal):
        """Whether the tip or the prop is at the goal."""
        return self.distance(qpos, goal) < (PUSHED if self.pushes else REACHED)


def _length(vector):
    return (vector * vector).sum(-1) ** 0.5


def _within(points: np.ndarray, ring: tuple[float, float]) -> np.ndarray:
    """Whether points lie between two distances (m) from the place where arms stand."""
    distance = _length(points[..., :2])
    return (ring[0] < distance) & (distance < ring[1])


def _prop_mjcf() -> tuple[str, str]:
    """A body of three shapes on planar joints, and its contact pairs."""
    largest = SIZES[1]
    geoms = "".join(
        f"""
      <geom name="{shape}" type="{GEOMS[shape][0]}" size="{GEOMS[shape][1].format(largest)}"
            pos="0 0 {largest}"/>"""
        for shape in SHAPES
    )
    pairs = "".join(
        f'<pair geom1="tip" geom2="{shape}" condim="3" friction="0.5 0.5 0.01 0.001 0.001"/>'
        for shape in SHAPES
    )
    return (
        f"""
    <body name="prop">
      <inertial pos="0 0 0" mass="0.1" diaginertia="1e-4 1e-4 1e-4"/>
      {planar_joints_mjcf("prop")}{geoms}
    </body>""",
        pairs,
    )


def _set_prop(model: mujoco.MjModel, draws: Draws, i: int) -> None:
    """Gives a copied model the prop of episode `i`."""
    size, mass, chosen = draws.size[i], draws.mass[i], SHAPES[draws.shape[i]]
    for shape in SHAPES:
        geom = model.geom(shape)
        geom.pos = (0.0, 0.0, size if shape == chosen else BURIED)
        geom.size = np.where(geom.size > 0, size, 0.0)
        geom.rbound = geom.rbound * size / SIZES[1]
        geom.rgba[:3] = draws.rgb[i]
    prop = model.body("prop")
    prop.mass = mass
    prop.inertia = (mass * INERTIA[chosen] * size**2,) * 3
    model.dof_frictionloss[-3:] = draws.friction[i] * np.array([1.0, 1.0, LEVER])
