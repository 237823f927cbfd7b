"""Many episodes of one world at once in native MuJoCo, on threads."""

from __future__ import annotations

import dataclasses
import os

import mujoco
import mujoco.rollout
import numpy as np
from jaxtyping import Bool, Float, UInt8

from roam_jax.morphology import PIXELS
from roam_jax.sim.draws import Draws
from roam_jax.sim.world import World
from roam_jax.sim.world_frames import WorldRenderer

# What an action may lie outside [-1, 1] by rounding.
ROUNDING = 1e-6


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a control step did to each of B episodes.

    Args:
        reward: of the step.
        success: whether the goal is met now.
        diverged: whether the simulation left the finite range, now or before.
    """

    reward: Float[np.ndarray, " B"]
    success: Bool[np.ndarray, " B"]
    diverged: Bool[np.ndarray, " B"]


class NativeWorlds:
    """B episodes of a world, from the starts that were drawn.

    An episode whose simulation diverges keeps its last finite state, without reward or success;
    the others go on.

    Args:
        world: by `make_world`.
        draws: by `world.draw`, B of them, at least one.
        threads: of the simulation; None for one a core.

    Attributes:
        count: B.
        time: control steps so far.
        qpos, qvel: generalised positions (B, Q) and velocities (B, V).
        command: commanded joint positions (B, J) in rad or m.
        diverged, fallen: (B,), which stay once true.

    Raises:
        ValueError: no draws, or of another body.
    """

    def __init__(self, world: World, draws: Draws, *, threads: int | None = None):
        joints = len(world.spec.morphology)
        if len(draws) == 0 or draws.joints.shape[1] != joints:
            raise ValueError(
                f"draws of {draws.joints.shape[0]} episodes and {draws.joints.shape[1]} joints: "
                f"world {world.spec.name!r} takes at least one, of {joints} joints"
            )
        self.world, self.draws, self.count, self.time = world, draws, len(draws), 0
        self.models = world.models(draws)
        self.qpos = world.start(draws)
        self.qvel = np.zeros((self.count, world.model.nv))
        self.command = draws.joints.copy()
        self.diverged = np.zeros(self.count, bool)
        self.fallen = np.zeros(self.count, bool)
        threads = min(threads or os.cpu_count() or 1, self.count)
        # No pool for one thread: it steps on the caller's.
        self._pool = mujoco.rollout.Rollout(nthread=threads if threads > 1 else 0)
        self._data = [mujoco.MjData(world.model) for _ in range(threads)]
        self._renderers: dict[int, WorldRenderer] = {}

    @property
    def tip(self) -> Float[np.ndarray, "B 3"]:
        """Where the tips are, in m."""
        return self.world.tip(self.qpos)

    @property
    def prop(self) -> Float[np.ndarray, "B 3"]:
        """x, y (m) and yaw (rad) of the props."""
        return self.world.prop(self.qpos)

    @property
    def done(self) -> bool:
        """Whether the episodes have had all of their steps."""
        return self.time >= self.world.spec.steps

    def observe(self, pixels: int = 0) -> dict[str, np.ndarray]:
        """All streams of the world's spec, each (B, cells, numbers) of float32 in SI units.

        Args:
            pixels: a side of the frames under `PIXELS`, (B, S, S, 3) of uint8; 0 for none.
        """
        goal = self.draws.goal
        streams = self.world.observe(self.qpos, self.qvel, self.command, goal)
        found = {name: value.astype(np.float32) for name, value in streams.items()}
        if pixels:
            found[PIXELS] = np.stack([self.frame(i, pixels) for i in range(self.count)])
        return found

    def frame(self, index: int, size: int) -> UInt8[np.ndarray, "H W 3"]:
        """The picture of episode `index` now."""
        if size not in self._renderers:
            self._renderers[size] = WorldRenderer(self.world, size)
        return self._renderers[size].render(self.models[index], self.qpos[index])

    def step(self, actions: Float[np.ndarray, "B J"]) -> Outcome:
        """Holds one action of each episode for a control period.

        Raises:
            ValueError: actions of another shape, not finite, or outside [-1, 1].
        """
        actions = self._checked(actions)
        world, before = self.world, self.qpos
        self.command = np.where(
            self.diverged[:, None], self.command, world.commanded(self.command, actions)
        )
        qpos, qvel = self._simulated()
        self.time += 1
        self.diverged = self.diverged | world.diverged(qpos, qvel)
        lost = self.diverged[:, None]
        self.qpos = np.where(lost, before, qpos)
        self.qvel = np.where(lost, self.qvel, qvel)
        self.fallen = self.fallen | world.fallen(self.qpos)
        out = self.diverged | self.fallen
        reward, success = world.outcome(before, self.qpos, self.time, self.draws.goal, out)
        return Outcome(reward, success, self.diverged.copy())

    def _checked(self, actions: np.ndarray) -> Float[np.ndarray, "B J"]:
        actions = np.asarray(actions, dtype=np.float64)
        names = self.world.spec.morphology.joint_names
        if actions.shape != (self.count, len(names)):
            raise ValueError(
                f"actions of shape {actions.shape}: world {self.world.spec.name!r} expects "
                f"{(self.count, len(names))}, a number for each of {self.count} episodes and "
                f"joints {names}"
            )
        good = np.abs(actions) <= 1 + ROUNDING
        if not good.all():
            episode, joint = np.argwhere(~good)[0]
            raise ValueError(
                f"action {actions[episode, joint]} of joint {names[joint]!r} in episode {episode}: "
                f"expected a number in [-1, 1]; clip actions before `step`"
            )
        return np.clip(actions, -1.0, 1.0)

    def _simulated(self) -> tuple[np.ndarray, np.ndarray]:
        """Positions and velocities a control period later; diverged episodes stay."""
        rows = np.flatnonzero(~self.diverged)
        qpos, qvel = self.qpos.copy(), self.qvel.copy()
        if len(rows) == 0:
            return qpos, qvel
        places, steps = self.world.model.nq, self.world.substeps
        time = np.zeros((len(rows), 1))
        start = np.concatenate([time, qpos[rows], qvel[rows]], axis=1)
        control = np.broadcast_to(
            self.command[rows, None], (len(rows), steps, self.command.shape[1])
        )
        models = [self.models[row] for row in rows]
        states, _ = self._pool.rollout(models, self._data, start, control)
        last = states[:, -1, 1:]
        qpos[rows], qvel[rows] = last[:, :places], last[:, places:]
        return qpos, qvel
