"""Batches ahead of the step: their order, the position that is saved, and how it ends."""

import itertools
import threading
import time

import jax
import numpy as np
import pytest

from roam_jax.train.prefetch import DEPTH, DevicePrefetch


class Numbers:
    """Counts up to `last`; notes how many were drawn."""

    def __init__(self, last=10**6, seconds=0.0):
        self.drawn, self.last, self.seconds = 0, last, seconds

    def __next__(self):
        if self.drawn == self.last:
            raise StopIteration
        time.sleep(self.seconds)
        self.drawn += 1
        return {"number": np.array(self.drawn)}

    def get_state(self):
        return self.drawn


def settle(numbers, drawn):
    """Waits until the thread has drawn so many, and a moment more for one too many."""
    deadline = time.monotonic() + 5
    while numbers.drawn < drawn and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(0.05)


def test_batches_come_in_order_and_the_position_is_theirs():
    numbers = Numbers()
    with DevicePrefetch(numbers, jax.device_put) as ready:
        assert ready.get_state() == 0
        for expected in range(1, 6):
            batch = next(ready)
            assert int(batch["number"]) == expected and isinstance(batch["number"], jax.Array)
            settle(numbers, expected + DEPTH)
            # What was read ahead is not what was trained on.
            assert ready.get_state() == expected < numbers.drawn == expected + DEPTH


def test_no_more_than_the_depth_is_read_ahead():
    numbers = Numbers()
    with DevicePrefetch(numbers, jax.device_put, depth=3):
        settle(numbers, 3)
        assert numbers.drawn == 3


def test_the_end_and_errors_reach_the_one_who_asks():
    with DevicePrefetch(Numbers(last=2), jax.device_put) as ready:
        assert [int(batch["number"]) for batch in itertools.islice(ready, 5)] == [1, 2]
        assert next(ready, None) is None

    def refuse(batch):
        raise ValueError(f"batch {batch['number']} does not fit")

    with DevicePrefetch(Numbers(), refuse) as ready:
        for _ in range(2):
            with pytest.raises(ValueError, match="batch 1 does not fit"):
                next(ready)


def test_waiting_is_counted_and_no_thread_is_left():
    before = threading.active_count()
    with DevicePrefetch(Numbers(seconds=0.05), jax.device_put) as ready:
        next(ready), next(ready)
        assert 0.04 < ready.seconds_waited() < 0.5
        settle(ready._batches, 2 + DEPTH)
        next(ready)
        assert ready.seconds_waited() < 0.04  # it was there already
    assert threading.active_count() == before
