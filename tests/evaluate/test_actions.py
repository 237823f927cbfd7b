"""Action figures against loops over windows, actions and dimensions."""

import numpy as np
import pytest

from roam_jax.contracts import ACTION_NAMES
from roam_jax.data.statistics import PoseStatistics
from roam_jax.evaluate.actions import ActionWindows, action_figures, baseline_predictions

LOW = (-0.03, -0.04, -0.02, -0.1, -0.2, -0.3, 0.0)
HIGH = (0.02, 0.04, 0.05, 0.1, 0.3, 0.2, 1.0)
STATISTICS = PoseStatistics(
    count=10,
    mean=(0.0,) * 7,
    std=(1.0,) * 7,
    minimum=LOW,
    maximum=HIGH,
    q01=LOW,
    q99=HIGH,
)


def make_windows(rng, count=5, past=4, chunk=4):
    targets = rng.uniform(-1, 1, (count, chunk, 7)).astype(np.float32)
    targets[..., 6] = rng.integers(0, 2, (count, chunk))
    before = rng.uniform(-1, 1, (count, past, 7)).astype(np.float32)
    return ActionWindows(targets, before, np.arange(count) // 2)


@pytest.mark.parametrize("length", [1, 3, 4])
def test_figures_equal_sums_by_hand(length):
    rng = np.random.default_rng(0)
    windows = make_windows(rng)
    predicted = rng.uniform(-1, 1, (5, length, 7)).astype(np.float32)
    found = action_figures(predicted, windows, statistics=STATISTICS, resamples=20)
    for name, count in (("chunk", length), ("first", 1)):
        squares, right = [], []
        absolute = {dimension: [] for dimension in ACTION_NAMES[:6]}
        for w in range(5):
            for i in range(count):
                for d in range(7):
                    error = float(predicted[w, i, d]) - float(windows.targets[w, i, d])
                    squares.append(error**2)
                    if d < 6:
                        # [-1, 1] spans q01..q99.
                        absolute[ACTION_NAMES[d]].append(abs(error) * (HIGH[d] - LOW[d]) / 2)
                right.append((predicted[w, i, 6] > 0.5) == (windows.targets[w, i, 6] == 1))
        figures = found[name]
        assert figures["actions"] == count
        assert figures["mse"]["mean"] == pytest.approx(np.mean(squares), rel=1e-6)
        low, high = figures["mse"]["interval"]
        assert low < figures["mse"]["mean"] < high
        expected = {dimension: np.mean(errors) for dimension, errors in absolute.items()}
        assert figures["absolute_error"] == pytest.approx(expected, rel=1e-5)
        assert figures["gripper_accuracy"] == pytest.approx(np.mean(right))


def test_baselines_by_hand():
    rng = np.random.default_rng(1)
    windows, train = make_windows(rng), make_windows(rng, count=3).targets
    found = baseline_predictions(train, windows, length=2)
    mean = sum(train[w, i].astype(np.float64) for w in range(3) for i in range(2)) / 6
    assert set(found) == {"training_mean", "previous_action"}
    for predicted in found.values():
        assert predicted.shape == (5, 2, 7)
    for w in range(5):
        for i in range(2):
            np.testing.assert_allclose(found["training_mean"][w, i], mean, rtol=1e-6)
            np.testing.assert_array_equal(found["previous_action"][w, i], windows.past[w, 3])


def test_the_training_mean_is_the_best_constant():
    windows = make_windows(np.random.default_rng(2))

    def error(predicted):
        figures = action_figures(predicted, windows, statistics=STATISTICS, resamples=5)
        return figures["chunk"]["mse"]["mean"]

    mean = baseline_predictions(windows.targets, windows, length=4)["training_mean"]
    # The variance of each dimension, averaged.
    variance = windows.targets.astype(np.float64).var(axis=(0, 1)).mean()
    assert error(mean) == pytest.approx(variance, rel=1e-6)
    assert error(mean + 0.01) > error(mean) < error(mean - 0.01)


def test_no_previous_action_without_a_past():
    windows = make_windows(np.random.default_rng(3), past=0)
    assert set(baseline_predictions(windows.targets, windows, length=4)) == {"training_mean"}


def test_an_undecided_gripper_counts_as_closed():
    windows = make_windows(np.random.default_rng(4))
    predicted = windows.targets.copy()
    predicted[..., 6] = 0.5
    found = action_figures(predicted, windows, statistics=STATISTICS, resamples=5)
    assert found["chunk"]["gripper_accuracy"] == pytest.approx(
        np.mean(windows.targets[..., 6] == 0)
    )
