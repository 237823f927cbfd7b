"""Figures of played episodes: success with Wilson's interval, return, and both beside the expert's.

All players of a stage begin at the same starts, so differences to the expert are of pairs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Bool

from roam_jax.evaluate.bootstrap import estimate_mean, estimate_ratio
from roam_jax.evaluate.rollouts import Rollouts
from roam_jax.evaluate.wilson import estimate_difference, estimate_rate

MILLISECONDS = 1000


def rollout_figures(
    found: Rollouts, expert: Rollouts | None = None, *, name: str, resamples: int
) -> dict[str, Any]:
    """Figures of one player, ready for JSON.

    Args:
        found: its episodes.
        expert: episodes of the expert from the same starts, where it is compared with one.
        name: of world and player, for messages.
        resamples: of bootstrap intervals over episodes.

    Returns:
        {"success", "return"} with their intervals over the episodes that did not diverge; how many
        did, and which, in "diverged" and "diverged_episodes"; "step_ms", the mean and the 95th
        percentile of what the actions of a step take for all episodes at once. Beside an expert,
        over episodes in which neither diverged: "minus_expert", the difference of both figures, and
        "of_expert", the ratio of returns where all of the expert's are above 0.

    Raises:
        ValueError: all episodes diverged.
    """
    kept = _kept(found.counted, name)
    milliseconds = MILLISECONDS * found.seconds
    figures = {
        "success": estimate_rate(int(found.success[kept].sum()), len(kept)).to_json(),
        "return": _mean(found.returns[kept], resamples),
        "diverged": int(found.diverged.sum()),
        "diverged_episodes": np.flatnonzero(found.diverged).tolist(),
        "step_ms": {
            "average": float(milliseconds.mean()),
            "percentile_95": float(np.quantile(milliseconds, 0.95)),
        },
    }
    if expert is None:
        return figures
    both = _kept(found.counted & expert.counted, f"{name} or its expert")
    own, best = found.returns[both], expert.returns[both]
    figures["minus_expert"] = {
        "success": estimate_difference(found.success[both], expert.success[both]).to_json(),
        "return": _mean(own - best, resamples),
    }
    # Of the expert alone, so that all policies and seeds have the same figures.
    if (expert.returns[expert.counted] > 0).all():
        figures["of_expert"] = estimate_ratio(own, best, resamples=resamples).to_json()
    return figures


def _kept(counted: Bool[np.ndarray, " B"], name: str) -> np.ndarray:
    if not counted.any():
        raise ValueError(f"{name}: all {len(counted)} episodes diverged, expected some that do not")
    return np.flatnonzero(counted)


def _mean(values: np.ndarray, resamples: int) -> dict[str, Any]:
    return estimate_mean(values, np.arange(len(values)), resamples=resamples).to_json()
