"""Which windows are measured, that each counts once, and that its noise is its own."""

import numpy as np
import pytest

from roam_jax.evaluate.windows import (
    map_windows,
    spread_windows,
    timestep_buckets,
    window_noise,
)


@pytest.mark.parametrize(
    "total, wanted, expected",
    [
        (10, 0, range(10)),
        (4, 9, range(4)),
        (10, 5, [0, 2, 4, 6, 8]),
        (7, 3, [0, 2, 4]),
        (0, 0, []),
    ],
)
def test_windows_are_spread_evenly(total, wanted, expected):
    np.testing.assert_array_equal(spread_windows(total, wanted), list(expected))
    with pytest.raises(ValueError, match=r"eval.windows = -1"):
        spread_windows(total, -1)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 20])
def test_every_window_counts_once(experiment, batch_size):
    source, sizes = experiment.splits["train"], set()

    def measure(indices, batch):
        sizes.update({len(indices), *(len(values) for values in batch.values())})
        return {"index": indices, "nested": (batch["episode"], batch["action_chunk"])}

    chosen = np.array([6, 0, 3, 5, 1, 2, 4])
    found = map_windows(source, chosen, measure, batch_size=batch_size)
    assert sizes == {batch_size}
    np.testing.assert_array_equal(found["index"], chosen)
    np.testing.assert_array_equal(found["nested"][0], [2, 0, 2, 2, 0, 1, 2])
    for row, index in zip(found["nested"][1], chosen, strict=True):
        np.testing.assert_array_equal(row, source[int(index)]["action_chunk"])


def test_a_batch_holds_a_window(experiment):
    with pytest.raises(ValueError, match="eval.batch_size = 0"):
        map_windows(experiment.splits["train"], np.arange(2), lambda i, b: i, batch_size=0)


def test_noise_is_a_function_of_window_and_stream():
    def draw(indices, stream, *span):
        found = window_noise(np.array(indices, np.int32), stream, *span, shape=(3, 16, 8, 8))
        return [np.asarray(array) for array in found]

    timesteps, noise = draw(range(40), 1, 200, 400)
    others = draw([17] * 40, 1, 200, 400)
    np.testing.assert_array_equal(others[0], timesteps[17])
    np.testing.assert_array_equal(others[1][5], noise[17])
    assert 200 <= timesteps.min() < 220 and 380 < timesteps.max() < 400
    assert abs(noise.mean()) < 0.01 and abs(noise.std() - 1) < 0.01
    fixed, other = draw(range(40), 0, 999, 1000)
    np.testing.assert_array_equal(fixed, 999)
    assert abs(np.corrcoef(noise[17].ravel(), other[17].ravel())[0, 1]) < 0.06


@pytest.mark.parametrize("buckets, sizes", [(1, {1000}), (5, {200}), (3, {333, 334})])
def test_buckets_are_equal_and_cover_every_timestep(buckets, sizes):
    found = timestep_buckets(1000, buckets)
    assert {end - first for first, end in found} == sizes
    np.testing.assert_array_equal(np.concatenate([np.arange(*b) for b in found]), np.arange(1000))
    for wrong in (0, 1001):
        with pytest.raises(ValueError, match=f"eval.buckets = {wrong}"):
            timestep_buckets(1000, wrong)
