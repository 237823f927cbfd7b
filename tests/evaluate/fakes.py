"""Worlds, bodies and policies that take no time: each joint goes to its number of the goal."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from roam_jax.morphology import JOINTS, Joint, Morphology, VectorStream, WorldSpec

STEP, NEAR = 0.1, 0.06


def make_spec(joints=2, *, environment="line", steps=12):
    names = [f"j{i}" for i in range(joints)]
    body = Morphology(
        f"body{joints}", tuple(Joint(n, i - 1, "slide", -1, 1, 0.1) for i, n in enumerate(names))
    )
    streams = (
        VectorStream(JOINTS, ("position", "velocity", "lag"), (1.0, 1.0, 1.0), joints),
        VectorStream("goal", ("place",), (1.0,), joints),
    )
    return WorldSpec(environment, body, streams, 0.1, steps)


@dataclasses.dataclass
class Outcome:
    reward: np.ndarray
    success: np.ndarray
    diverged: np.ndarray


class FakeWorlds:
    """World i of `diverging` blows up at its step."""

    def __init__(self, goals, *, diverging=None):
        self.goals, self.count = np.array(goals, float), len(goals)
        self.places, self.time = np.zeros_like(self.goals), 0
        self.diverged = np.zeros(self.count, bool)
        self._diverging = diverging or {}
        self.actions = []

    def observe(self, pixels=0):
        joints = np.zeros((*self.goals.shape, 3), np.float32)
        joints[..., 0] = self.places
        seen = {JOINTS: joints, "goal": self.goals[..., None].astype(np.float32)}
        if pixels:
            seen["pixels"] = np.zeros((self.count, pixels, pixels, 3), np.uint8)
        return seen

    def step(self, actions):
        assert actions.shape == self.goals.shape and np.abs(actions).max() <= 1
        self.actions.append(actions)
        self.time += 1
        self.places = self.places + STEP * actions
        for world, step in self._diverging.items():
            if self.time >= step:
                self.diverged[world], self.places[world] = True, np.nan
        away = np.abs(self.places - self.goals).max(axis=1)
        return Outcome(-away, away < NEAR, self.diverged.copy())

    def frame(self, index, size):
        return np.full((size, size, 3), self.time, np.uint8)


class FakeExpert:
    def reset(self, worlds, rng):
        pass

    def act(self, worlds):
        return np.clip((worlds.goals - np.nan_to_num(worlds.places)) / STEP, -1, 1)


class FakeModel:
    """Heads for the goal with `speed` from the present place, as a chunk of `chunk` actions."""

    def __init__(self, chunk=4):
        self.chunk = chunk

    def predict(self, params, body, observations, *, rounds, extrapolate=None, threshold=None):
        away = (observations["goal"][..., 0] - observations[JOINTS][..., 0]) / STEP
        told = []
        for _ in range(self.chunk):
            told.append(jnp.clip(params["speed"] * rounds * away, -1, 1))
            away = away - told[-1]
        return jnp.stack(told, axis=1), {}
