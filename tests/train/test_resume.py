from __future__ import annotations

import os
import pathlib
import random
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from roam_jax.train import loop
from roam_jax.train.checkpoint import Checkpoints
from roam_jax.train.metrics import read_metrics
from roam_jax.train.prefetch import DEPTH
from tests.train import toy

ROOT = pathlib.Path(__file__).resolve().parents[2]


def run(workdir, batches=None):
    return loop.run(
        toy.make_task(),
        batches or toy.ToyBatches(),
        config=toy.make_config(mesh=(2, 4)),
        workdir=workdir,
        rounds=2,
        rules=toy.RULES,
    )


def child(workdir, event, step):
    command = [sys.executable, "-m", "tests.train.child", str(workdir), event, str(step)]
    return subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True)


def losses(workdir):
    rows = read_metrics(workdir / "metrics.jsonl")
    return [{k: v for k, v in row.items() if not k.startswith("seconds_")} for row in rows]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    path = tmp_path_factory.mktemp("undisturbed")
    return losses_and_state(path, run(path))


def losses_and_state(path, state):
    return losses(path), jax.tree.map(np.asarray, state)


def assert_same(undisturbed, workdir, state):
    found, state = losses_and_state(workdir, state)
    assert found == undisturbed[0]
    jax.tree.map(np.testing.assert_array_equal, state, undisturbed[1])


def test_killed_run_repeats_bit_for_bit(undisturbed, tmp_path):
    step = random.randrange(5, 8)  # after the checkpoint of step 4
    killed = child(tmp_path, "kill", step + DEPTH)  # drawn ahead while that step runs
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert (tmp_path / "checkpoints" / "4").is_dir()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "lo')  # cut in the middle of a line

    killed = child(tmp_path, "save", 8)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert (tmp_path / "checkpoints" / "8.orbax-checkpoint-tmp").is_dir()
    assert not (tmp_path / "checkpoints" / "8").exists()

    assert_same(undisturbed, tmp_path, run(tmp_path))


def test_sigterm_saves_and_exits(undisturbed, tmp_path):
    ended = child(tmp_path, "term", 6)
    assert ended.returncode == 143, ended.stderr
    assert "Traceback" not in ended.stderr
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        last = checkpoints.steps[-1]
    # Batches are drawn ahead of their step; the step that was running is finished and saved.
    assert 6 - DEPTH <= last <= 7
    assert [row["step"] for row in losses(tmp_path)] == list(range(1, last + 1))
    assert_same(undisturbed, tmp_path, run(tmp_path))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_that_ends_the_readers_too_still_saves(undisturbed, tmp_path, number):
    """A terminal or a scheduler signals every process: the next batch may never come."""

    def end():
        os.kill(os.getpid(), number)
        raise RuntimeError("a reader was ended")

    with pytest.raises(SystemExit) as stopped:
        run(tmp_path, toy.ToyBatches({6: end}))
    assert stopped.value.code == 128 + number
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.steps[-1] == losses(tmp_path)[-1]["step"]
    assert_same(undisturbed, tmp_path, run(tmp_path))


def test_a_broken_state_is_not_saved_at_the_end(tmp_path, monkeypatch):
    """The last step before the readers ended was neither logged nor checked."""
    draw = loop._draw

    def draw_until_the_end(batches, step, interrupts):
        if step < 6:
            return draw(batches, step, interrupts)
        interrupts.signal = signal.SIGTERM
        return None

    monkeypatch.setattr(loop, "_draw", draw_until_the_end)
    config = toy.make_config(mesh=(2, 4), log_every=0)
    batches = toy.ToyBatches(poison=5)
    with pytest.raises(FloatingPointError, match="step 6: loss = nan.* is step 4"):
        loop.run(
            toy.make_task(), batches, config=config, workdir=tmp_path, rounds=2, rules=toy.RULES
        )
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.steps == [4]


def test_interrupted_before_and_after_the_first_checkpoint(undisturbed, tmp_path):
    for batch, last in ((2, 2), (9, 9)):
        with pytest.raises(ZeroDivisionError):
            run(tmp_path, toy.ToyBatches({batch: lambda: 1 / 0}))
        assert losses(tmp_path)[-1]["step"] == last
    state = run(tmp_path)
    assert_same(undisturbed, tmp_path, state)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["12", "8"]
