"""Action figures against loops over windows, actions and dimensions."""

import numpy as np
import pytest

from roam_jax.contracts import ACTION_NAMES, POSE_AND_GRIPPER, VectorSpec
from roam_jax.data.statistics import VectorStatistics
from roam_jax.evaluate.actions import ActionWindows, action_figures, baseline_predictions

LOW = (-0.03, -0.04, -0.02, -0.1, -0.2, -0.3, 0.0)
HIGH = (0.02, 0.04, 0.05, 0.1, 0.3, 0.2, 1.0)
STATISTICS = VectorStatistics(
    spec=POSE_AND_GRIPPER,
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


def test_each_dimension_in_its_unit_and_only_grippers_as_grippers():
    """Two grippers between joints in degrees; then no gripper at all."""
    spec = VectorSpec(
        ("left", "elbow", "right"),
        ("1 = open", "deg", "1 = open"),
        ("gripper", "linear", "gripper"),
    )
    ends = {"q01": (0.0, -90.0, 0.0), "q99": (1.0, 30.0, 1.0)}
    rest = {n: (0.0, 0.0, 0.0) for n in ("mean", "std", "minimum", "maximum")}
    statistics = VectorStatistics(spec=spec, count=3, **ends, **rest)
    targets = np.array([[[1, 0.5, 0]], [[1, -0.5, 1]]], np.float32)
    predicted = np.array([[[0.9, 0.25, 0.7]], [[0.4, -0.5, 0.5]]], np.float32)
    windows = ActionWindows(targets, targets[:, :0], np.arange(2, dtype=np.int32))
    found = action_figures(predicted, windows, statistics=statistics, resamples=5)["chunk"]
    assert found["absolute_error"] == {"elbow": pytest.approx(0.25 / 2 * 120 / 2)}
    # Open are left 0.9 and right 0.7; recorded left, left and right.
    assert found["gripper_accuracy"] == 1 / 4
    only = VectorStatistics(
        spec=VectorSpec(("elbow",), ("deg",), ("linear",)),
        count=3,
        **{name: values[1:2] for name, values in {**ends, **rest}.items()},
    )
    windows = ActionWindows(targets[..., 1:2], targets[:, :0, 1:2], windows.episodes)
    figures = action_figures(predicted[..., 1:2], windows, statistics=only, resamples=5)["first"]
    assert "gripper_accuracy" not in figures
    assert figures["mse"]["mean"] == pytest.approx(0.25**2 / 2)


def test_an_angle_errs_by_the_smaller_arc_and_a_change_by_all_of_it():
    names = ("yaw", "turned", "x")
    spec = VectorSpec(names, ("rad", "rad", "m"), ("angle", "change", "linear"))
    ends = {"q01": (-3.0, -3.0, -3.0), "q99": (3.0, 3.0, 3.0)}
    rest = {n: (0.0, 0.0, 0.0) for n in ("mean", "std", "minimum", "maximum")}
    statistics = VectorStatistics(spec=spec, count=2, **ends, **rest)
    # In rad and m: 2.7 and -2.7 are 5.4 apart, or 2 pi - 5.4; 2.1 and 0.6 are 1.5 apart.
    targets = np.array([[[0.9] * 3], [[0.7] * 3]], np.float32)
    predicted = np.array([[[-0.9] * 3], [[0.2] * 3]], np.float32)
    for guess, truth in ((predicted, targets), (targets, predicted)):
        windows = ActionWindows(truth, truth[:, :0], np.arange(2, dtype=np.int32))
        found = action_figures(guess, windows, statistics=statistics, resamples=5)["chunk"]
        plain = pytest.approx((5.4 + 1.5) / 2, rel=1e-6)
        arc = pytest.approx((2 * np.pi - 5.4 + 1.5) / 2, rel=1e-6)
        assert found["absolute_error"] == {"yaw": arc, "turned": plain, "x": plain}
        assert found["mse"]["mean"] == pytest.approx((1.8**2 + 0.5**2) / 2, rel=1e-6)
