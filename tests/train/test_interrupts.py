from __future__ import annotations

import os
import signal
import threading

import pytest

from roam_jax.train.interrupts import Interrupts


@pytest.fixture
def previous():
    """What the signals do outside: the numbers that came, and SIGINT as Python has it."""
    came = []
    handled = (signal.SIGTERM, signal.SIGUSR1)
    before = {number: signal.signal(number, lambda n, _: came.append(n)) for number in handled}
    yield came
    for number, handler in before.items():
        signal.signal(number, handler)


def send(number):
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_the_first_is_a_wish(previous, number):
    with Interrupts() as interrupts:
        assert interrupts.requested == 0
        send(number)
        assert interrupts.requested == number
    assert previous == []


def test_a_second_one_acts_at_once(previous):
    with Interrupts():
        send(signal.SIGINT)
        send(signal.SIGTERM)
        assert previous == [signal.SIGTERM]
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)


def test_a_warning_may_come_before_the_end(previous):
    """SLURM: SIGUSR1 some time before the limit, perhaps twice, then SIGTERM."""
    with Interrupts() as interrupts:
        send(signal.SIGUSR1)
        send(signal.SIGUSR1)
        assert interrupts.requested == signal.SIGUSR1
        send(signal.SIGTERM)
        assert interrupts.requested == signal.SIGTERM
        assert previous == []
        send(signal.SIGTERM)
        assert previous == [signal.SIGTERM]


def test_handlers_are_put_back(previous):
    with Interrupts():
        pass
    send(signal.SIGTERM)
    send(signal.SIGUSR1)
    assert previous == [signal.SIGTERM, signal.SIGUSR1]


def test_another_thread_changes_nothing(previous):
    def run():
        with Interrupts():
            send(signal.SIGTERM)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert previous == [signal.SIGTERM]
