"""Any trained policy in any Gymnasium environment whose spaces are those that it was trained on."""

from __future__ import annotations

import pathlib
import time
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import gymnasium
import numpy as np
from jaxtyping import Float

from roam_jax.evaluate.body_policy import BodyPolicy
from roam_jax.evaluate.ensembling import Chunking
from roam_jax.evaluate.policy import Policy
from roam_jax.evaluate.rollouts import Player, Rollouts, draws_rng
from roam_jax.evaluate.saved import read_saved
from roam_jax.evaluate.spaces import env_name, require_spaces
from roam_jax.evaluate.tabletop_stage import (
    PIXELS,
    GraftPlayer,
    TableOutcome,
    TablePolicy,
    require_tabletop,
)
from roam_jax.sim.tabletop import CONTROL_PERIOD


@runtime_checkable
class ActingPolicy(Protocol):
    """A policy that finds its own way in an environment, such as `BodyPolicy`."""

    def player(self, env: gymnasium.Env, *, chunking: Chunking | None = None) -> Player:
        """What acts in an environment; refuses one that does not fit."""


def load_policy(path: str | pathlib.Path, **options: Any) -> Policy | BodyPolicy:
    """The policy of a run, whatever it trained.

    Args:
        path: a workdir or a model directory.
        options: of `Policy.load` or `BodyPolicy.load`.

    Raises:
        FileNotFoundError, ValueError: as these.
    """
    task = read_saved(path, overrides=options.get("overrides")).config.train.task
    return (BodyPolicy if task == "clone" else Policy).load(path, **options)


def play(
    policy: ActingPolicy | TablePolicy,
    env: gymnasium.Env,
    *,
    episodes: int,
    seed: int = 0,
    steps: int | None = None,
    chunking: Chunking | None = None,
) -> Rollouts:
    """Plays episodes one after another, until they end or the environment cuts them off.

    Args:
        policy: of `load_policy`.
        env: with the policy's spaces; a `Policy` of a graft plays the tabletop.
        episodes: at least one.
        seed: episode i is reset with seed + i.
        steps: the most of an episode, at least 1; None = until the environment says that it is
            over.
        chunking: how chunks become actions; None = as the run says, or of a graft's policy a new
            one every four steps.

    Returns:
        An entry for each episode. Its success is what the environment says in `info["success"]`
        last, False where it never does; `info["diverged"]` likewise.

    Raises:
        ValueError: no episodes or steps; or the environment's spaces are others: names each key,
            its shape there and the one expected.
    """
    if episodes < 1:
        raise ValueError(f"episodes = {episodes}: expected at least 1")
    if steps is not None and steps < 1:
        raise ValueError(f"steps = {steps}: expected at least 1, or None")
    player = _player(policy, env, chunking)
    rng = draws_rng("environment", type(env.unwrapped).__name__)
    rows, seconds = [], []
    for number in range(episodes):
        worlds = EnvWorlds(env, seed=seed + number)
        player.reset(worlds, rng)
        while not (worlds.over or (steps is not None and worlds.time >= steps)):
            began = time.perf_counter()
            action = np.asarray(player.act(worlds))
            seconds.append(time.perf_counter() - began)
            worlds.step(action)
        rows.append((worlds.success, worlds.total, bool(worlds.diverged[0])))
    success, returns, diverged = (np.array(column) for column in zip(*rows, strict=True))
    return Rollouts(success, returns, diverged, np.array(seconds))


def _player(
    policy: ActingPolicy | TablePolicy, env: gymnasium.Env, chunking: Chunking | None
) -> Player:
    if isinstance(policy, ActingPolicy):
        return policy.player(env, chunking=chunking)
    require_tabletop(policy)
    sizes = len(policy.actions)
    shapes = {"image": (None, None, 3), "state": (sizes,), "instruction": None}
    require_spaces(env, shapes, action=(sizes,), what="the graft's policy", reach=None)
    period = getattr(env.unwrapped, "period", CONTROL_PERIOD)
    if abs(period * policy.rate - 1) > 1e-3:
        raise ValueError(
            f"{env_name(env)} takes an action every {period:g} s, the policy gives one every "
            f"{1 / policy.rate:g} s"
        )
    default = Chunking(replan=min(4, policy.time.chunk))
    return GraftPlayer(policy, chunking=chunking or default, pixels=PIXELS)


class EnvWorlds:
    """One episode of a Gymnasium environment as `rollouts.Worlds` of one world.

    Args:
        env: it is reset.
        seed: of the episode.
    """

    count = 1

    def __init__(self, env: gymnasium.Env, *, seed: int):
        self._env = env
        self._seen, info = env.reset(seed=seed)
        self.time, self.total, self.over = 0, 0.0, False
        self.success, self.diverged = bool(info.get("success", False)), np.zeros(1, bool)

    def observe(self, pixels: int = 0) -> Mapping[str, Any]:
        """What the environment shows, with a leading axis; texts as a list of one."""
        del pixels
        return {
            name: [value] if isinstance(value, str) else np.asarray(value)[None]
            for name, value in self._seen.items()
        }

    def frame(self, index: int, size: int) -> np.ndarray:
        """What the environment renders, in its own size."""
        del index, size
        return np.asarray(self._env.render())

    def step(self, actions: Float[np.ndarray, "1 J"]) -> TableOutcome:
        """Carries out an action in the environment's own type, cut off where its space ends."""
        space = self._env.action_space
        action = np.clip(actions[0], space.low, space.high).astype(space.dtype)
        self._seen, reward, terminated, truncated, info = self._env.step(action)
        self.time += 1
        self.success = bool(info.get("success", False))
        self.diverged = np.array([bool(info.get("diverged", False))])
        self.over = bool(terminated or truncated or self.diverged[0])
        self.total += 0.0 if self.diverged[0] else float(reward)
        return TableOutcome(np.array([float(reward)]), np.array([self.success]), self.diverged)
