"""Figures of a canvas model's regions against numpy and scipy, on made-up predictions."""

import numpy as np
import pytest
import scipy.stats

from roam_jax.evaluate.bootstrap import estimate_mean, estimate_ratio
from roam_jax.evaluate.canvas_figures import (
    Answers,
    classification_figures,
    diffusion_figures,
    most_frequent,
    regression_figures,
)

EXAMPLES, CELLS = 40, 3
NAMES = ("1 hop", "2 hops", "3 hops")


def answers(classes, seed=0):
    rng = np.random.default_rng(seed)
    targets = rng.choice(classes, size=(EXAMPLES, CELLS), p=np.arange(1, classes + 1) / sum(
        range(1, classes + 1)
    ))  # fmt: skip
    predicted = np.where(rng.random(targets.shape) < 0.7, targets, 0)
    return Answers(predicted, targets, NAMES, classes)


def test_diffusion():
    rng = np.random.default_rng(0)
    errors, zero = rng.random((EXAMPLES, 3)), 1 + rng.random((EXAMPLES, 3))
    found = diffusion_figures(
        errors, zero_errors=zero, buckets=((0, 500), (500, 1000)), resamples=50
    )
    expected = estimate_mean(errors[:, 0], np.arange(EXAMPLES), resamples=50)
    assert found["error"] == expected.to_json()
    first, second = found["timesteps"]["buckets"]
    assert first["timesteps"] == [0, 499] and second["timesteps"] == [500, 999]
    assert first["mse"]["mean"] == pytest.approx(errors[:, 1].mean())
    assert second["zero_mse"] == pytest.approx(zero[:, 2].mean())
    assert found["timesteps"]["mse"]["mean"] == pytest.approx(errors[:, 1:].mean())


def test_regression():
    errors = np.random.default_rng(0).random(EXAMPLES)
    found = regression_figures(errors, resamples=50)
    assert found["error"]["mean"] == pytest.approx(errors.mean())


def test_classification_by_cell():
    given = answers(4)
    cross_entropy = np.random.default_rng(1).random((EXAMPLES, CELLS))
    found = classification_figures(cross_entropy, given, resamples=50)
    right = given.predicted == given.targets
    assert found["error"]["mean"] == pytest.approx(cross_entropy.mean())
    assert found["accuracy"]["mean"] == pytest.approx(right.mean())
    assert [cell["name"] for cell in found["cells"]] == list(NAMES)
    for i, cell in enumerate(found["cells"]):
        assert cell["accuracy"]["mean"] == pytest.approx(right[:, i].mean())
        assert cell["error"]["mean"] == pytest.approx(cross_entropy[:, i].mean())
    assert "f1" not in found


def test_detection_counts_hits_and_mistakes():
    given = answers(2)
    found = classification_figures(np.zeros((EXAMPLES, CELLS)), given, resamples=50)
    said, true = given.predicted.ravel() == 1, given.targets.ravel() == 1
    hits, false_alarms, misses = (said & true).sum(), (said & ~true).sum(), (~said & true).sum()
    assert found["precision"]["mean"] == pytest.approx(hits / (hits + false_alarms))
    assert found["recall"]["mean"] == pytest.approx(hits / (hits + misses))
    harmonic = scipy.stats.hmean([found["precision"]["mean"], found["recall"]["mean"]])
    assert found["f1"]["mean"] == pytest.approx(harmonic)
    low, high = found["f1"]["interval"]
    assert low < found["f1"]["mean"] < high
    for i, cell in enumerate(found["cells"]):
        said, true = given.predicted[:, i] == 1, given.targets[:, i] == 1
        assert cell["f1"]["mean"] == pytest.approx(
            2 * (said & true).sum() / (said.sum() + true.sum())
        )


def test_the_most_frequent_class_of_each_cell():
    given = answers(4)
    found = most_frequent(given, resamples=50)
    for i, cell in enumerate(found["cells"]):
        counts = np.bincount(given.targets[:, i], minlength=4)
        assert cell["accuracy"]["mean"] == pytest.approx(counts.max() / EXAMPLES)
        assert cell["error"]["mean"] == pytest.approx(scipy.stats.entropy(counts))
    detected = most_frequent(answers(2), resamples=50)
    share = (answers(2).targets == 1).mean()
    assert detected["precision"]["mean"] == pytest.approx(share)
    assert detected["recall"]["mean"] == 1
    assert detected["f1"]["mean"] == pytest.approx(2 * share / (1 + share))


def test_a_ratio_of_sums():
    rng = np.random.default_rng(2)
    parts, wholes = rng.random(30), 1 + rng.random(30)
    found = estimate_ratio(parts, wholes, resamples=20_000)
    theirs = scipy.stats.bootstrap(
        (parts, wholes),
        lambda p, w, axis: p.sum(axis=axis) / w.sum(axis=axis),
        paired=True,
        n_resamples=20_000,
        method="percentile",
        rng=np.random.default_rng(5),
    ).confidence_interval
    assert found.mean == pytest.approx(parts.sum() / wholes.sum(), rel=1e-12)
    np.testing.assert_allclose(found.interval, theirs, atol=0.03 * (theirs.high - theirs.low))
    # Where nothing was there and nothing was said.
    assert estimate_ratio(np.zeros(5), np.zeros(5), resamples=10).mean == 0
    with pytest.raises(ValueError, match="0 examples"):
        estimate_ratio(np.zeros(0), np.zeros(0), resamples=10)
