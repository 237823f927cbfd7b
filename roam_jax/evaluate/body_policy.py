"""A cloned run as a policy: from what a body observes to the actions that it should do next."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium
import jax
import ml_collections
import numpy as np
from jaxtyping import Float

from roam_jax.contracts import Params
from roam_jax.evaluate.body_stage import BodyPredictor
from roam_jax.evaluate.ensembling import Chunking
from roam_jax.evaluate.rollouts import ChunkPlayer
from roam_jax.evaluate.saved import read_saved
from roam_jax.evaluate.spaces import Shape, env_name, space_differences
from roam_jax.model import loop_options
from roam_jax.model.looped import check_rounds
from roam_jax.morphology import PIXELS, WorldSpec
from roam_jax.spelling import check_choice
from roam_jax.train.sharding import make_mesh


class BodyPolicy:
    """Predicts chunks of actions of several bodies. Made by `BodyPolicy.load`.

    Compiled on the first call of each body, and once more for another number of worlds.

    Args:
        model: with `predict(params, body, observations, rounds=, extrapolate=, threshold=)`.
        params: the whole tree.
        specs: body -> the world that it was demonstrated in.
        rounds: number of rounds.
        extrapolate: "last" allows more rounds than were trained.
        threshold: with learned halting, the stopped mass from which a cell stops for good; None =
            never.
        chunking: how chunks become actions in closed loop.
        pixels: side of the frames that it sees; 0 = none.
        step: training step that the parameters are of.
    """

    def __init__(
        self,
        model: Any,
        params: Params,
        *,
        specs: Mapping[str, WorldSpec],
        rounds: int,
        extrapolate: str | None = None,
        threshold: float | None = None,
        chunking: Chunking,
        pixels: int = 0,
        step: int = 0,
    ):
        self._predictor = BodyPredictor(model, extrapolate=extrapolate, threshold=threshold)
        self._params, self.specs = params, dict(specs)
        self.rounds, self.chunking, self.pixels, self.step = rounds, chunking, pixels, step

    @classmethod
    def load(
        cls,
        path: str | pathlib.Path,
        *,
        step: int | None = None,
        rounds: int | None = None,
        extrapolate: str | None = None,
        exit_threshold: float | None = None,
        overrides: Callable[[ml_collections.ConfigDict], None] | None = None,
    ) -> BodyPolicy:
        """Loads a policy from a run; its demonstrations do not have to be there.

        Args:
            path: a workdir or a model directory.
            step: which checkpoint; None = the latest.
            rounds: number of rounds; None = the trained one.
            extrapolate: "last" allows more rounds than were trained.
            exit_threshold: with learned halting, the stopped mass, above 0 and at most 1, from
                which a cell stops for good; 0 = all rounds run; None = `eval.exit_threshold` of
                the run.
            overrides: changes the run's config in place, such as `eval.replan`; see `read_saved`.

        Raises:
            FileNotFoundError: no such folder or checkpoint.
            ValueError: the run cloned nothing, or an argument that does not fit it.
        """
        saved = read_saved(path, overrides=overrides)
        config = saved.config
        experiment = saved.bodies()
        rounds = config.loop.rounds if rounds is None else rounds
        check_rounds(rounds, trained=config.loop.rounds, extrapolate=extrapolate)
        if exit_threshold is None:
            exit_threshold = config.eval.exit_threshold
        mesh = make_mesh(1, 1, devices=jax.devices()[:1])
        params, step = saved.params(experiment.task, rules=experiment.rules, mesh=mesh, step=step)
        return cls(
            experiment.model,
            params,
            specs=experiment.specs,
            rounds=rounds,
            extrapolate=extrapolate,
            threshold=loop_options.exit_threshold(exit_threshold, halting=config.loop.halting),
            chunking=Chunking.of(config),
            pixels=config.data.pixels,
            step=step,
        )

    def __call__(
        self, observations: Mapping[str, np.ndarray], *, body: str
    ) -> Float[np.ndarray, "P J"] | Float[np.ndarray, "B P J"]:
        """The next P actions, the first of them the one to do now; about [-1, 1], not clipped.

        Args:
            observations: stream -> (cells, numbers) in its units, as `specs[body].streams` lists
                them, of one world, or of B with a leading axis.
            body: whose.

        Raises:
            ValueError: an unknown body, or streams that are missing or of other shapes.
        """
        check_choice("body", body, self.specs)
        shapes = self._shapes(body)
        if missing := [name for name in shapes if name not in observations]:
            raise ValueError(
                f"observations have {', '.join(observations) or 'nothing'}: body {body!r} needs "
                f"{', '.join(missing)} as well"
            )
        rows = {name: np.asarray(observations[name]) for name in shapes}
        many = {name: value.ndim > len(shapes[name]) for name, value in rows.items()}
        for name, value in rows.items():
            if value.shape[-len(shapes[name]) :] != shapes[name] or value.ndim > 1 + len(
                shapes[name]
            ):
                raise ValueError(
                    f"observation {name!r} has shape {value.shape}: body {body!r} expects "
                    f"{shapes[name]}, or that with a leading axis of worlds"
                )
        if len(set(many.values())) > 1:
            raise ValueError(
                f"observations: {', '.join(n for n, batched in many.items() if batched)} have a "
                "leading axis of worlds and the others have none; expected it of all or none"
            )
        if all(many.values()):
            return self._predict(rows, body=body)
        return self._predict({name: value[None] for name, value in rows.items()}, body=body)[0]

    def player(
        self, env: gymnasium.Env, *, body: str | None = None, chunking: Chunking | None = None
    ) -> ChunkPlayer:
        """What acts in a Gymnasium environment.

        Args:
            env: with observations and actions of one of the bodies.
            body: which; None = the one whose spaces the environment has.
            chunking: None = the policy's own.

        Raises:
            ValueError: as `body_of`.
        """
        body = self.body_of(env, body=body)
        predict = functools.partial(self._predict, body=body)
        return ChunkPlayer(predict, chunking=chunking or self.chunking, pixels=self.pixels)

    def body_of(self, env: gymnasium.Env, *, body: str | None = None) -> str:
        """The body that an environment is of.

        Args:
            env: a `world_spec` of its own decides among bodies of the same spaces.
            body: as if it were that one.

        Raises:
            ValueError: no body has its spaces (names each key, its shape there and the expected
                one), several have, or it is another world than was demonstrated.
        """
        spec: WorldSpec | None = getattr(env.unwrapped, "world_spec", None)
        if body is None and spec is not None and spec.morphology.name in self.specs:
            body = spec.morphology.name
        if body is not None:
            check_choice("body", body, self.specs)
        candidates = [body] if body else list(self.specs)
        differences = {
            name: space_differences(
                env, self._shapes(name), action=(len(self.specs[name].morphology),), reach=1.0
            )
            for name in candidates
        }
        fitting = [name for name, found in differences.items() if not found]
        if not fitting:
            nearest = min(differences, key=lambda name: len(differences[name]))
            raise ValueError(
                f"{env_name(env)} does not fit body {nearest!r} of the policy"
                f"{_of(self.specs, candidates)}: {'; '.join(differences[nearest])}"
            )
        if len(fitting) > 1:
            raise ValueError(
                f"{env_name(env)} has the spaces of the bodies {', '.join(fitting)}: expected to "
                "be told which, as body="
            )
        if spec is not None and (changed := self.specs[fitting[0]].differences(spec)):
            raise ValueError(
                f"{env_name(env)} is another world than body {fitting[0]!r} was demonstrated in: "
                f"{'; '.join(changed)}"
            )
        return fitting[0]

    def _predict(self, observations: Mapping[str, Any], *, body: str) -> np.ndarray:
        read = {name: np.asarray(observations[name]) for name in self._shapes(body)}
        return self._predictor(self._params, read, body=body, rounds=self.rounds)

    def _shapes(self, body: str) -> dict[str, Shape]:
        shapes: dict[str, Shape] = {s.name: s.shape for s in self.specs[body].streams}
        if self.pixels:
            shapes[PIXELS] = (self.pixels, self.pixels, 3)
        return shapes


def _of(specs: Mapping[str, WorldSpec], candidates: list[str]) -> str:
    """Says that it is the nearest, where there was a choice."""
    return f" (the nearest of {', '.join(specs)})" if len(candidates) > 1 else ""
