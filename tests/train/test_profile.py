from __future__ import annotations

import gzip
import json
import os
import signal

import jax
import jax.numpy as jnp
import pytest

from roam_jax.train import profile
from roam_jax.train.profile import Profiler, parse_steps


@pytest.fixture
def traces(monkeypatch):
    """What is started and stopped, without JAX's profiler."""
    found = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: found.append("start"))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: found.append("stop"))
    return found


def run(profiler, traces, steps, before=None):
    """What happens ahead of each step: step -> "start" or "stop"."""
    for step in steps:
        if before is not None and step in before:
            os.kill(os.getpid(), profile.SIGNAL)
        traces.append(step)
        profiler.before_step(step)
    profiler.close()
    return traces


def test_the_steps_that_the_config_names(tmp_path, traces):
    found = run(Profiler("2:4", tmp_path, start=0), traces, range(6))
    assert found == [0, 1, 2, "start", 3, 4, "stop", 5]


def test_a_trace_ends_with_the_run(tmp_path, traces):
    assert run(Profiler("2:9", tmp_path, start=0), traces, range(4))[-2:] == [3, "stop"]


def test_a_resumed_run_traces_what_is_left(tmp_path, traces):
    assert run(Profiler("2:5", tmp_path, start=4), traces, (4, 5)) == [4, "start", 5, "stop"]


def test_steps_that_are_past_are_told(tmp_path, traces, caplog):
    caplog.set_level("INFO")
    assert run(Profiler("2:5", tmp_path, start=5), traces, (5, 6)) == [5, 6]
    assert caplog.messages == ["train.profile = '2:5': all of these steps are done"]


def test_a_signal_asks_for_three_steps(tmp_path, traces):
    found = run(Profiler("", tmp_path, start=0), traces, range(9), before=(2,))
    assert found == [0, 1, 2, "start", 3, 4, 5, "stop", 6, 7, 8]


def test_a_signal_in_a_trace_asks_for_another(tmp_path, traces):
    found = run(Profiler("", tmp_path, start=0), traces, range(9), before=(1, 3))
    assert found == [0, 1, "start", 2, 3, 4, "stop", "start", 5, 6, 7, "stop", 8]


def test_the_signal_is_given_back(tmp_path, traces):
    before = signal.getsignal(profile.SIGNAL)
    with Profiler("", tmp_path, start=0):
        assert signal.getsignal(profile.SIGNAL) != before
    assert signal.getsignal(profile.SIGNAL) == before


@pytest.mark.parametrize("spec", ["100", "3:3", "5:3", "a:b", "-1:3", "1:2:3", "1.5:3", ":4"])
def test_a_spec_that_names_no_steps(spec):
    with pytest.raises(ValueError, match=r"train\.profile = '.*expected steps FROM:TO"):
        parse_steps(spec)


def test_a_spec():
    assert parse_steps("100:103") == range(100, 103)
    assert not parse_steps("")


def test_the_trace_of_real_steps_comes_out(tmp_path):
    folder = tmp_path / "run" / "profile"
    step = jax.jit(lambda x: x @ x)
    x = jnp.ones((64, 64))
    with Profiler("1:3", folder, start=0) as profiler:
        for number in range(4):
            profiler.before_step(number)
            step(x).block_until_ready()
    assert [path.stat().st_size > 0 for path in folder.rglob("*.xplane.pb")] == [True]
    (events,) = folder.rglob("*.trace.json.gz")
    found = json.loads(gzip.decompress(events.read_bytes()))["traceEvents"]
    steps = [e["args"]["step_num"] for e in found if e.get("name") == "train" and "args" in e]
    assert sorted(steps) == ["1", "2"]
