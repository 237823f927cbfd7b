"""From an experiment to the episodes that its policy is to play."""

from __future__ import annotations

from roam_jax.evaluate.body_stage import body_stages
from roam_jax.evaluate.closed_loop import RolloutEvaluation, RolloutOptions
from roam_jax.evaluate.report_rollout import ROLLOUT
from roam_jax.evaluate.tabletop_stage import tabletop_stages
from roam_jax.tasks.experiment import Trainable

STAGES = {"clone": body_stages, "graft": tabletop_stages}


def make_rollout(experiment: Trainable, *, extrapolate: str | None = None) -> RolloutEvaluation:
    """The evaluation in closed loop of an experiment's kind of task.

    Raises:
        ValueError: `config.eval` is out of range, the run has no policy, or its worlds are not as
            they were in training.
    """
    config = experiment.config
    if config.train.task not in STAGES:
        raise ValueError(
            f"metrics = {ROLLOUT}: a run of train.task = {config.train.task!r} does not act; "
            f"expected one of {' or '.join(STAGES)}"
        )
    options = RolloutOptions.of(config)
    stages = STAGES[config.train.task](experiment, options, extrapolate=extrapolate)
    return RolloutEvaluation(stages, options, trained=config.loop.rounds, extrapolate=extrapolate)
