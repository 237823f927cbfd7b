"""Many episodes of one world at once in MJX: physics, observations and policy under one jit.

Between physics steps only positions and velocities are kept. The rest of MJX's state follows from
them where the solver starts cold, and to carry it along would cost most of the time on a CPU.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from roam_jax.sim.draws import Draws
from roam_jax.sim.world import World

# On import MJX prints that Warp, which is for GPUs, is not there.
with contextlib.redirect_stdout(None):
    from mujoco import mjx

Observation = dict[str, Float[Array, "B N D"]]


class MJXState(NamedTuple):
    """B episodes; the fields are as `NativeWorlds` has them.

    Attributes:
        model: fields of MJX's model by name, with a leading axis B.
    """

    qpos: Float[Array, "B Q"]
    qvel: Float[Array, "B V"]
    command: Float[Array, "B J"]
    goal: Float[Array, "B 3"]
    model: dict[str, Array]
    steps: Int[Array, " B"]
    fallen: Bool[Array, " B"]
    diverged: Bool[Array, " B"]


class Trajectory(NamedTuple):
    """T control steps of B episodes: what was seen, what was done then, and what came of it."""

    observations: dict[str, Float[Array, "T B N D"]]
    actions: Float[Array, "T B J"]
    rewards: Float[Array, "T B"]
    successes: Bool[Array, "T B"]


class MJXWorlds:
    """Episodes of a world in MJX. Masses, sizes and friction are arrays: one compile for all draws.

    Args:
        world: by `make_world`.
    """

    def __init__(self, world: World):
        self.world = world
        self._model = mjx.put_model(world.model)
        self._data = mjx.make_data(world.model)
        self._step = jax.jit(self._advance)

    def reset(self, draws: Draws) -> MJXState:
        """Episodes at the starts that were drawn."""
        world, count = self.world, len(draws)
        models = world.models(draws)
        fields = {
            name: jnp.asarray(np.stack([getattr(model, name) for model in models]), jnp.float32)
            for name in world.varied
        }
        return MJXState(
            qpos=jnp.asarray(world.start(draws), jnp.float32),
            qvel=jnp.zeros((count, world.model.nv), jnp.float32),
            command=jnp.asarray(draws.joints, jnp.float32),
            goal=jnp.asarray(draws.goal, jnp.float32),
            model=fields,
            steps=jnp.zeros(count, jnp.int32),
            fallen=jnp.zeros(count, bool),
            diverged=jnp.zeros(count, bool),
        )

    def observe(self, state: MJXState) -> Observation:
        """All streams of the world's spec, each (B, cells, numbers) in SI units."""
        return self.world.observe(state.qpos, state.qvel, state.command, state.goal)

    def step(
        self, state: MJXState, actions: Float[Array | np.ndarray, "B J"]
    ) -> tuple[MJXState, Observation, Float[Array, " B"], Bool[Array, " B"]]:
        """Holds one action of each episode for a control period.

        Args:
            actions: clipped to [-1, 1].

        Returns:
            The state, what is seen in it, the reward of the step and whether the goal is met.
        """
        state, reward, success = self._step(state, jnp.asarray(actions, jnp.float32))
        return state, self.observe(state), reward, success

    @functools.partial(jax.jit, static_argnums=(0, 1, 3))
    def rollout(
        self, policy: Callable[[Observation], Float[Array, "B J"]], state: MJXState, steps: int
    ) -> tuple[MJXState, Trajectory]:
        """Plays a policy for so many control steps, all in one compiled function.

        Args:
            policy: actions of all episodes from what is seen of them; a function of JAX, compiled
                anew for each that is passed.
        """

        def control_step(state: MJXState, _: None) -> tuple[MJXState, Trajectory]:
            observation = self.observe(state)
            actions = policy(observation)
            state, reward, success = self._advance(state, actions)
            return state, Trajectory(observation, actions, reward, success)

        return jax.lax.scan(control_step, state, None, length=steps)

    def _advance(
        self, state: MJXState, actions: Float[Array, "B J"]
    ) -> tuple[MJXState, Float[Array, " B"], Bool[Array, " B"]]:
        world = self.world
        told = world.commanded(state.command, jnp.clip(actions, -1.0, 1.0))
        command = jnp.where(state.diverged[:, None], state.command, told).astype(jnp.float32)
        qpos, qvel = jax.vmap(self._physics)(state.model, state.qpos, state.qvel, command)
        diverged = state.diverged | world.diverged(qpos, qvel)
        qpos = jnp.where(diverged[:, None], state.qpos, qpos)
        qvel = jnp.where(diverged[:, None], state.qvel, qvel)
        fallen = state.fallen | world.fallen(qpos)
        out, steps = diverged | fallen, state.steps + 1
        reward, success = world.outcome(state.qpos, qpos, steps, state.goal, out)
        after = MJXState(
            qpos, qvel, command, state.goal, state.model, steps, fallen=fallen, diverged=diverged
        )
        return after, reward, success

    def _physics(
        self,
        fields: dict[str, Array],
        qpos: Float[Array, " Q"],
        qvel: Float[Array, " V"],
        command: Float[Array, " J"],
    ) -> tuple[Float[Array, " Q"], Float[Array, " V"]]:
        """Positions and velocities of one episode a control period later."""
        model = self._model.replace(**fields)

        def physics_step(carry, _: None):
            data = self._data.replace(qpos=carry[0], qvel=carry[1], ctrl=command)
            data = mjx.step(model, data)
            return (data.qpos, data.qvel), None

        return jax.lax.scan(physics_step, (qpos, qvel), None, length=self.world.substeps)[0]
