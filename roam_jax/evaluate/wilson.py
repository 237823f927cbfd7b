"""Success rates with score intervals: Wilson's (1927), and Newcombe's (1998) of a difference.

Unlike the normal interval and the bootstrap they stay within their range and are not empty where no
or every trial succeeded, as good policies do.
"""

from __future__ import annotations

import math

import numpy as np
import scipy.stats
from jaxtyping import Bool

from roam_jax.evaluate.bootstrap import LEVEL, Estimate


def estimate_rate(successes: int, trials: int, *, level: float = LEVEL) -> Estimate:
    """The share of trials that succeeded, with its interval.

    With p successes in n trials and the normal quantile z the interval is

        (p/n + z^2 / 2n +- z sqrt(p/n (1 - p/n) / n + z^2 / 4n^2)) / (1 + z^2 / n).

    Args:
        successes: of the trials.
        trials: independent ones.
        level: that the interval is to have.

    Raises:
        ValueError: no trial, or a number of successes out of range.
    """
    if not 0 <= successes <= trials or trials < 1:
        raise ValueError(
            f"{successes} successes in {trials} trials: expected at least 1 trial, and no more "
            "successes than trials"
        )
    rate, z = successes / trials, float(scipy.stats.norm.ppf((1 + level) / 2))
    scale = 1 + z**2 / trials
    middle = (rate + z**2 / (2 * trials)) / scale
    reach = z * (rate * (1 - rate) / trials + z**2 / (4 * trials**2)) ** 0.5 / scale
    # At the ends the formula gives 0 and 1 but for rounding.
    low = 0.0 if successes == 0 else middle - reach
    high = 1.0 if successes == trials else middle + reach
    return Estimate(rate, (low, high))


def estimate_difference(own: Bool[np.ndarray, " N"], other: Bool[np.ndarray, " N"]) -> Estimate:
    """Difference of two success rates on the same trials, with Newcombe's paired interval.

    It combines the Wilson intervals of both rates by the correlation of their successes (Newcombe
    1998, "Improved confidence intervals for the difference between binomial proportions based on
    paired data", method 10).

    Args:
        own, other: whether each trial succeeded; at least one trial.
    """
    trials = len(own)
    ours, theirs = (estimate_rate(int(found.sum()), trials) for found in (own, other))
    both, neither = int((own & other).sum()), int((~own & ~other).sum())
    mine, its = int((own & ~other).sum()), int((~own & other).sum())
    cross = both * neither - mine * its
    if cross > 0:
        cross = max(cross - trials / 2, 0)
    product = (both + mine) * (its + neither) * (both + its) * (mine + neither)
    phi = cross / math.sqrt(product) if product else 0.0

    def reach(one: float, two: float) -> float:
        return math.sqrt(max(one**2 - 2 * phi * one * two + two**2, 0.0))

    difference = ours.mean - theirs.mean
    below = reach(ours.mean - ours.interval[0], theirs.interval[1] - theirs.mean)
    above = reach(ours.interval[1] - ours.mean, theirs.mean - theirs.interval[0])
    return Estimate(difference, (difference - below, difference + above))
