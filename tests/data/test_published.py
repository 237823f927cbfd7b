"""Measured beside published quantiles."""

import dataclasses

import numpy as np
import pytest

from roam_jax.contracts import VectorSpec
from roam_jax.data.accumulate import Accumulator
from roam_jax.data.declaration import Published
from roam_jax.data.known import BRIDGE
from roam_jax.data.published import QuantileCheck, compare_with_published, published_for

SPEC = VectorSpec(("x", "roll", "hand"), ("m", "rad", ""), ("linear", "angle", "gripper"))
PUBLISHED = Published(("toy",), q01=(-0.03, -0.3, 0.0), q99=(0.03, 0.6, 1.0))


def measured(scale):
    rows = np.linspace(-1, 1, 2001)[:, None] * np.array([0.03, 0.5, 1]) * scale
    found = Accumulator(SPEC)
    found.update(rows.astype(np.float32))
    return found.finish()


def outside(scale):
    checks = compare_with_published(measured(scale), PUBLISHED)
    return [(check.name, check.quantile) for check in checks if check.outside]


def test_every_scaled_quantile_is_compared():
    checks = compare_with_published(measured(1.0), PUBLISHED)
    places = [("x", "q01"), ("x", "q99"), ("roll", "q01"), ("roll", "q99")]
    assert [(check.name, check.quantile) for check in checks] == places
    assert [check.published for check in checks] == [-0.03, 0.03, -0.3, 0.6]
    np.testing.assert_allclose(
        [check.measured for check in checks[:2]], [-0.0294, 0.0294], rtol=1e-3
    )


def test_what_lies_outside_of_a_factor_of_three():
    assert outside(1.0) == []
    assert outside(np.array([100.0, 1, 1])) == [("x", "q01"), ("x", "q99")]
    assert outside(np.array([1, 180 / np.pi, 1])) == [("roll", "q01"), ("roll", "q99")]
    assert outside(np.array([0.3, 1, 1])) == [("x", "q01"), ("x", "q99")]
    assert outside(np.array([1, -1, 1])) == [] == outside(np.array([1, 1, 9]))
    # 2 x 0.49 lies within three times 0.6, not of 0.3.
    assert outside(np.array([1, 2, 1])) == [("roll", "q01")]


def test_the_bounds_themselves_are_inside():
    for published, values in {2.0: (0.6, 0.67, 6.0, 6.1), -2.0: (-0.6, -0.67, -6.0, -6.1)}.items():
        found = [QuantileCheck("x", "q01", value, published).outside for value in values]
        assert found == [True, False, False, True]
    assert QuantileCheck("x", "q01", 0.5, -0.5).outside
    assert [QuantileCheck("x", "q01", value, 0.0).outside for value in (0.0, 0.1)] == [False, True]


@pytest.mark.parametrize(
    "dataset, stride, known",
    [
        ("bridge_dataset/1.0.0", 1, True),
        ("bridge", 1, True),
        ("bridge_dataset/1.0.0", 2, False),
        ("bridge_dataset_2/1.0.0", 1, False),
    ],
)
def test_figures_are_those_of_some_datasets_at_their_own_rate(dataset, stride, known):
    found = published_for(BRIDGE, dataset=dataset, stride=stride)
    assert found == (BRIDGE.published if known else None)
    without = dataclasses.replace(BRIDGE, published=None)
    assert published_for(without, dataset=dataset, stride=stride) is None


def test_other_dimensions_are_refused():
    with pytest.raises(
        ValueError, match="figures of 7 and 7 dimensions, expected 3: x, roll, hand"
    ):
        compare_with_published(measured(1.0), BRIDGE.published)
