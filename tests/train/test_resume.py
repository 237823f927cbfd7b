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

from benchmarks.fault_runs import logged
from roam_jax.train import loop
from roam_jax.train.checkpoint import Checkpoints
from roam_jax.train.interrupts import REQUEUE
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


def child(workdir, event, step, *options, devices=8):
    command = [sys.executable, "-m", "tests.train.child", str(workdir), event, str(step)]
    flags = os.environ["XLA_FLAGS"].replace("count=8", f"count={devices}")
    return subprocess.run(
        [*command, *map(str, options)],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": flags},
        capture_output=True,
        text=True,
    )


def losses(workdir):
    """Logged rows without what is measured anew in every run."""
    return [{"step": step, **row} for step, row in logged(workdir).items()]


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
    step = random.randrange(9, 11)  # step 8 began to be saved when step 4 was
    killed = child(tmp_path, "kill", step + DEPTH)  # drawn ahead while that step runs
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert (tmp_path / "checkpoints" / "4").is_dir()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "lo')  # cut in the middle of a line

    killed = child(tmp_path, "save", 12)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert list((tmp_path / "checkpoints").glob("12.saving*"))
    assert not (tmp_path / "checkpoints" / "12").exists()

    assert_same(undisturbed, tmp_path, run(tmp_path))


@pytest.mark.parametrize("event", ["term", "usr1"])
def test_a_signal_saves_and_asks_to_be_started_again(undisturbed, tmp_path, event):
    ended = child(tmp_path, event, 6)
    assert ended.returncode == REQUEUE == os.EX_TEMPFAIL, ended.stderr
    assert "Traceback" not in ended.stderr
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        last = checkpoints.steps[-1]
    # Batches are drawn ahead of their step; the step that was running is finished and saved.
    assert 6 - DEPTH <= last <= 7
    assert [row["step"] for row in losses(tmp_path)] == list(range(1, last + 1))
    assert_same(undisturbed, tmp_path, run(tmp_path))


def test_other_devices_continue_the_losses(undisturbed, tmp_path):
    for devices, mesh, step in ((8, (2, 4), 3), (4, (1, 4), 7)):
        ended = child(tmp_path, "term", step, "--mesh", *mesh, devices=devices)
        assert ended.returncode == REQUEUE, ended.stderr
    ended = child(tmp_path, "none", 0, "--mesh", 2, 1, devices=2)
    assert ended.returncode == 0, ended.stderr
    found, expected = losses(tmp_path), undisturbed[0]
    assert [row["step"] for row in found] == [row["step"] for row in expected]
    for name in ("loss", "grad_norm"):
        values = ([row[name] for row in rows] for rows in (found, expected))
        np.testing.assert_allclose(*values, rtol=1e-5, err_msg=name)
    # On eight devices again, from what two have saved.
    state = run(tmp_path)
    jax.tree.map(
        lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7),
        jax.tree.map(np.asarray, state),
        undisturbed[1],
    )


def test_a_damaged_checkpoint_is_passed_over(undisturbed, tmp_path, caplog):
    with pytest.raises(ZeroDivisionError):
        run(tmp_path, toy.ToyBatches({10: lambda: 1 / 0}))
    array = max((tmp_path / "checkpoints" / "8").rglob("d/*"), key=lambda f: f.stat().st_size)
    os.truncate(array, array.stat().st_size - 1)
    assert_same(undisturbed, tmp_path, run(tmp_path))
    assert f"8 is damaged: {array.relative_to(tmp_path / 'checkpoints' / '8')} has" in caplog.text
    names = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert names == {"8", "8.damaged", "12"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_that_ends_the_readers_too_still_saves(undisturbed, tmp_path, number):
    """A terminal or a scheduler signals every process: the next batch may never come."""

    def end():
        os.kill(os.getpid(), number)
        raise RuntimeError("a reader was ended")

    with pytest.raises(SystemExit) as stopped:
        run(tmp_path, toy.ToyBatches({6: end}))
    assert stopped.value.code == REQUEUE
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.steps[-1] == losses(tmp_path)[-1]["step"]
    assert_same(undisturbed, tmp_path, run(tmp_path))


def test_interrupted_before_and_after_the_first_checkpoint(undisturbed, tmp_path):
    for batch, last in ((2, 2), (9, 9)):
        with pytest.raises(ZeroDivisionError):
            run(tmp_path, toy.ToyBatches({batch: lambda: 1 / 0}))
        assert losses(tmp_path)[-1]["step"] == last
    state = run(tmp_path)
    assert_same(undisturbed, tmp_path, state)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["12", "8"]
