from __future__ import annotations

import datetime

import pytest

from configs import defaults
from roam_jax.train.retention import Keep, Saved

BEGAN = datetime.datetime(2026, 11, 26, tzinfo=datetime.UTC)


def saved(**at_hours):
    """step1=0.5 is a checkpoint of step 1 half an hour after the begin."""
    return [
        Saved(int(name.removeprefix("step")), BEGAN + datetime.timedelta(hours=hours), {})
        for name, hours in at_hours.items()
    ]


def test_the_last():
    steps = saved(step1=0, step2=1, step3=2)
    assert Keep(last=2).chosen(steps) == {2, 3}
    assert Keep(last=5).chosen(steps) == {1, 2, 3}


def test_one_every_so_many_hours():
    steps = saved(step1=0, step2=0.9, step3=1.1, step4=1.5, step5=2.2, step6=2.3)
    assert Keep(last=1, hours=1).chosen(steps) == {1, 3, 5, 6}
    # Taken away one after the other as they come, they are the same.
    have = []
    for one in steps:
        have.append(one)
        stays = Keep(last=1, hours=1).chosen(have)
        have = [old for old in have if old.step in stays]
    assert [one.step for one in have] == [1, 3, 5, 6]


@pytest.mark.parametrize(("mode", "best"), [("min", {2, 5}), ("max", {3, 4})])
def test_the_best(mode, best):
    errors = {1: None, 2: 0.2, 3: 0.9, 4: 0.8, 5: 0.1, 6: float("nan"), 7: float("inf")}
    steps = [Saved(step, BEGAN, {"e": error}) for step, error in errors.items()]
    steps += [Saved(8, BEGAN, {}), Saved(9, BEGAN, None)]
    assert Keep(last=1, best=2, metric="e", mode=mode).chosen(steps) == best | {9}


@pytest.mark.parametrize("mode", ["min", "max"])
def test_of_equal_ones_the_later(mode):
    steps = [Saved(step, BEGAN, {"e": 1.0}) for step in (1, 2, 3)] + [Saved(4, BEGAN, {})]
    assert Keep(last=1, best=1, metric="e", mode=mode).chosen(steps) == {3, 4}


def test_from_the_config():
    train = defaults.get_config().train
    train.update({"keep": 3, "keep_best": 2, "best_mode": "max", "keep_hours": 1.5})
    expected = Keep(last=3, best=2, metric="eval/action_mse", mode="max", hours=1.5)
    assert Keep.from_config(train) == expected


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"last": 0}, "train.keep = 0: expected 1 or more"),
        ({"best": -1}, "train.keep_best = -1: expected 0 or more"),
        ({"hours": -0.5}, "train.keep_hours = -0.5: expected 0 or more"),
        ({"mode": "least"}, "train.best_mode = 'least': expected one of 'min', 'max'"),
        ({"best": 1, "metric": ""}, "train.best_metric = '': expected a name"),
    ],
)
def test_bad_numbers_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Keep(**fields)
