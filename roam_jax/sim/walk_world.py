"""Walk: one of `WALKERS` on a floor, forwards."""

from __future__ import annotations

import copy

import mujoco
import numpy as np
from jaxtyping import Float

from roam_jax.morphology import VectorStream, WorldSpec
from roam_jax.sim.draws import Draws, no_draws
from roam_jax.sim.environments import PRIMARY
from roam_jax.sim.walkers import (
    CONTROL_PERIOD,
    TORSO_MASS,
    WALKERS,
    walker_mjcf,
)
from roam_jax.sim.world import INERTIA_FIELDS, World, joint_stream

STEPS = 200
# Metres between the lowest foot and the floor at the start: with none, rounding decides whether it
# touches.
CLEARANCE = 1e-3
LOOSE = 0.05  # rad either way that joints start from the stance of the gait
MASSES, FRICTIONS = (0.85, 1.15), (0.8, 1.2)  # of the torso's mass; coefficients
PART_OF_SPEED = 0.5  # of the expert's that counts as success
ROOT = ("height", "pitch", "forward_velocity", "vertical_velocity", "pitch_rate")


class WalkWorld(World):
    """A walker, whose torso's x, z and pitch are the first generalised positions.

    In `model` the joints damp what `mjcf` lets their actuators damp.
    """

    varied = (*INERTIA_FIELDS, "pair_friction")

    def __init__(self, environment: str, body: str):
        self.walker = WALKERS[body]
        morphology = self.walker.morphology
        streams = (
            joint_stream(morphology),
            VectorStream("root", ROOT, (0.4, 0.4, 1.0, 0.5, 2.0)),
        )
        spec = WorldSpec(environment, morphology, streams, CONTROL_PERIOD, STEPS)
        self._low = np.array([joint.low for joint in morphology.joints])
        self._high = np.array([joint.high for joint in morphology.joints])
        super().__init__(environment, spec)
        # MJX's implicit integrator does not know that a saturated actuator damps nothing; where
        # the joints damp in place of their actuators, it agrees with native MuJoCo.
        self.model.dof_damping[self.dofs] -= self.model.actuator_biasprm[:, 2]
        self.model.actuator_biasprm[:, 2] = 0.0

    def mjcf(self) -> str:
        """The walker on its floor."""
        return walker_mjcf(self.walker)

    def draw(self, rng: np.random.Generator, count: int) -> Draws:
        """Starts of `count` episodes near the stance of the gait, feet on the floor."""
        start = self.walker.start
        joints = start + rng.uniform(-LOOSE, LOOSE, (count, len(start)))
        rows = no_draws(count, np.clip(joints, self._low, self._high))
        rows["mass"] = TORSO_MASS * rng.uniform(*MASSES, count)
        rows["friction"] = rng.uniform(*FRICTIONS, count)
        rows["rgb"] = np.array(list(PRIMARY.values()))[rng.integers(len(PRIMARY), size=count)]
        return Draws(**rows)

    def models(self, draws: Draws) -> list[mujoco.MjModel]:
        """A model for each episode, of its torso's mass and its feet's friction."""
        found, data = [], mujoco.MjData(self.model)
        coloured = [i for i in range(self.model.ngeom) if _takes_colour(self.model.geom(i).name)]
        torso = self.model.body("torso").id
        for i in range(len(draws)):
            model = copy.copy(self.model)
            model.body_inertia[torso] *= draws.mass[i] / model.body_mass[torso]
            model.body_mass[torso] = draws.mass[i]
            model.pair_friction[:, :2] = draws.friction[i]
            model.geom_rgba[coloured, :3] = draws.rgb[i]
            mujoco.mj_setConst(model, data)
            found.append(model)
        return found

    def start(self, draws: Draws) -> Float[np.ndarray, "B Q"]:
        """A level torso at x = 0, the lowest foot `CLEARANCE` above the floor."""
        qpos = np.zeros((len(draws), self.model.nq))
        qpos[:, self.joints] = draws.joints
        height = self.walker.standing_height(draws.joints) + CLEARANCE
        qpos[:, 1] = height - self.walker.height
        return qpos

    def commanded(self, command, action):
        """The middle of each joint's range, and half of the range for an action of 1."""
        return self.walker.positions(action)

    def streams(self, qpos, qvel, goal) -> dict:
        """The torso's height (m), pitch (rad, nose down) and their rates, and its speed."""
        xp = qpos.__array_namespace__()
        numbers = (self._height(qpos), qpos[..., 2], qvel[..., 0], qvel[..., 1], qvel[..., 2])
        return {"root": xp.stack(numbers, axis=-1)[..., None, :]}

    def reward(self, before, qpos, goal):
        """Metres forwards."""
        return qpos[..., 0] - before[..., 0]

    def success(self, qpos, steps, goal):
        """Whether the mean speed so far is at least half of the expert's."""
        return qpos[..., 0] >= PART_OF_SPEED * self.walker.speed * steps * CONTROL_PERIOD

    def fallen(self, qpos):
        """Whether the torso is too low or leans too far."""
        return self.walker.fallen(self._height(qpos), qpos[..., 2])

    def _height(self, qpos):
        return self.walker.height + qpos[..., 1]


def _takes_colour(name: str) -> bool:
    return name.startswith(("torso", "thigh", "shank"))
