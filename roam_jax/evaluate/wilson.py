"""A success rate with its Wilson score interval (Wilson 1927).

Unlike the normal interval it stays within 0 and 1 and is not empty where no or every trial
succeeded, as good policies do.
"""

from __future__ import annotations

import scipy.stats

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
