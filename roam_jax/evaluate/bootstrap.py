"""A mean with its bootstrap interval over episodes.

Windows of one episode overlap and resemble each other, so episodes are resampled and not windows
(the cluster bootstrap; Davison & Hinkley 1997, section 3.8). The interval is the percentile one.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float, Int

SEED = 0
LEVEL = 0.95


@dataclasses.dataclass(frozen=True)
class Estimate:
    """The mean of a figure over windows, and how far it depends on which episodes were drawn.

    Args:
        mean: over windows.
        interval: lower and upper end of the 95 % interval; None with a single episode, which says
            nothing of the others.
    """

    mean: float
    interval: tuple[float, float] | None

    def to_json(self) -> dict[str, float | list[float] | None]:
        """{"mean", "interval"}, the interval as a list or null."""
        return {"mean": self.mean, "interval": self.interval and list(self.interval)}


def estimate_mean(
    values: Float[np.ndarray, " windows"],
    episodes: Int[np.ndarray, " windows"],
    *,
    resamples: int,
) -> Estimate:
    """Mean over windows with a percentile interval over episodes.

    Every resample draws as many episodes as there are, with replacement, and takes the mean over
    all of their windows. The draws come from a fixed seed, so figures on the same episodes are
    compared under the same resamples.

    Args:
        values: one figure a window.
        episodes: the episode of each window.
        resamples: how many.

    Raises:
        ValueError: no window, or no resample.
    """
    if not len(values):
        raise ValueError("bootstrap of 0 windows: expected at least 1")
    _, owner = np.unique(episodes, return_inverse=True)
    return _ratio(np.bincount(owner, weights=values), np.bincount(owner), resamples)


def estimate_ratio(
    parts: Float[np.ndarray, " examples"],
    wholes: Float[np.ndarray, " examples"],
    *,
    resamples: int,
) -> Estimate:
    """Ratio of two sums over independent examples, such as an F1 score, with its interval.

    Args:
        parts: what each example adds above, such as twice its hits.
        wholes: what it adds below, 0 or more, such as twice its hits and all of its mistakes. Where
            nothing is below, there is nothing above either, and the ratio is 0.
        resamples: how many.

    Raises:
        ValueError: no example, or no resample.
    """
    if not len(parts):
        raise ValueError("bootstrap of 0 examples: expected at least 1")
    return _ratio(np.asarray(parts, float), np.asarray(wholes, float), resamples)


def _ratio(sums: np.ndarray, counts: np.ndarray, resamples: int) -> Estimate:
    """sum(sums) / sum(counts) with an interval, of what is drawn as a whole."""
    if resamples < 1:
        raise ValueError(f"eval.resamples = {resamples}: expected at least 1")
    mean = _divide(sums.sum(), counts.sum())
    if len(sums) == 1:
        return Estimate(mean, None)
    means = np.empty(resamples)
    rng = np.random.default_rng(SEED)
    for i in range(resamples):  # one at a time, so memory does not grow with episodes x resamples
        drawn = rng.integers(len(sums), size=len(sums))
        means[i] = _divide(sums[drawn].sum(), counts[drawn].sum())
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(means, (tail, 1 - tail))
    return Estimate(mean, (float(low), float(high)))


def _divide(part: np.number, whole: np.number) -> float:
    return float(part / whole) if whole else 0.0
