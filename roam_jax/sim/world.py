"""What all worlds share: one body in one environment, its physics and what a policy sees of it.

Observations, rewards and successes are written once, for arrays of NumPy and of JAX with any
leading axes; `sim/native.py` and `sim/mjx_worlds.py` step the physics.
"""

from __future__ import annotations

import abc

import mujoco
import numpy as np
from jaxtyping import Float

from roam_jax.morphology import JOINT_NUMBERS, JOINTS, Morphology, VectorStream, WorldSpec
from roam_jax.sim.draws import Draws

# Beyond these an episode has diverged: positions in m or rad, velocities a second.
FARTHEST, FASTEST = 1e2, 1e4
# What follows from masses in a model.
INERTIA_FIELDS = (
    "body_mass",
    "body_inertia",
    "body_subtreemass",
    "body_invweight0",
    "dof_invweight0",
    "dof_M0",
)
JOINT_SCALES = (1.0, 2.0, 0.2)


class World(abc.ABC):
    """An environment with a body, which `make_world` makes.

    Attributes:
        environment, body: names.
        spec: what a policy sees.
        model: native MuJoCo's, of no draw in particular.
        substeps: physics steps an action.
        varied: fields of the model that `models` varies.
        joints: of `spec.morphology`, their addresses among generalised positions; `dofs` among
            velocities.
    """

    environment: str
    spec: WorldSpec
    varied: tuple[str, ...]

    def __init__(self, environment: str, spec: WorldSpec):
        self.environment, self.body, self.spec = environment, spec.morphology.name, spec
        self.model = mujoco.MjModel.from_xml_string(self.mjcf())
        # A step then is a function of positions, velocities and controls alone, and a state that
        # blew up stays one.
        off = mujoco.mjtDisableBit
        self.model.opt.disableflags |= off.mjDSBL_WARMSTART | off.mjDSBL_AUTORESET
        names = spec.morphology.joint_names
        self.joints = np.array([self.model.joint(name).qposadr[0] for name in names])
        self.dofs = np.array([self.model.joint(name).dofadr[0] for name in names])
        self.substeps = round(spec.period / self.model.opt.timestep)

    def __repr__(self) -> str:
        return f"<world {self.spec.name}>"

    @abc.abstractmethod
    def mjcf(self) -> str:
        """The model that `models` varies."""

    @abc.abstractmethod
    def draw(self, rng: np.random.Generator, count: int) -> Draws:
        """Starts of `count` episodes."""

    @abc.abstractmethod
    def models(self, draws: Draws) -> list[mujoco.MjModel]:
        """A model for each episode, of its masses, sizes, friction and colours."""

    @abc.abstractmethod
    def start(self, draws: Draws) -> Float[np.ndarray, "B Q"]:
        """Generalised positions at the start; velocities are zero."""

    @abc.abstractmethod
    def commanded(self, command, action):
        """Commanded joint positions after an action in [-1, 1]; both (..., J)."""

    @abc.abstractmethod
    def streams(self, qpos, qvel, goal) -> dict:
        """What is observed beside the joints: stream -> (..., cells, numbers)."""

    @abc.abstractmethod
    def reward(self, before, qpos, goal):
        """Reward (...) of a control step from positions `before` to `qpos`."""

    @abc.abstractmethod
    def success(self, qpos, steps, goal):
        """Whether (...) the goal is met now, after so many control steps."""

    def fallen(self, qpos):
        """Whether (...) the body has fallen, after which it gets no reward and no success."""
        return qpos.__array_namespace__().zeros(qpos.shape[:-1], bool)

    def tip(self, qpos):
        """Where the tip is, (..., 3) in m.

        Raises:
            ValueError: the body has none.
        """
        raise ValueError(f"world {self.spec.name!r} has no tip: only bodies on a table have one")

    def prop(self, qpos):
        """x, y (m) and yaw (rad) of the prop, (..., 3).

        Raises:
            ValueError: there is none.
        """
        raise ValueError(f"world {self.spec.name!r} has no prop: only push has one")

    def outcome(self, before, qpos, steps, goal, out) -> tuple:
        """Reward and success (...) of a control step; none of either where `out`."""
        xp = qpos.__array_namespace__()
        reward = xp.where(out, 0.0, self.reward(before, qpos, goal))
        return reward, ~out & self.success(qpos, steps, goal)

    def observe(self, qpos, qvel, command, goal) -> dict:
        """All streams of `spec` in SI units: stream -> (..., cells, numbers)."""
        xp = qpos.__array_namespace__()
        position = qpos[..., self.joints]
        rows = xp.stack([position, qvel[..., self.dofs], command - position], axis=-1)
        return {JOINTS: rows, **self.streams(qpos, qvel, goal)}

    def diverged(self, qpos, qvel):
        """Whether (...) a state left the finite range."""
        xp = qpos.__array_namespace__()
        # Comparisons with NaN are false.
        fine = (xp.abs(qpos) < FARTHEST).all(-1) & (xp.abs(qvel) < FASTEST).all(-1)
        return ~fine


def joint_stream(morphology: Morphology) -> VectorStream:
    """The stream of a body's joints."""
    return VectorStream(JOINTS, JOINT_NUMBERS, JOINT_SCALES, cells=len(morphology))
