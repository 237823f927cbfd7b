"""Episodes of one body: a cloned policy, the expert and random actions in native MuJoCo."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

from roam_jax.contracts import Params
from roam_jax.evaluate.closed_loop import RolloutOptions
from roam_jax.evaluate.report_rollout import EXPERT
from roam_jax.evaluate.rollouts import (
    ChunkPlayer,
    Film,
    Observations,
    Player,
    RandomPlayer,
    Rollouts,
    draws_rng,
    play_worlds,
    starts_rng,
)
from roam_jax.model.loop_options import exit_threshold
from roam_jax.morphology import WorldSpec
from roam_jax.sim.native import NativeWorlds
from roam_jax.sim.world_experts import make_expert
from roam_jax.sim.worlds import World, make_world
from roam_jax.tasks.experiment import Trainable

# Episodes that are shown, and the most frames of a film.
FILMED, FRAMES = 2, 100


class BodyPredictor:
    """Chunks of a cloned policy; compiled once for each body, number of rounds and of worlds.

    Args:
        model: with `predict(params, body, observations, rounds=, extrapolate=, threshold=)`.
        extrapolate: "last" allows more rounds than were trained.
        threshold: with learned halting, the stopped mass from which a cell stops for good; None =
            never.
    """

    def __init__(
        self, model: Any, *, extrapolate: str | None = None, threshold: float | None = None
    ):
        options = {"extrapolate": extrapolate, "threshold": threshold}

        def predict(params: Params, observations: dict[str, Array], *, body: str, rounds: int):
            return model.predict(params, body, observations, rounds=rounds, **options)[0]

        self._predict = jax.jit(predict, static_argnames=("body", "rounds"))

    def __call__(
        self, params: Params, observations: Observations, *, body: str, rounds: int
    ) -> Float[np.ndarray, "B P J"]:
        """(B, P, J) actions of B worlds.

        Args:
            params: the whole tree.
            observations: stream -> (B, cells, numbers), raw.
            body: whose.
            rounds: static number of rounds.
        """
        return np.asarray(self._predict(params, dict(observations), body=body, rounds=rounds))


class BodyStage:
    """One world, with its starts drawn; see `closed_loop.Stage` for the methods.

    Args:
        world: what is played.
        predictor: of the policy.
        options: how many episodes, and how chunks become actions.
        pixels: side of the frames that the policy sees; 0 = none.
    """

    def __init__(
        self, world: World, predictor: BodyPredictor, options: RolloutOptions, *, pixels: int = 0
    ):
        spec = world.spec
        self.name, self.steps, self.period = spec.name, spec.steps, spec.period
        self._world, self._options, self._pixels = world, options, pixels
        self._predictor, self._body = predictor, spec.morphology.name
        self._draws = world.draw(starts_rng(spec.name), options.episodes)
        stride = -(-spec.steps // FRAMES)
        self._film = Film(tuple(range(min(FILMED, options.episodes))), stride=stride)
        self.film_rate = 1 / (spec.period * stride)

    def reference(self, player: str) -> Rollouts:
        """Episodes of "expert", filmed, or of "random"."""
        if player == EXPERT:
            return self._play(make_expert(self._world), player, self._film)
        return self._play(RandomPlayer(len(self._world.spec.morphology)), player, None)

    def policy(self, params: Params, *, rounds: int, filmed: bool) -> Rollouts:
        """Episodes of the policy."""
        predict: Callable = functools.partial(
            self._predictor, params, body=self._body, rounds=rounds
        )
        player = ChunkPlayer(predict, chunking=self._options.chunking, pixels=self._pixels)
        return self._play(player, "policy", self._film if filmed else None)

    def _play(self, player: Player, name: str, film: Film | None) -> Rollouts:
        worlds = NativeWorlds(self._world, self._draws)
        rng = draws_rng(self.name, name)
        return play_worlds(worlds, player, steps=self.steps, rng=rng, film=film)


def body_stages(
    experiment: Trainable, options: RolloutOptions, *, extrapolate: str | None
) -> tuple[BodyStage, ...]:
    """A stage for each body of a cloned policy.

    Args:
        experiment: with `model`, and `specs`: body -> `WorldSpec` of its demonstrations.
        options: as for `BodyStage`.
        extrapolate: as for `BodyPredictor`.

    Raises:
        ValueError: a world is not as it was demonstrated.
    """
    config = experiment.config
    threshold = exit_threshold(config.eval.exit_threshold, halting=config.loop.halting)
    predictor = BodyPredictor(experiment.model, extrapolate=extrapolate, threshold=threshold)
    pixels = config.data.pixels
    return tuple(
        BodyStage(world_of(spec), predictor, options, pixels=pixels)
        for spec in experiment.specs.values()
    )


def world_of(spec: WorldSpec) -> World:
    """The world of a spec.

    Raises:
        ValueError: there is none, or it is not as the spec says.
    """
    world = make_world(spec.environment, spec.morphology.name)
    if changed := world.spec.differences(spec):
        raise ValueError(
            f"world {spec.name} is not as it was when the policy was trained: {'; '.join(changed)}"
        )
    return world
