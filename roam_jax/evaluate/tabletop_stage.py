"""A graft's policy on the simulated tabletop: reach and push, told by an instruction.

Scenes look like those that the run was trained on and come from a stream that no dataset draws
from. The policy sees rendered frames, its own motion as the robot measured it, and what it told the
gripper, as it did in training.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import mujoco
import numpy as np
from jaxtyping import Bool, Float, UInt8

from roam_jax.contracts import (
    ACTION_DIM,
    ACTION_NAMES,
    FRAMES_PER_LATENT,
    GRIPPER,
    Params,
    TimeSpec,
    VectorSpec,
)
from roam_jax.data.embedded import VARIANTS
from roam_jax.evaluate.closed_loop import RolloutOptions
from roam_jax.evaluate.ensembling import ActionBuffer, Chunking
from roam_jax.evaluate.observation import Observation
from roam_jax.evaluate.policy import Policy
from roam_jax.evaluate.policy_inputs import require_actions
from roam_jax.evaluate.report_rollout import EXPERT
from roam_jax.evaluate.rollouts import (
    Film,
    Player,
    RandomPlayer,
    Rollouts,
    Worlds,
    draws_rng,
    play_worlds,
    starts_rng,
)
from roam_jax.model.loop_options import exit_threshold
from roam_jax.sim.environments import KINDS, PLAIN_LOOK, Environment, Look, draw_environment
from roam_jax.sim.experts import MAX_STEP, MAX_TURN, expert_actions
from roam_jax.sim.render import Renderer
from roam_jax.sim.tabletop import CONTROL_PERIOD, SimulationDivergedError, Tabletop
from roam_jax.tasks.build import Experiment
from roam_jax.tasks.datasets import EMBEDDED

# Actions of an episode; an expert's takes at most as many.
STEPS = 28
# Worlds whose actions are predicted at once, and pixels of rendered frames, as in the data.
WORLDS, PIXELS = 25, 64
FILMED = 2


@runtime_checkable
class TablePolicy(Protocol):
    """What `Policy` is, as far as the tabletop asks."""

    time: TimeSpec
    actions: VectorSpec
    rate: float

    def __call__(
        self, observation: Observation, *, instruction: Sequence[str], seed: Sequence[int]
    ) -> Float[np.ndarray, "B P A"]:
        """Actions of B worlds."""


@dataclasses.dataclass(frozen=True)
class TableOutcome:
    """What a step led to: as that of `NativeWorlds.step`; the reward is 1 where the goal is met."""

    reward: Float[np.ndarray, " B"]
    success: Bool[np.ndarray, " B"]
    diverged: Bool[np.ndarray, " B"]


class TabletopWorlds:
    """Many tabletops at once; see `rollouts.Worlds`.

    Args:
        environments: one a world.
    """

    def __init__(self, environments: Sequence[Environment]):
        self.environments = tuple(environments)
        self.tables = [Tabletop(environment.scene) for environment in self.environments]
        self.count = len(self.tables)
        self.diverged = np.zeros(self.count, bool)
        self._renderers: dict[tuple[int, int], Renderer] = {}

    def observe(self, pixels: int = 0) -> dict[str, Any]:
        """ "state" (B, 7), B texts "instruction", and with pixels "image" (B, S, S, 3)."""
        seen = {
            "state": np.stack([table.state for table in self.tables]),
            "instruction": [environment.instruction for environment in self.environments],
        }
        if pixels:
            seen["image"] = np.stack([self.frame(i, pixels) for i in range(self.count)])
        return seen

    def frame(self, index: int, size: int) -> UInt8[np.ndarray, "S S 3"]:
        """The camera's picture of a world."""
        table = self.tables[index]
        if (index, size) not in self._renderers:
            self._renderers[index, size] = Renderer(table.model, table.scene, size=size)
        return self._renderers[index, size].render(table.data)

    def step(self, actions: Float[np.ndarray, "B 7"]) -> TableOutcome:
        """Holds one action for a control period; a world that diverges is put to rest for good.

        Raises:
            ValueError: as `Tabletop.step`.
        """
        success = np.zeros(self.count, bool)
        for index, (environment, table) in enumerate(
            zip(self.environments, self.tables, strict=True)
        ):
            if self.diverged[index]:
                continue
            try:
                table.step(actions[index])
                success[index] = environment.success(table)
            except SimulationDivergedError:
                self.diverged[index] = True
                mujoco.mj_resetData(table.model, table.data)
        return TableOutcome(success.astype(float), success, self.diverged.copy())


class TabletopExpert:
    """The scripted expert, which rests when its script is over."""

    def reset(self, worlds: TabletopWorlds, rng: np.random.Generator) -> None:
        """Writes a script for each world."""
        self._grippers = [environment.scene.gripper for environment in worlds.environments]
        self._scripts = [
            expert_actions(environment, table, own)
            for environment, table, own in zip(
                worlds.environments, worlds.tables, rng.spawn(worlds.count), strict=True
            )
        ]

    def act(self, worlds: TabletopWorlds) -> Float[np.ndarray, "B 7"]:
        """The next line of each script."""
        actions = np.zeros((worlds.count, ACTION_DIM))
        for index, script in enumerate(self._scripts):
            resting = np.array([0.0] * GRIPPER + [self._grippers[index]])
            actions[index] = next(script, resting)
            self._grippers[index] = actions[index, GRIPPER]
        return actions


class RandomHand(RandomPlayer):
    """Moves as far as the expert's hand does, anywhere, and opens and closes."""

    def __init__(self):
        super().__init__(ACTION_DIM)

    def act(self, worlds: TabletopWorlds) -> Float[np.ndarray, "B 7"]:
        """Independent of what is seen."""
        reach = np.array([MAX_STEP] * 3 + [MAX_TURN] * 3)
        actions = super().act(worlds)
        return np.c_[actions[:, :GRIPPER] * reach, actions[:, GRIPPER:] > 0]


class GraftPlayer:
    """A graft's policy. Before the first action it has seen its world at rest.

    Args:
        policy: whose actions are those of the tabletop.
        chunking: how chunks become actions.
        pixels: side of its frames.

    Raises:
        ValueError: as `require_tabletop`.
    """

    def __init__(self, policy: TablePolicy, *, chunking: Chunking, pixels: int = PIXELS):
        require_tabletop(policy)
        self._policy, self._chunking, self._pixels = policy, chunking, pixels

    def reset(self, worlds: Worlds, rng: np.random.Generator) -> None:
        """Fills the past with the present. Predicts once, so that no step waits for a compiler.

        Raises:
            ValueError: the policy needs what the tabletop does not show, such as a goal.
        """
        time, seen = self._policy.time, worlds.observe(self._pixels)
        self._buffer = ActionBuffer(self._chunking)
        self._frames = collections.deque([seen["image"]] * time.observed_frames, self._kept)
        self._states = collections.deque([seen["state"]] * time.observed_frames, self._kept)
        grippers = (np.asarray(seen["state"])[:, GRIPPER] > 0.5).astype(float)
        self._grippers = collections.deque([grippers] * time.past_actions, time.past_actions)
        self._instructions = list(seen["instruction"])
        self._began = False
        self._predict()

    @property
    def _kept(self) -> int:
        return self._policy.time.observed_frames

    def act(self, worlds: Worlds) -> Float[np.ndarray, "B 7"]:
        """Looks, and predicts where a chunk is due."""
        if self._began:
            seen = worlds.observe(self._pixels)
            self._frames.append(seen["image"])
            self._states.append(seen["state"])
        self._began = True
        actions = self._buffer.next(self._predict)
        actions[:, GRIPPER] = actions[:, GRIPPER] > 0.5
        self._grippers.append(actions[:, GRIPPER])
        return actions

    def _predict(self) -> Float[np.ndarray, "B P 7"]:
        states = np.stack(self._states, axis=1)
        moved = np.diff(states[..., :GRIPPER], axis=1)
        grippers = np.reshape(np.array(self._grippers).T, (*moved.shape[:2], 1))
        frames = np.stack(self._frames, axis=1)
        observation = Observation(
            frames,
            np.concatenate([moved, grippers], axis=-1),
            proprio=states[:, ::FRAMES_PER_LATENT],
            reward=np.zeros((len(states), self._policy.time.t_current)),
        )
        return _in_batches(self._policy, observation, self._instructions)


def _in_batches(
    policy: TablePolicy, observation: Observation, instructions: Sequence[str]
) -> Float[np.ndarray, "B P A"]:
    """A call for every `WORLDS` worlds, the last filled up, so that one program serves all."""
    count, found = len(instructions), []
    size = min(WORLDS, count)
    for start in range(0, count, size):
        rows = np.minimum(np.arange(start, start + size), count - 1)
        fields = ("frames", "past_actions", "proprio", "reward")
        part = Observation(**{name: getattr(observation, name)[rows] for name in fields})
        texts = [instructions[row] for row in rows]
        found.append(policy(part, instruction=texts, seed=rows.tolist()))
    return np.concatenate(found)[:count]


def require_tabletop(policy: TablePolicy) -> None:
    """Refuses policies that the tabletop cannot carry out.

    Raises:
        ValueError: the actions have other dimensions, or the rate is another.
    """
    if policy.actions.names != ACTION_NAMES:
        raise ValueError(
            f"the policy's actions are {', '.join(policy.actions.names)}: the tabletop expects "
            f"{', '.join(ACTION_NAMES)}"
        )
    if abs(policy.rate * CONTROL_PERIOD - 1) > 1e-3:
        raise ValueError(
            f"the policy gives {policy.rate:g} actions a second, the tabletop expects "
            f"{1 / CONTROL_PERIOD:g} (data.rate)"
        )


class TabletopStage:
    """One kind of task; see `closed_loop.Stage` for the methods.

    Args:
        kind: reach or push.
        look: of the scenes.
        policies: from parameters and a number of rounds to a policy.
        options: how many episodes, and how chunks become actions.
    """

    steps, period, film_rate = STEPS, CONTROL_PERIOD, 1 / CONTROL_PERIOD

    def __init__(
        self,
        kind: str,
        look: Look,
        policies: Callable[[Params, int], TablePolicy],
        options: RolloutOptions,
    ):
        self.name, self._policies, self._options = f"tabletop/{kind}", policies, options
        rngs = starts_rng(self.name).spawn(options.episodes)
        self._environments = [draw_environment(rng, kind=kind, look=look) for rng in rngs]
        self._film = Film(tuple(range(min(FILMED, options.episodes))))

    def reference(self, player: str) -> Rollouts:
        """Episodes of "expert", filmed, or of "random"."""
        if player == EXPERT:
            return self._play(TabletopExpert(), player, self._film)
        return self._play(RandomHand(), player, None)

    def policy(self, params: Params, *, rounds: int, filmed: bool) -> Rollouts:
        """Episodes of the policy."""
        policy = self._policies(params, rounds)
        player = GraftPlayer(policy, chunking=self._options.chunking)
        return self._play(player, "policy", self._film if filmed else None)

    def _play(self, player: Player, name: str, film: Film | None) -> Rollouts:
        worlds = TabletopWorlds(self._environments)
        return play_worlds(worlds, player, steps=STEPS, rng=draws_rng(self.name, name), film=film)


class _Policies:
    """Policies of an experiment, compiled once for each number of rounds and all parameters."""

    def __init__(self, experiment: Experiment, *, extrapolate: str | None):
        config = experiment.config
        threshold = exit_threshold(config.eval.exit_threshold, halting=config.loop.halting)
        self._experiment = experiment
        self._options = {"extrapolate": extrapolate, "threshold": threshold}
        self._made: dict[int, Policy] = {}

    def __call__(self, params: Params, rounds: int) -> Policy:
        if rounds not in self._made:
            self._made[rounds] = Policy.of(self._experiment, params, rounds=rounds, **self._options)
        return self._made[rounds].with_params(params)


def tabletop_stages(
    experiment: Experiment, options: RolloutOptions, *, extrapolate: str | None
) -> tuple[TabletopStage, ...]:
    """Reach and push.

    Args:
        experiment: of a graft.
        options: as for `TabletopStage`.
        extrapolate: "last" allows more rounds than were trained.

    Raises:
        ValueError: the run learned no actions.
    """
    require_actions(experiment.config, where="the run")
    policies = _Policies(experiment, extrapolate=extrapolate)
    kind, _, variant = str(experiment.config.data.root).partition(":")
    look = VARIANTS[variant or "default"].look if kind == EMBEDDED else PLAIN_LOOK
    return tuple(TabletopStage(kind, look, policies, options) for kind in KINDS)
