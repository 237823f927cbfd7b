"""Which examples a step of a scene learns from."""

import json

import jax
import numpy as np
import pytest

from roam_jax.data.position import Process
from roam_jax.data.scene_batches import (
    SceneBatches,
    scene_batch,
    scene_batch_spec,
    validation_batch,
)
from roam_jax.data.scene_random import (
    VALIDATION_SEED,
    between,
    either_way,
    example_numbers,
    order_of,
)


def test_batches_count_up():
    batches = SceneBatches(batch_size=6, seed=3)
    found = [next(batches) for _ in range(3)]
    numbers = np.concatenate([batch["scene_index"] for batch in found])
    np.testing.assert_array_equal(numbers, np.arange(18))
    for batch in found:
        assert {name: (v.shape, v.dtype) for name, v in batch.items()} == {
            name: (spec.shape, spec.dtype) for name, spec in scene_batch_spec(6).items()
        }
        assert (batch["scene_seed"] == 3).all()


def test_processes_share_each_batch():
    whole = SceneBatches(batch_size=6, seed=0)
    parts = [SceneBatches(batch_size=6, seed=0, process=Process(i, 3)) for i in range(3)]
    for _ in range(4):
        rows = np.concatenate([next(part)["scene_index"] for part in parts])
        np.testing.assert_array_equal(rows, next(whole)["scene_index"])


def test_a_saved_position_goes_on():
    first = SceneBatches(batch_size=4, seed=1)
    for _ in range(5):
        next(first)
    state = json.loads(json.dumps(first.get_state()))
    again = SceneBatches(batch_size=4, seed=1, process=Process(1, 2))
    again.set_state(state)
    np.testing.assert_array_equal(next(again)["scene_index"], next(first)["scene_index"][2:])
    again.close()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 2}, "another loader: seed: saved 2, now 1"),
        ({"batch_size": 5}, "another loader: batch_size: saved 5, now 4"),
        ({"position": None}, r"no position in \['batch_size', 'seed'\]"),
    ],
)
def test_a_state_of_other_batches_is_refused(change, message):
    batches = SceneBatches(batch_size=4, seed=1)
    state = {**batches.get_state(), **change}
    state = {name: value for name, value in state.items() if value is not None}
    with pytest.raises(ValueError, match=message):
        batches.set_state(state)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"batch_size": 0}, "train.batch_size = 0: expected at least 1"),
        ({"seed": -1}, r"seed = -1: expected 0 <= seed < 2\*\*32 - 1"),
        ({"seed": VALIDATION_SEED}, "seed = 4294967295: .* validated"),
        ({"process": Process(2, 2)}, "process 2 of 2"),
        ({"process": Process(0, 3)}, r"4 does not divide by 3 processes \(nearest: 3 or 6\)"),
    ],
)
def test_bad_input(wrong, message):
    with pytest.raises(ValueError, match=message):
        SceneBatches(**{"batch_size": 4, "seed": 0, **wrong})


def test_validation_has_a_stream_of_its_own():
    batch = validation_batch(7, 3)
    assert batch["scene_index"].tolist() == [7, 8, 9]
    assert (batch["scene_seed"] == VALIDATION_SEED).all()


def test_numbers_begin_again_after_the_last():
    assert scene_batch(0, 2**32 - 1, 2)["scene_index"].tolist() == [2**32 - 1, 0]


def test_the_numbers_of_an_example_are_those_of_its_key():
    seed, index = np.uint32(5), np.uint32(2**32 - 1)
    drawn = jax.jit(lambda s, i: example_numbers(s, i, {"a": (2, 3), "b": (), "c": (4,)}))(
        seed, index
    )
    key = jax.random.fold_in(jax.random.key(5, impl="threefry2x32"), index)
    whole = np.asarray(jax.random.uniform(key, (11,)))
    np.testing.assert_array_equal(drawn["a"], whole[:6].reshape(2, 3))
    np.testing.assert_array_equal(drawn["b"], whole[6])
    np.testing.assert_array_equal(drawn["c"], whole[7:])


def test_stretching():
    numbers = jax.numpy.array([0.0, 0.25, 0.5, 0.75])
    np.testing.assert_allclose(between(-1.0, 3.0, numbers), [-1, 0, 1, 2])
    # Both halves of [0, 1) cover low..high.
    np.testing.assert_allclose(either_way(1.0, 3.0, numbers), [-3, -2, 1, 2])


def test_order_is_the_rank():
    numbers = np.random.default_rng(0).random((50, 7)).astype(np.float32)
    ranks = jax.vmap(order_of)(jax.numpy.asarray(numbers))
    np.testing.assert_array_equal(ranks, numbers.argsort(axis=1).argsort(axis=1))
    # Equal numbers still make an order.
    assert order_of(jax.numpy.array([0.5, 0.1, 0.5])).tolist() == [1, 0, 2]
