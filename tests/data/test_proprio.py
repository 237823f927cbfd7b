"""Angles near a centre, and what a latent frame holds of states and rewards."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from roam_jax.contracts import VectorSpec
from roam_jax.data.proprio import CircularMean, latent_rewards, latent_states, nearest_turn

ANGLE = st.floats(-20, 20, width=32)


@given(ANGLE, ANGLE)
def test_the_nearest_turn_is_the_same_angle_near_its_centre(angle, centre):
    (near,) = nearest_turn(np.array([angle]), np.array([centre]))
    assert abs(near - centre) <= np.pi + 1e-9
    turns = (angle - near) / (2 * np.pi)
    assert turns == pytest.approx(round(turns), abs=1e-9)
    if abs(angle - centre) < np.pi:
        assert near == angle


ANGLES = VectorSpec(("a", "x", "b", "c"), ("",) * 4, ("angle", "linear", "angle", "angle"))


def test_a_motion_through_the_seam_stays_in_one_piece():
    yaw = np.linspace(2.5, 4.0, 16)[:, None]
    stored = np.arctan2(np.sin(yaw), np.cos(yaw))
    assert np.abs(np.diff(stored, axis=0)).max() > 6
    np.testing.assert_allclose(nearest_turn(stored, np.array([3.0])), yaw, atol=1e-12)


def test_circular_mean_by_hand():
    # The second dimension is none of them.
    angles = np.array([[3.0, 9.9, 0.1, 0.0], [-3.0, 9.9, 0.3, np.pi / 2]], np.float32)
    for pieces in ([angles], [angles[:1], angles[:0], angles[1:]]):
        found = CircularMean(ANGLES)
        for piece in pieces:
            found.update(piece)
        mean = found.finish()
        np.testing.assert_allclose(np.abs(mean[0]), np.pi, atol=1e-6)
        np.testing.assert_allclose(mean[1:], [0.2, np.pi / 4], atol=1e-6)


def test_circular_mean_of_nothing():
    np.testing.assert_array_equal(CircularMean(ANGLES).finish(), [0, 0, 0])


def test_latent_frames_by_hand():
    steps = np.arange(9, dtype=np.float32)
    np.testing.assert_array_equal(latent_states(np.stack([steps] * 7, 1))[:, 0], [0, 4, 8])
    # Frame 0; frames 1..4; frames 5..8.
    np.testing.assert_array_equal(latent_rewards(steps + 1), [[1], [14], [30]])
