"""Evaluation in closed loop: how often a policy succeeds, beside the expert and random actions.

A stage is where episodes are played: one body of a cloned policy, or one kind of task on the
tabletop. Every player of a stage begins at the same starts, whatever the number of rounds, the step
or the seed of training.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import ml_collections
from absl import logging

from roam_jax.contracts import Params
from roam_jax.evaluate.ensembling import Chunking
from roam_jax.evaluate.report_rollout import EXPERT, RANDOM, ROLLOUT, player_rows
from roam_jax.evaluate.rollout_figures import rollout_figures
from roam_jax.evaluate.rollouts import Rollouts
from roam_jax.evaluate.rounds import choose_rounds, round_title
from roam_jax.video_files import write_video
from roam_jax.viz.side_by_side import bordered
from roam_jax.viz.successes import draw_successes


@runtime_checkable
class Stage(Protocol):
    """Where episodes are played from the same starts by whatever player."""

    name: str
    steps: int
    period: float
    film_rate: float

    def reference(self, player: str) -> Rollouts:
        """Episodes of "expert", filmed, or of "random"."""

    def policy(self, params: Params, *, rounds: int, filmed: bool) -> Rollouts:
        """Episodes of the policy."""


@dataclasses.dataclass(frozen=True)
class RolloutOptions:
    """What `config.eval` says of played episodes.

    Args:
        episodes: starts of each stage.
        chunking: how chunks become actions.
        resamples: of bootstrap intervals.

    Raises:
        ValueError: no episode or no resample.
    """

    episodes: int
    chunking: Chunking
    resamples: int

    def __post_init__(self):
        if self.episodes < 1:
            raise ValueError(f"eval.episodes = {self.episodes}: expected at least 1")
        if self.resamples < 1:
            raise ValueError(f"eval.resamples = {self.resamples}: expected at least 1")

    @classmethod
    def of(cls, config: ml_collections.ConfigDict) -> RolloutOptions:
        """Reads the section `eval` of a whole config.

        Raises:
            ValueError: a value is out of range.
        """
        settings = config.eval
        return cls(settings.episodes, Chunking.of(config), settings.resamples)


class RolloutEvaluation:
    """Figures, pictures and videos of played episodes; see `run.Evaluation` for the methods.

    Args:
        stages: where they are played.
        options: how.
        trained: number of rounds of the training.
        extrapolate: "last" allows rounds above it.
    """

    def __init__(
        self,
        stages: tuple[Stage, ...],
        options: RolloutOptions,
        *,
        trained: int,
        extrapolate: str | None,
    ):
        self._stages, self._options = stages, options
        self._trained, self._extrapolate = trained, extrapolate
        # Played once, also for many seeds: neither depends on parameters.
        self._references = functools.cache(lambda place, player: stages[place].reference(player))
        # Stage -> the policy's last filmed episodes and their title.
        self._filmed: dict[str, tuple[str, Rollouts]] = {}

    def rounds(self, wanted: tuple[int, ...] | None) -> tuple[int, ...]:
        """As `choose_rounds`.

        Raises:
            ValueError: as there.
        """
        return choose_rounds(wanted, trained=self._trained, extrapolate=self._extrapolate)

    def report(self, params: Params, *, rounds: tuple[int, ...]) -> dict[str, Any]:
        """{"rollout": figures}; docs/rollouts.md describes them.

        Raises:
            ValueError: all episodes of a player diverged, or chunks that are too short for
                `eval.replan`.
        """
        options, chunking = self._options, self._options.chunking
        stages = {
            stage.name: self._figures(place, params, rounds)
            for place, stage in enumerate(self._stages)
        }
        return {
            ROLLOUT: {
                "episodes": options.episodes,
                "replan": chunking.replan,
                "ensembling": chunking.ensembling,
                "ensemble_decay": chunking.decay,
                "stages": stages,
            }
        }

    def draw(
        self, params: Params, splits: dict[str, Any], prefix: pathlib.Path, *, rounds: tuple
    ) -> None:
        """PREFIX_rollout.png, and PREFIX_rollout_STAGE.mp4 of the last `report`.

        Args:
            params: not read: nothing is played again.
            splits: what `report` gave.
            prefix: path without what follows the first underscore.
            rounds: not read; the largest number is filmed.
        """
        del params, rounds
        self.draw_figures(splits, prefix)
        for place, stage in enumerate(self._stages):
            title, found = self._filmed[stage.name]
            expert = self._references(place, EXPERT)
            strips = {title: found.frames, EXPERT: expert.frames}
            green = {title: found.solved, EXPERT: expert.solved}
            path = prefix.with_name(f"{prefix.name}_{ROLLOUT}_{stage.name.replace('/', '_')}.mp4")
            write_video(path, bordered(strips, green), rate=stage.film_rate)

    def draw_figures(self, splits: Mapping[str, Any], prefix: pathlib.Path) -> None:
        """PREFIX_rollout.png of a report alone: success rates."""
        stages = {
            name: {title: one["success"] for title, one in player_rows(stage).items()}
            for name, stage in splits[ROLLOUT]["stages"].items()
        }
        title = f"{splits[ROLLOUT]['episodes']} unseen starts of each"
        draw_successes(prefix.with_name(f"{prefix.name}_{ROLLOUT}.png"), stages, title=title)

    def _figures(self, place: int, params: Params, rounds: tuple[int, ...]) -> dict[str, Any]:
        stage, resamples = self._stages[place], self._options.resamples
        expert = self._references(place, EXPERT)

        def figures(player: str, found: Rollouts) -> dict[str, Any]:
            logging.info("%s, %s: success %.3f", stage.name, player, found.success.mean())
            beside = None if player == EXPERT else expert
            name = f"{stage.name}, {player}"
            return rollout_figures(found, beside, name=name, resamples=resamples)

        by_rounds = {}
        for number in rounds:
            found = stage.policy(params, rounds=number, filmed=number == max(rounds))
            extrapolated = {"extrapolated": number > self._trained}
            title = round_title(str(number), extrapolated, mark=" *")
            by_rounds[str(number)] = extrapolated | figures(title, found)
            if found.frames is not None:
                self._filmed[stage.name] = title, found
        references = {
            player: figures(player, self._references(place, player)) for player in (EXPERT, RANDOM)
        }
        return {"steps": stage.steps, "period": stage.period, "rounds": by_rounds, **references}
