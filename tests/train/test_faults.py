"""The short version of `benchmarks/faults.py`; the table of the long one is in docs."""

from __future__ import annotations

import os
import random
import subprocess

import pytest

from benchmarks import fault_kinds
from benchmarks.fault_runs import Toy

PROGRAM = Toy(steps=30, save_every=3)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return fault_kinds.undisturbed(PROGRAM, tmp_path_factory.mktemp("faults") / "undisturbed")


def assert_right(faults, count):
    faults = list(faults)
    assert len(faults) == count
    assert [fault.problem for fault in faults] == [""] * count


def test_kills(undisturbed):
    assert_right(fault_kinds.kills(PROGRAM, undisturbed, 3, random.Random(1)), 3)


def test_damage(undisturbed):
    assert_right(fault_kinds.damages(PROGRAM, undisturbed, 2, random.Random(1)), 2)


def test_a_full_disk(tmp_path):
    if os.geteuid() != 0 or subprocess.run(["unshare", "-m", "true"], check=False).returncode:
        pytest.skip("only root may mount a small disk")
    program = Toy(steps=30, save_every=3, keep=30)
    assert_right(fault_kinds.full_disks(program, tmp_path, 1, random.Random(1)), 1)
