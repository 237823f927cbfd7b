"""Inverse temperatures against canvas-engineering's schedule."""

import numpy as np
import pytest
from canvas_engineering.sharpening import SharpeningSchedule

from roam_jax.attention.sharpening import inverse_temperatures


@pytest.mark.parametrize("kind", ["linear", "exponential", "cosine"])
@pytest.mark.parametrize("rounds", [1, 2, 3, 5])
def test_equals_canvas_engineering(kind, rounds):
    schedule = SharpeningSchedule(rounds, beta_min=1.0, beta_max=5.0, schedule=kind)
    found = inverse_temperatures(kind, rounds=rounds, final=5.0)
    np.testing.assert_allclose(found, [schedule(r) for r in range(rounds)], rtol=1e-6)
    assert found[0] == 1 and found.dtype == np.float32


def test_none_is_one_in_every_round():
    np.testing.assert_array_equal(inverse_temperatures("none", rounds=3, final=4.0), np.ones(3))


def test_closed_forms_of_three_rounds():
    half = {"linear": 2.5, "exponential": 2.0, "cosine": 2.5}
    for kind, middle in half.items():
        found = inverse_temperatures(kind, rounds=3, final=4.0)
        np.testing.assert_allclose(found, [1, middle, 4], rtol=1e-6)


@pytest.mark.parametrize(
    ("kind", "rounds", "final", "message"),
    [
        ("linaer", 3, 4.0, "sharpening = 'linaer': expected one of .*; did you mean 'linear'"),
        ("linear", 0, 4.0, "rounds = 0: expected at least 1"),
        ("linear", 3, 0.5, "final inverse temperature = 0.5: expected a finite number, at least 1"),
        ("cosine", 3, float("inf"), "final inverse temperature = inf"),
        ("none", 3, float("nan"), "final inverse temperature = nan"),
    ],
)
def test_schedules_that_do_not_exist_are_refused(kind, rounds, final, message):
    with pytest.raises(ValueError, match=message):
        inverse_temperatures(kind, rounds=rounds, final=final)
