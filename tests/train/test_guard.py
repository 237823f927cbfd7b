"""What follows from updates that were refused: written down, gone back, stopped."""

from __future__ import annotations

import json
import math

import jax.numpy as jnp
import numpy as np
import pytest

from roam_jax.train.guard import Guard
from roam_jax.train.journal import read_lines
from tests.train import toy

GOOD = {"loss": 0.5, "grad_norm": 1.0, "grad_norm/head": 1.0, "refused": 0.0, "lr": 0.1}
NOT_FINITE = {**GOOD, "loss": math.nan, "grad_norm": math.inf, "refused": 1.0}
SPIKE = {**GOOD, "grad_norm": 90.0, "refused": 1.0}


def make(path=None, *, seed=None, **train):
    return Guard(toy.make_config(**train).train, path, seed=seed)


def test_an_accepted_update_leaves_no_trace(tmp_path):
    guard = make(tmp_path / "incidents.jsonl")
    assert guard.check(1, GOOD, {}) == "accepted"
    assert not (tmp_path / "incidents.jsonl").exists()
    assert read_lines(tmp_path / "incidents.jsonl") == []


def test_refused_in_a_row_goes_back_and_then_stops(tmp_path):
    path = tmp_path / "incidents.jsonl"
    guard, found = make(path, refusals=2, rollbacks=1), []
    for step, row in enumerate((SPIKE, GOOD, SPIKE, NOT_FINITE, NOT_FINITE), start=1):
        found.append(guard.check(step, row, {}))
    assert found == ["refused", "accepted", "refused", "roll back", "refused"]
    assert guard.in_a_row == 1
    message = r"step 6: loss = nan, grad_norm = inf: 2 updates in a row were refused \(train.refus"
    with pytest.raises(FloatingPointError, match=message) as error:
        guard.check(6, NOT_FINITE, {})
    assert "after 1 returns to a checkpoint (train.rollbacks)" in str(error.value)
    assert str(path) in str(error.value)
    incidents = read_lines(path)
    assert [
        (i["step"], i["done"], i["reason"], i["in_a_row"], i["rollbacks"]) for i in incidents
    ] == [
        (1, "refused", "spike", 1, 0),
        (3, "refused", "spike", 1, 0),
        (4, "roll back", "not finite", 2, 1),
        (5, "refused", "not finite", 1, 1),
        (6, "stop", "not finite", 2, 1),
    ]


def test_an_incident_names_the_batch_and_the_norms(tmp_path):
    path = tmp_path / "incidents.jsonl"
    batch = {
        "episode": jnp.array([4, 7]),
        "start": np.array([10, 0], np.int32),
        "scene_seed": np.array([2**32 - 1], np.uint32),
        "frames": np.zeros((2, 3)),
    }
    make(path).check(12, NOT_FINITE, batch)
    (line,) = path.read_text().splitlines()

    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    incident = json.loads(line, parse_constant=refuse)
    assert incident["batch"] == {"episode": [4, 7], "start": [10, 0], "scene_seed": [2**32 - 1]}
    numbers = {"loss": "nan", "grad_norm": "inf", "grad_norm/head": 1.0}
    assert {n: incident[n] for n in numbers} == numbers
    assert "lr" not in incident and "refused" not in incident


def test_half_a_line_of_a_killed_run_is_left_out(tmp_path):
    path = tmp_path / "incidents.jsonl"
    guard = make(path)
    guard.check(1, SPIKE, {})
    with path.open("a") as file:
        file.write('{"step": 2, "do')
    assert [incident["step"] for incident in read_lines(path)] == [1]
    guard.check(2, SPIKE, {})
    assert [incident["step"] for incident in read_lines(path)] == [1, 2]


def test_counts_survive_a_resume():
    first = make(refusals=2, rollbacks=1)
    for step in (1, 2, 3):
        first.check(step, SPIKE, {})
    state = json.loads(json.dumps(first.get_state()))
    again = make(refusals=2, rollbacks=1)
    again.set_state(state)
    assert (again.in_a_row, again.get_state()) == (1, state)
    with pytest.raises(FloatingPointError, match="step 4"):
        again.check(4, SPIKE, {})
    fresh = make()
    fresh.set_state({})
    assert fresh.get_state() == make().get_state()


def test_a_seed_among_others_stops_by_its_name(tmp_path):
    path = tmp_path / "incidents.jsonl"
    guard = make(path, seed=5, refusals=2, spike_factor=10.0)
    assert guard.check(1, SPIKE, {}) == "refused"
    with pytest.raises(FloatingPointError, match="seed 5, step 2: .*or a larger train.spike_fac"):
        guard.check(2, SPIKE, {})
    assert [incident["seed"] for incident in read_lines(path)] == [5, 5]


def test_no_return_is_allowed():
    with pytest.raises(FloatingPointError, match="after 0 returns"):
        make(refusals=1, rollbacks=0).check(1, SPIKE, {})


@pytest.mark.parametrize("leaf, value", [("refusals", 0), ("rollbacks", -1)])
def test_values_out_of_range_are_named(leaf, value):
    with pytest.raises(ValueError, match=rf"train.{leaf} = {value}: expected {value + 1} or more"):
        make(**{leaf: value})
