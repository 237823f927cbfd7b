"""The scaling that statistics define, for any dimensions, and their JSON."""

import dataclasses
import json

import numpy as np
import pytest

from roam_jax.contracts import POSE_AND_GRIPPER, POSE_CHANGE_AND_GRIPPER, VectorSpec
from roam_jax.data.statistics import RobotStatistics, StateStatistics, VectorStatistics

TURN = 2 * np.pi
# Grippers and angles at other places than Bridge's.
ARM = VectorSpec(
    ("left", "elbow", "x", "right"), ("", "rad", "m", ""), ("gripper", "angle", "linear", "gripper")
)


def make(kind=VectorStatistics, spec=None, **changes):
    bridge = POSE_AND_GRIPPER if kind is StateStatistics else POSE_CHANGE_AND_GRIPPER
    spec = spec or bridge
    size = len(spec)
    zeros, ones = (0.0,) * size, (1.0,) * size
    fields = {"mean": zeros, "std": ones, "minimum": zeros, "maximum": ones}
    if spec is bridge:
        fields["q01"] = (-0.1, -0.2, -0.3, -0.4, 0.5, 0.0, 0.0)
        fields["q99"] = (0.1, 0.4, 0.3, 0.0, 0.7, 0.0, 1.0)
    return kind(spec=spec, count=3, **{**fields, **changes})


def robot(**changes):
    fields = {"actions": make(), "proprio": make(StateStatistics), "episodes": 1}
    return RobotStatistics(**fields, fingerprint="f", root="r", rate=2.5, **changes)


def test_scaling_is_linear_between_the_quantiles():
    statistics = make()
    assert statistics.constant == ("yaw",)
    low, high = np.float32(statistics.q01), np.float32(statistics.q99)
    rows = np.stack([low, (low + high) / 2, high, low - 1, high + 1])
    rows[:, 6] = 0, 0.5, 1, 0, 1
    expected = np.repeat(np.float32([-1, 0, 1, -1, 1]), 7).reshape(5, 7)
    expected[:, 5] = 0
    expected[:, 6] = rows[:, 6]
    scaled = statistics.normalise(rows)
    assert scaled.dtype == np.float32
    np.testing.assert_allclose(scaled, expected, atol=1e-6)
    np.testing.assert_allclose(statistics.unnormalise(scaled)[:3], rows[:3], atol=1e-6)


def test_each_kind_is_scaled_as_such_wherever_it_stands():
    quantiles = {"q01": (0.0, 3.0, 1.0, 0.5), "q99": (1.0, 4.0, 3.0, 0.5)}
    rows = np.float32([[0.2, 3.5, 1.5, 7], [-0.4, 4.5, 9, 0.3], [1.2, 3.25 - TURN, -9, 0]])
    actions, states = (make(kind, ARM, **quantiles) for kind in (VectorStatistics, StateStatistics))
    # A gripper that never changes is not scaled, so it is not constant in this sense.
    assert actions.constant == states.constant == ()
    scaled = actions.normalise(rows)
    np.testing.assert_array_equal(scaled[:, [0, 3]], rows[:, [0, 3]])
    np.testing.assert_allclose(scaled[:, 1], [0, 1, -0.5], atol=1e-6)
    np.testing.assert_allclose(scaled[:, 2], [-0.5, 1, -1], atol=1e-6)
    scaled = states.normalise(rows)
    np.testing.assert_allclose(scaled[:, 0], [0.2, 0, 1], atol=1e-6)
    np.testing.assert_allclose(scaled[:, 1], [0, 1, -0.5], atol=1e-6)
    np.testing.assert_allclose(scaled[:, 3], [1, 0.3, 0], atol=1e-6)
    np.testing.assert_allclose(
        states.unnormalise(scaled)[:2, :3], [[0.2, 3.5, 1.5], [0, 4, 3]], atol=1e-6
    )


def test_states_are_scaled_by_hand():
    """Closed form: turns taken off, what lies outside of the range clipped to its nearer end."""
    proprio = make(StateStatistics, q01=(0.1, 0, 0, 3, -3.4, 0, 0), q99=(0.3, 1, 1, 4, -3, 1, 1))
    rows = np.zeros((5, 7), np.float32)
    rows[:, 0] = 0.1, 0.2, 0.3, 0.0, 1.0
    rows[:, 3] = 3.5 - TURN, 3.75, -3.0, 2.9, 4.1 - TURN
    rows[:, 4] = -3.2, 3.1, 3.2, -2.9, 2.8
    rows[:, 6] = -0.1, 0.26, 1.007, 0.5, 1
    scaled = proprio.normalise(rows)
    assert scaled.dtype == np.float32
    np.testing.assert_allclose(scaled[:, 0], [-1, 0, 1, -1, 1], atol=1e-6)
    roll = [0, 0.5, 2 * (TURN - 3 - 3) - 1, -1, 1]
    np.testing.assert_allclose(scaled[:, 3], roll, atol=1e-6)
    pitch = [0, 5 * (3.1 - TURN + 3.4) - 1, 5 * (3.2 - TURN + 3.4) - 1, 1, -1]
    np.testing.assert_allclose(scaled[:, 4], pitch, atol=1e-5)
    np.testing.assert_allclose(scaled[:, 6], [0, 0.26, 1, 0.5, 1], atol=1e-6)
    # The same angle comes back, at the turn where the range lies.
    back = proprio.unnormalise(scaled)
    np.testing.assert_allclose(back[:3, 3], [3.5, 3.75, TURN - 3], atol=1e-6)
    np.testing.assert_array_equal(rows[:, 6], np.float32([-0.1, 0.26, 1.007, 0.5, 1]))


def test_a_state_is_scaled_by_itself():
    """No other row, earlier or later, has a say in a scaled state."""
    proprio = make(StateStatistics)
    rows = np.random.default_rng(0).normal(0, 3, (6, 7)).astype(np.float32)
    alone = np.stack([proprio.normalise(row) for row in rows])
    np.testing.assert_array_equal(proprio.normalise(rows), alone)


@pytest.mark.parametrize("kind", [VectorStatistics, StateStatistics])
def test_bridge_is_scaled_to_the_bits_of_its_own_formula(kind):
    """As written for poses with the gripper last, before other dimensions were known."""
    rng = np.random.default_rng(0)
    low = np.sort(rng.normal(0, 2, (2, 7)), axis=0)
    statistics = make(kind, q01=tuple(low[0].tolist()), q99=tuple(low[1].tolist()))
    for dtype in (np.float32, np.float64):
        rows = rng.normal(0, 3, (500, 7)).astype(dtype)
        turned = rows
        if kind is StateStatistics:
            turned = rows.astype(np.float64)
            middle = (low[0] + (low[1] - low[0]) / 2)[3:6]
            turned[:, 3:6] -= TURN * np.round((turned[:, 3:6] - middle) / TURN)
            turned[:, 6] = np.clip(turned[:, 6], 0, 1)
        pose = np.clip(2 * (turned[:, :6] - low[0, :6]) / (low[1] - low[0])[:6] - 1, -1, 1)
        expected = np.concatenate([pose, turned[:, 6:]], axis=1).astype(dtype)
        scaled = statistics.normalise(rows)
        np.testing.assert_array_equal(scaled, expected, strict=True)
        pose = (scaled[:, :6] + 1) / 2 * (low[1] - low[0])[:6] + low[0, :6]
        expected = np.concatenate([pose, scaled[:, 6:]], axis=1).astype(dtype)
        np.testing.assert_array_equal(statistics.unnormalise(scaled), expected, strict=True)


def test_rows_of_another_length_are_refused():
    for statistics in (make(), make(StateStatistics)):
        for scale in (statistics.normalise, statistics.unnormalise):
            with pytest.raises(ValueError, match=r"shape \(2, 1\), expected 7 numbers each: x, y"):
                scale(np.zeros((2, 1), np.float32))


def test_json_keeps_every_digit():
    rng = np.random.default_rng(0)
    names = ("mean", "std", "minimum", "maximum", "q01", "q99")
    values = {name: tuple(np.exp(rng.normal(0, 9, 4)).tolist()) for name in names}
    statistics = dataclasses.replace(robot(), proprio=make(StateStatistics, ARM, **values))
    back = RobotStatistics.from_json(statistics.to_json())
    assert back == statistics
    assert (type(back.actions), type(back.proprio)) == (VectorStatistics, StateStatistics)


def test_bad_fields_are_named():
    with pytest.raises(ValueError, match=r"q01 = .*expected 7 finite numbers"):
        make(q01=(0.0,) * 6)
    with pytest.raises(ValueError, match=r"mean = .*expected 4 finite numbers"):
        make(spec=ARM, q01=(0.0,) * 4, q99=(1.0,) * 4, mean=(0.0, np.inf, 0.0, 0.0))
    whole = dataclasses.asdict(robot())
    assert RobotStatistics.from_json(json.dumps(whole)).actions == make()
    actions = whole["actions"]
    for bad in (
        {"count": 3},
        {**whole, "proprio": {"count": 3}},
        {**whole, "actions": None},
        {name: value for name, value in whole.items() if name != "rate"},
        {**whole, "actions": {**actions, "spec": {"names": ["x"]}}},
    ):
        with pytest.raises(ValueError, match="expected a JSON object"):
            RobotStatistics.from_json(json.dumps(bad))
    spec = {**actions["spec"], "kinds": ["linear"] * 6 + ["hand"]}
    bad = {**whole, "actions": {**actions, "spec": spec}}
    with pytest.raises(
        ValueError, match=r"kinds \['hand'\], expected one of linear, angle, change"
    ):
        RobotStatistics.from_json(json.dumps(bad))
