"""A workdir belongs to one process at a time."""

import json
import os
import subprocess
import sys
import threading
import time

import pytest

from roam_jax.train import lock, loop
from tests.train import toy

HOLD = """
import pathlib, sys, time
from roam_jax.train.lock import only_run
with only_run(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that trains in the folder."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_start_is_refused_by_name(tmp_path, holder):
    found = f'another process trains there .*"pid": {holder.pid}'
    with pytest.raises(ValueError, match=found), lock.only_run(tmp_path, seconds=0.3):
        pass


def test_a_killed_process_leaves_no_lock(tmp_path, holder):
    threading.Timer(0.3, holder.kill).start()
    began = time.monotonic()
    with lock.only_run(tmp_path, seconds=30):
        assert json.loads((tmp_path / lock.FILE).read_text())["pid"] == os.getpid()
    assert time.monotonic() - began < 20


def test_a_run_holds_it(tmp_path):
    seen = {}

    def look():
        with pytest.raises(ValueError, match="another process"), lock.only_run(tmp_path, seconds=0):
            pass
        seen["refused"] = True

    loop.run(
        toy.make_task(),
        toy.ToyBatches({1: look}),
        config=toy.make_config(steps=4),
        workdir=tmp_path,
        rounds=1,
        rules=toy.RULES,
    )
    assert seen["refused"]
    with lock.only_run(tmp_path, seconds=0):
        pass
