"""The interval over episodes: exact cases, SciPy, and its coverage."""

import numpy as np
import pytest
import scipy.stats

from roam_jax.evaluate.bootstrap import estimate_mean


def test_equals_scipy_with_one_window_an_episode():
    values = np.random.default_rng(3).exponential(size=40)
    ours = estimate_mean(values, np.arange(40), resamples=20_000)
    theirs = scipy.stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(5)
    ).confidence_interval
    assert ours.mean == pytest.approx(values.mean(), rel=1e-12)
    np.testing.assert_allclose(ours.interval, theirs, atol=0.02 * (theirs.high - theirs.low))


def test_two_episodes_give_the_ends_of_three_possible_means():
    # Resamples hold episode 0 twice, each once, or episode 1 twice: 1/4, 1/2, 1/4.
    values, episodes = np.array([1.0, 3.0, 10.0]), np.array([7, 7, 4])
    found = estimate_mean(values, episodes, resamples=500)
    assert found.mean == pytest.approx(14 / 3)
    assert found.interval == pytest.approx((2.0, 10.0))
    assert found.to_json() == {"mean": found.mean, "interval": list(found.interval)}


def test_covers_the_truth_where_windows_of_an_episode_are_alike():
    rng = np.random.default_rng(0)
    episodes = np.repeat(np.arange(30), 10)
    covered, naive = [], []
    for _ in range(200):
        values = rng.normal(size=30)[episodes] + 0.1 * rng.normal(size=300)
        low, high = estimate_mean(values, episodes, resamples=200).interval
        covered.append(low < 0 < high)
        # As if every window were an episode of its own.
        low, high = estimate_mean(values, np.arange(300), resamples=200).interval
        naive.append(low < 0 < high)
    assert 0.88 < np.mean(covered) < 0.99
    assert np.mean(naive) < 0.6


def test_one_episode_has_no_interval():
    found = estimate_mean(np.array([1.0, 2.0]), np.array([5, 5]), resamples=10)
    assert (found.mean, found.interval) == (1.5, None)
    assert found.to_json() == {"mean": 1.5, "interval": None}


def test_refuses_nothing_to_do():
    with pytest.raises(ValueError, match="0 windows"):
        estimate_mean(np.zeros(0), np.zeros(0, np.int32), resamples=10)
    with pytest.raises(ValueError, match="eval.resamples = 0"):
        estimate_mean(np.zeros(2), np.arange(2), resamples=0)
