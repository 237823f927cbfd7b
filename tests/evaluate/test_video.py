"""Bucket figures and round measures, by hand."""

import numpy as np
import pytest

from roam_jax.evaluate.rounds import round_figures
from roam_jax.evaluate.video import bucket_figures


def test_bucket_figures():
    errors = np.array([[1.0, 2.0], [3.0, 6.0], [5.0, 1.0]])
    found = bucket_figures(
        errors,
        2 * errors,
        buckets=((0, 500), (500, 1000)),
        episodes=np.array([0, 0, 1]),
        resamples=100,
    )
    assert found["mse"]["mean"] == pytest.approx(3.0)
    first, last = found["buckets"]
    assert (first["timesteps"], last["timesteps"]) == ([0, 499], [500, 999])
    assert (first["mse"]["mean"], last["mse"]["mean"]) == (3.0, 3.0)
    # Two episodes: the ends are their own means.
    assert first["mse"]["interval"] == [2.0, 5.0]
    assert last["mse"]["interval"] == [1.0, 4.0]
    assert (first["zero_mse"], last["zero_mse"]) == (6.0, 6.0)


def test_round_measures_are_means_over_windows_by_round_then_block():
    values = np.arange(2 * 3 * 4, dtype=np.float32).reshape(2, 3, 4)
    figures = round_figures({"residual": {"text": values}})
    assert set(figures) == {"measures"}
    found = figures["measures"]["residual"]["text"]
    assert np.shape(found) == (4, 3)
    for r in range(4):
        for block in range(3):
            assert found[r][block] == (values[0, block, r] + values[1, block, r]) / 2


def test_rounds_used_are_sums_over_rounds_of_what_runs():
    running = np.array([[[1, 0.5, 0.25]], [[1, 0, 0]]], np.float32)
    found = round_figures({"running": {"text": running, "all": np.ones((2, 4, 3))}})
    assert found["rounds_used"] == {"text": 1.375, "all": 3.0}
