"""Closed loop: a player acts in many simulated episodes of one world at once.

Policies, scripted experts and random actions are players alike. Starts come from a stream of their
own, which neither training nor demonstrations draw from, and are the same for all players, so that
their differences are paired.
"""

from __future__ import annotations

import dataclasses
import time
import zlib
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, UInt8

from roam_jax.evaluate.ensembling import ActionBuffer, Chunking

# Seeds starts, and what players draw, apart from all other random numbers of the project.
STARTS, DRAWS = 0x57A275, 0xD2A35

Observations = Mapping[str, np.ndarray]
# From what B worlds show to their next P actions, (B, P, J).
Predict = Callable[[Observations], Float[np.ndarray, "B P J"]]


@runtime_checkable
class Worlds(Protocol):
    """Episodes of one world that run at once, such as `sim.native.NativeWorlds`."""

    count: int
    diverged: Bool[np.ndarray, " B"]

    def observe(self, pixels: int = 0) -> Observations:
        """Stream -> (B, cells, numbers); with pixels also frames of that many a side."""

    def step(self, actions: Float[np.ndarray, "B J"]) -> Any:
        """Carries out actions in [-1, 1]; has reward, success and diverged, each (B,)."""

    def frame(self, index: int, size: int) -> UInt8[np.ndarray, "S S 3"]:
        """Picture of one of them."""


@runtime_checkable
class Player(Protocol):
    """What acts."""

    def reset(self, worlds: Worlds, rng: np.random.Generator) -> None:
        """Begins episodes."""

    def act(self, worlds: Worlds) -> Float[np.ndarray, "B J"]:
        """Actions in [-1, 1]."""


class RandomPlayer:
    """Draws every number of an action evenly from [-1, 1].

    Args:
        joints: numbers of an action.
    """

    def __init__(self, joints: int):
        self._joints = joints

    def reset(self, worlds: Worlds, rng: np.random.Generator) -> None:
        """Takes the generator."""
        self._rng = rng

    def act(self, worlds: Worlds) -> Float[np.ndarray, "B J"]:
        """Independent of what is seen."""
        return self._rng.uniform(-1, 1, size=(worlds.count, self._joints))


class ChunkPlayer:
    """A policy that predicts chunks of actions. What lies beyond [-1, 1] is cut off.

    Args:
        predict: the policy.
        chunking: how chunks become actions.
        pixels: side of the frames that it sees; 0 = none.
    """

    def __init__(self, predict: Predict, *, chunking: Chunking, pixels: int = 0):
        self._predict, self._chunking, self._pixels = predict, chunking, pixels

    def reset(self, worlds: Worlds, rng: np.random.Generator) -> None:
        """Forgets all chunks. Predicts once, so that no step waits for a compiler."""
        self._buffer = ActionBuffer(self._chunking)
        self._chunk(worlds)

    def act(self, worlds: Worlds) -> Float[np.ndarray, "B J"]:
        """Predicts where a chunk is due.

        Raises:
            ValueError: as `ActionBuffer.next`.
        """
        actions = self._buffer.next(lambda: self._chunk(worlds))
        return np.clip(actions, -1.0, 1.0)

    def _chunk(self, worlds: Worlds) -> Float[np.ndarray, "B P J"]:
        seen = dict(worlds.observe(pixels=self._pixels))
        if worlds.diverged.any():
            # Whatever numbers a world ended with must not upset those beside it.
            for name, rows in seen.items():
                seen[name] = np.array(rows)
                seen[name][worlds.diverged] = 0
        return self._predict(seen)


@dataclasses.dataclass(frozen=True)
class Film:
    """Which episodes are filmed.

    Args:
        episodes: their places.
        size: pixels of a side.
        stride: steps between frames.
    """

    episodes: tuple[int, ...]
    size: int = 96
    stride: int = 1


@dataclasses.dataclass(frozen=True)
class Rollouts:
    """What is left of B episodes of T steps.

    Args:
        success: at the last step.
        returns: sum of rewards.
        diverged: whose physics blew up; their other figures mean nothing.
        seconds: that each step's actions of all episodes took.
        frames: of filmed episodes, the first before the first action.
        solved: whether the goal was met at each of these frames.
    """

    success: Bool[np.ndarray, " B"]
    returns: Float[np.ndarray, " B"]
    diverged: Bool[np.ndarray, " B"]
    seconds: Float[np.ndarray, " T"]
    frames: UInt8[np.ndarray, "films F S S 3"] | None = None
    solved: Bool[np.ndarray, "films F"] | None = None

    @property
    def counted(self) -> Bool[np.ndarray, " B"]:
        """Episodes that figures are taken over."""
        return ~self.diverged


def play_worlds(
    worlds: Worlds,
    player: Player,
    *,
    steps: int,
    rng: np.random.Generator,
    film: Film | None = None,
) -> Rollouts:
    """Plays whole episodes.

    An episode whose physics diverges stops; the others go on.

    Args:
        worlds: at their starts.
        player: what acts.
        steps: of an episode, at least 1.
        rng: for the player's own draws.
        film: what is filmed.

    Raises:
        ValueError: actions that are no finite numbers, or of another shape than the worlds'.
    """
    player.reset(worlds, rng)
    returns, seconds, success = np.zeros(worlds.count), np.empty(steps), None
    shots = [] if film is None else [_shoot(worlds, film, np.zeros(worlds.count, bool))]
    for step in range(steps):
        began = time.perf_counter()
        actions = np.asarray(player.act(worlds))
        seconds[step] = time.perf_counter() - began
        actions = np.where(worlds.diverged[:, None], 0.0, actions)
        outcome = worlds.step(actions)
        returns += np.where(outcome.diverged, 0.0, outcome.reward)
        success = np.asarray(outcome.success & ~outcome.diverged)
        if film is not None and ((step + 1) % film.stride == 0 or step + 1 == steps):
            shots.append(_shoot(worlds, film, success))
    frames, solved = None, None
    if shots:
        frames, solved = (np.stack(part, axis=1) for part in zip(*shots, strict=True))
    return Rollouts(success, returns, worlds.diverged.copy(), seconds, frames, solved)


def _shoot(worlds: Worlds, film: Film, success: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    frames = np.stack([worlds.frame(index, film.size) for index in film.episodes])
    return frames, success[list(film.episodes)]


def starts_rng(name: str) -> np.random.Generator:
    """Of the starts of a world's evaluation: of its own, whatever else is drawn in the project.

    Args:
        name: of the world, such as "reach/arm3".
    """
    return np.random.default_rng([STARTS, zlib.crc32(name.encode())])


def draws_rng(name: str, player: str) -> np.random.Generator:
    """Of what a player draws in a world."""
    return np.random.default_rng([DRAWS, *(zlib.crc32(s.encode()) for s in (name, player))])
