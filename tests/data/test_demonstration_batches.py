"""Batches of demonstrations: chunks and masks, rows by seed and position, resumes, bad input."""

import json

import numpy as np
import pytest

from roam_jax.data.demonstration_batches import Chunks, DemonstrationBatches, body_rows
from roam_jax.data.position import Process
from roam_jax.tasks.clone_task import clone_batch_spec
from tests.tasks.bodies import SPECS, Noise, noise


def batches(**changes):
    options = {"batch_size": 8, "chunk": 3, "seed": 1} | changes
    return DemonstrationBatches(noise(), **options)


def test_a_chunk_ends_with_its_episode():
    recorded = Noise(SPECS["fork"], lengths=(4, 1, 3))
    found = Chunks(recorded, chunk=3)[np.arange(8)]
    ends = np.array([3, 3, 3, 3, 4, 7, 7, 7])
    for row, end in enumerate(ends):
        for ahead in range(3):
            there = row + ahead <= end
            assert found["mask"][row, ahead] == there
            expected = recorded.actions[row + ahead if there else end]
            np.testing.assert_array_equal(found["action"][row, ahead], expected)
    np.testing.assert_array_equal(found["goal"], recorded.observations["goal"])


def test_rows_follow_from_seed_and_position():
    one, other = batches(), batches()
    first = [next(one) for _ in range(3)]
    spec = clone_batch_spec(SPECS, rows=4, chunk=3, pixels=0)
    assert {n: (x.shape, x.dtype) for n, x in first[0].items()} == {
        n: (s.shape, s.dtype) for n, s in spec.items()
    }
    for batch in first:
        again = next(other)
        assert all(np.array_equal(batch[name], again[name]) for name in batch)
    assert not np.array_equal(first[0]["chain/action"], first[1]["chain/action"])
    assert not np.array_equal(next(batches(seed=2))["chain/tip"], first[0]["chain/tip"])


def test_a_resume_and_processes_see_the_same_rows():
    one = batches()
    for _ in range(2):
        next(one)
    state = json.loads(json.dumps(one.get_state()))
    expected = next(one)
    shares = []
    for index in range(2):
        share = batches(process=Process(index, 2))
        share.set_state(state)
        shares.append(next(share))
    for name, values in expected.items():
        np.testing.assert_array_equal(np.concatenate([s[name] for s in shares]), values)
    with pytest.raises(ValueError, match="another loader: seed: saved 1, now 2"):
        batches(seed=2).set_state(state)
    with pytest.raises(ValueError, match="chunk: saved 3, now 2"):
        batches(chunk=2).set_state(state)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: body_rows(6, bodies=4), r"train.batch_size = 6 .* 4 bodies \(nearest: 4 or 8\)"),
        (lambda: batches(batch_size=6, process=Process(0, 2)), "3 rows of each of 2 bodies do not"),
        (lambda: batches(chunk=0), "data.chunk = 0: expected at least 1"),
        (lambda: Chunks(Noise(SPECS["fork"], lengths=()), chunk=1), "reach/fork hold no step"),
    ],
)
def test_what_does_not_fit_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_steps_of_an_episode_that_lie_apart_are_refused():
    recorded = Noise(SPECS["chain"])
    recorded.episode = recorded.episode[::-1].copy()
    Chunks(recorded, chunk=2)
    recorded.episode[0] = recorded.episode[-1]
    with pytest.raises(ValueError, match="steps of an episode lie apart"):
        Chunks(recorded, chunk=2)
