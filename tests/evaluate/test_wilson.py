"""The Wilson interval against scipy's, its defining equation and a published table."""

import numpy as np
import pytest
import scipy.stats

from roam_jax.evaluate.wilson import estimate_difference, estimate_rate


@pytest.mark.parametrize("successes, trials", [(0, 10), (1, 10), (81, 263), (198, 200), (200, 200)])
def test_against_scipy_and_the_equation(successes, trials):
    found = estimate_rate(successes, trials)
    assert found.mean == successes / trials
    theirs = scipy.stats.binomtest(successes, trials).proportion_ci(method="wilson")
    np.testing.assert_allclose(found.interval, (theirs.low, theirs.high), atol=1e-12)
    # Both ends p solve |rate - p| = z sqrt(p (1 - p) / n).
    z = scipy.stats.norm.ppf(0.975)
    for end in found.interval:
        reach = z * np.sqrt(end * (1 - end) / trials)
        assert abs(found.mean - end) == pytest.approx(reach, abs=1e-9)


def test_published_values():
    # Newcombe (1998), Table I, method 3.
    for (successes, trials), interval in {
        (81, 263): (0.2553, 0.3662),
        (15, 148): (0.0624, 0.1605),
        (0, 20): (0.0, 0.1611),
        (1, 29): (0.0061, 0.1718),
    }.items():
        np.testing.assert_allclose(estimate_rate(successes, trials).interval, interval, atol=5e-5)


def test_what_cannot_be_is_refused():
    for successes, trials in ((0, 0), (3, 2), (-1, 2)):
        with pytest.raises(ValueError, match=f"{successes} successes in {trials} trials"):
            estimate_rate(successes, trials)


@pytest.mark.parametrize(
    "counts, interval",
    [((36, 12, 2, 0), (0.0569, 0.3404)), ((50, 0, 0, 0), (-0.0713, 0.0713))],
)
def test_published_differences_of_pairs(counts, interval):
    # Both, own alone, other alone, neither: Newcombe (1998), method 10.
    own = np.repeat([True, True, False, False], counts)
    other = np.repeat([True, False, True, False], counts)
    found = estimate_difference(own, other)
    assert found.mean == pytest.approx((counts[1] - counts[2]) / sum(counts))
    np.testing.assert_allclose(found.interval, interval, atol=5e-5)
