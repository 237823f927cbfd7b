"""The worlds and the tabletop as Gymnasium environments.

Importing this module registers `roam_jax/ENVIRONMENT-BODY-v0` for every world, such as
`roam_jax/reach-arm3-v0`, and `roam_jax/tabletop-reach-v0` and `roam_jax/tabletop-push-v0`.
"""

from __future__ import annotations

import string
from typing import Any

import gymnasium
import numpy as np
from jaxtyping import Float, UInt8

from roam_jax.contracts import ACTION_DIM
from roam_jax.morphology import PIXELS, WorldSpec
from roam_jax.sim.environments import KINDS, PLAIN_LOOK, VARIED_LOOK, draw_environment
from roam_jax.sim.native import NativeWorlds
from roam_jax.sim.render import Renderer
from roam_jax.sim.tabletop import CONTROL_PERIOD, SimulationDivergedError, Tabletop
from roam_jax.sim.world import FASTEST
from roam_jax.sim.worlds import WORLDS, make_world
from roam_jax.spelling import check_choice

RENDER_MODE = "rgb_array"
# The most that an action may move the tabletop's commanded pose: metres, radians.
LARGEST_STEP, LARGEST_TURN = 0.1, 0.5
LOOKS = {"plain": PLAIN_LOOK, "varied": VARIED_LOOK}
Observation = dict[str, Any]
Step = tuple[Observation, float, bool, bool, dict[str, Any]]


class WorldEnv(gymnasium.Env):
    """One episode at a time of a world.

    Observations are its streams, (cells, numbers) of float32 in SI units, actions a number in
    [-1, 1] a joint. An episode is cut off after the steps of `world_spec`, or where the simulation
    diverges, which `info["diverged"]` says; a walker's ends when it falls. `info["success"]` says
    whether the goal is met now.

    Args:
        environment, body: of `WORLDS`.
        pixels: a side of the frames that are observed too; 0 for none.
        render_mode: "rgb_array" or None.
        render_size: a side of what `render` returns, in pixels.

    Raises:
        ValueError: unknown environment, body or mode of rendering.
    """

    metadata = {"render_modes": [RENDER_MODE], "render_fps": 10}

    def __init__(
        self,
        environment: str,
        body: str,
        *,
        pixels: int = 0,
        render_mode: str | None = None,
        render_size: int = 256,
    ):
        self._world = make_world(environment, body)
        self.render_mode = _mode(render_mode)
        self._pixels, self._render_size = pixels, render_size
        self.metadata = self.metadata | {"render_fps": round(1 / self.period)}
        spaces: dict[str, gymnasium.Space] = {
            stream.name: gymnasium.spaces.Box(-FASTEST, FASTEST, stream.shape, np.float32)
            for stream in self.world_spec.streams
        }
        if pixels:
            spaces[PIXELS] = _frames(pixels)
        self.observation_space = gymnasium.spaces.Dict(spaces)
        joints = len(self.world_spec.morphology)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (joints,), np.float32)
        self._episode: NativeWorlds | None = None

    @property
    def world_spec(self) -> WorldSpec:
        """The body, the streams and the timing."""
        return self._world.spec

    @property
    def period(self) -> float:
        """Seconds between actions."""
        return self.world_spec.period

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """A new episode; the same one for the same seed."""
        super().reset(seed=seed, options=options)
        draws = self._world.draw(self.np_random, 1)
        self._episode = NativeWorlds(self._world, draws, threads=1)
        return self._observe(), {"success": False, "diverged": False}

    def step(self, action: Float[np.ndarray, " J"]) -> Step:
        """Holds an action for a control period.

        Raises:
            ValueError: an action of another shape, not finite, or outside [-1, 1].
            RuntimeError: before the first `reset`.
        """
        episode = self._started()
        outcome = episode.step(np.asarray(action)[None])
        diverged = bool(outcome.diverged[0])
        info = {"success": bool(outcome.success[0]), "diverged": diverged}
        truncated = diverged or episode.done
        fallen = bool(episode.fallen[0])
        return self._observe(), float(outcome.reward[0]), fallen, truncated, info

    def render(self) -> UInt8[np.ndarray, "H W 3"] | None:
        """The present frame; None without a mode of rendering."""
        return self._started().frame(0, self._render_size) if self.render_mode else None

    def _observe(self) -> Observation:
        streams = self._started().observe(self._pixels)
        return {name: value[0] for name, value in streams.items()}

    def _started(self) -> NativeWorlds:
        if self._episode is None:
            raise RuntimeError(f"{self.world_spec.name}: call `reset` before anything else")
        return self._episode


class TabletopEnv(gymnasium.Env):
    """The tabletop of the embedded episodes: reach a prop, or push one, as an instruction says.

    Observations are "image" (S, S, 3) of uint8, "state" (7,) (x, y, z, roll, pitch, yaw in m and
    rad, and the gripper's opening) and "instruction". Actions have Bridge's 7 numbers: changes of
    the commanded pose and the gripper, 1 open to 0 closed. The reward is 1 where the goal is met.

    Args:
        kind: "reach" or "push".
        look: "plain" or "varied".
        size: a side of the image in pixels.
        steps: actions of an episode.
        render_mode: "rgb_array" or None.
        render_size: a side of what `render` returns, in pixels.

    Raises:
        ValueError: unknown kind, look or mode of rendering.
    """

    metadata = {"render_modes": [RENDER_MODE], "render_fps": round(1 / CONTROL_PERIOD)}
    period = CONTROL_PERIOD

    def __init__(
        self,
        kind: str = "reach",
        *,
        look: str = "plain",
        size: int = 64,
        steps: int = 28,
        render_mode: str | None = None,
        render_size: int = 256,
    ):
        check_choice("kind", kind, KINDS)
        check_choice("look", look, LOOKS)
        self.render_mode = _mode(render_mode)
        self._kind, self._look, self._steps = kind, LOOKS[look], steps
        self._sizes = {"image": size, "render": render_size}
        self._table: Tabletop | None = None
        letters = string.ascii_lowercase + " "
        self.observation_space = gymnasium.spaces.Dict(
            {
                "image": _frames(size),
                "state": gymnasium.spaces.Box(-FASTEST, FASTEST, (ACTION_DIM,), np.float32),
                "instruction": gymnasium.spaces.Text(max_length=64, charset=letters),
            }
        )
        high = np.array([LARGEST_STEP] * 3 + [LARGEST_TURN] * 3 + [1.0], np.float32)
        low = np.append(-high[:-1], np.float32(0.0))
        self.action_space = gymnasium.spaces.Box(low, high, dtype=np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """A new scene and instruction; the same ones for the same seed."""
        super().reset(seed=seed, options=options)
        self._task = draw_environment(self.np_random, kind=self._kind, look=self._look)
        self._table = Tabletop(self._task.scene)
        self._renderers: dict[str, Renderer] = {}
        self._state, self._time = self._table.state, 0
        return self._observe(), {"success": self._task.success(self._table), "diverged": False}

    def step(self, action: Float[np.ndarray, " 7"]) -> Step:
        """Holds an action for a control period; commands saturate at the workspace.

        Raises:
            ValueError: the action has not 7 finite numbers.
            RuntimeError: before the first `reset`.
        """
        table = self._started()
        self._time += 1
        try:
            self._state = table.step(np.asarray(action))
        except SimulationDivergedError:
            return self._observe(), 0.0, False, True, {"success": False, "diverged": True}
        success = self._task.success(table)
        info = {"success": success, "diverged": False}
        return self._observe(), float(success), False, self._time >= self._steps, info

    def render(self) -> UInt8[np.ndarray, "H W 3"] | None:
        """The present frame; None without a mode of rendering."""
        return self._frame("render") if self.render_mode else None

    def _observe(self) -> Observation:
        return {
            "image": self._frame("image"),
            "state": self._state.astype(np.float32),
            "instruction": self._task.instruction,
        }

    def _frame(self, use: str) -> UInt8[np.ndarray, "H W 3"]:
        table = self._started()
        if use not in self._renderers:
            self._renderers[use] = Renderer(table.model, self._task.scene, size=self._sizes[use])
        return self._renderers[use].render(table.data)

    def _started(self) -> Tabletop:
        if self._table is None:
            raise RuntimeError(f"tabletop {self._kind}: call `reset` before anything else")
        return self._table


def _mode(render_mode: str | None) -> str | None:
    if render_mode is not None:
        check_choice("render_mode", render_mode, (RENDER_MODE,))
    return render_mode


def _frames(size: int) -> gymnasium.spaces.Box:
    return gymnasium.spaces.Box(0, 255, (size, size, 3), np.uint8)


def _register() -> None:
    for environment, bodies in WORLDS.items():
        for body in bodies:
            gymnasium.register(
                f"roam_jax/{environment}-{body}-v0",
                entry_point=f"{__name__}:WorldEnv",
                kwargs={"environment": environment, "body": body},
            )
    for kind in KINDS:
        gymnasium.register(
            f"roam_jax/tabletop-{kind}-v0",
            entry_point=f"{__name__}:TabletopEnv",
            kwargs={"kind": kind},
        )


_register()
