"""Shares of a mixture: exact, at every place and however long a run goes on."""

import numpy as np
import pytest

from roam_jax.data.mixing import Proportions

PLACES = 100_000


def members_of(weights, places=PLACES):
    proportions = Proportions(weights)
    return np.array([proportions[place] for place in range(places)])


@pytest.mark.parametrize(
    "weights", [(0.7, 0.3), (0.496, 0.504), (0.85, 0.15), (0.001, 0.999), (0.2, 0.5, 0.3), (1.0,)]
)
def test_no_member_is_ever_far_from_its_share(weights):
    chosen = members_of(weights)
    reached = np.arange(1, PLACES + 1)
    for member, weight in enumerate(weights):
        given = np.cumsum(chosen[:, 0] == member)
        # With two members less than a window; the nested rule may add one for each further one.
        assert np.abs(given - weight * reached).max() <= max(1, len(weights) - 1)
        # Each member's windows are numbered as they come, none twice and none left out.
        own = chosen[chosen[:, 0] == member, 1]
        np.testing.assert_array_equal(own, np.arange(len(own)))


def test_thirds_need_not_be_written_out():
    counts = np.bincount(members_of((0.333333, 0.333333, 0.333334), 30_000)[:, 0])
    assert counts.tolist() == [10_000, 10_000, 10_000]


def test_any_place_is_found_at_once():
    """Far out, without counting: the share of all places before it, to within a window."""
    place = 10**15
    member, given = Proportions((0.7, 0.3))[place]
    assert abs(given - (0.7, 0.3)[member] * place) <= 1
    with pytest.raises(IndexError):
        Proportions((0.7, 0.3))[-1]
