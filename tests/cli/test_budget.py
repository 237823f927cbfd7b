"""The command, from its flags to the report; what it works out is tested in tests/budget."""

import argparse
import json
import re
import subprocess
import sys

import pytest

from roam_jax.cli.budget import main, memory_size, mesh_sizes
from roam_jax.cli.budget_text import budget_lines

CONFIG = ["--config", "configs/canvas_toy.py:tiny"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [("fsdp=8", {"fsdp": 8}), ("data=-1,tensor=2", {"data": -1, "tensor": 2})],
)
def test_meshes_are_parsed(text, expected):
    assert mesh_sizes(text) == expected


@pytest.mark.parametrize("text", ["", "fsdp", "fsdp=0", "rows=2", "fsdp=2,fsdp=4", "fsdp=two"])
def test_other_meshes_are_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match="expected AXIS=N,.*data, fsdp"):
        mesh_sizes(text)


@pytest.mark.parametrize(("text", "expected"), [("40GB", 40e9), ("1.5 GiB", 1.5 * (1 << 30))])
def test_sizes_are_parsed(text, expected):
    assert memory_size(text) == expected


@pytest.mark.parametrize("text", ["40", "GB", "0GB", "40 gigabytes", "-1GB"])
def test_other_sizes_are_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match="expected a size.*40GB"):
        memory_size(text)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--devices", "0"], "--devices 0: expected 1 or more"),
        (["--rounds", "0"], "--rounds 0: expected 1 or more"),
        (["--devices", "12"], "--devices 12: expected a multiple of --devices_per_node = 8"),
        (["--accelerator", "a100"], "accelerator = 'a100': expected one of a100-40"),
        (["--compile_for", "tpu"], "--compile_for = 'tpu': expected one of auto, cuda, cpu"),
        (["--json", "nowhere/budget.json"], "--json nowhere/budget.json: no folder nowhere"),
        (["--config.mesh.fspd=8"], "did you mean --config.mesh.fsdp"),
    ],
)
def test_bad_flags_are_named(flags, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        main([*CONFIG, *flags])


def run(tmp_path, *flags):
    out = tmp_path / "budget.json"
    command = [sys.executable, "-m", "roam_jax", "budget", *CONFIG, "--json", str(out), *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done, out


def test_a_budget_in_a_process_of_its_own(tmp_path):
    flags = ["--devices", "4", "--mesh", "fsdp=2", "--no_compile", "--rounds", "1"]
    done, out = run(tmp_path, *flags, "--config.train.batch_size=8")
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert found["mesh"] == {"data": 2, "fsdp": 2, "sequence": 1, "tensor": 1}
    assert (found["rounds"], found["rows"], found["change"]) == (1, 2, None)
    assert done.stdout.splitlines() == list(budget_lines(found))
    assert "fits" in done.stdout
    assert "links not known: not compiled" in done.stdout
    # Of a small step as well the numbers say something.
    assert float(re.search(r"([\d.]+) MFLOP a device", done.stdout)[1]) > 0
    assert float(re.search(r"([\d.]+) ms a step, without links", done.stdout)[1]) > 0


def test_a_mesh_that_does_not_fit_is_one_message(tmp_path):
    done, out = run(tmp_path, "--devices", "4", "--mesh", "data=3", "--no_compile")
    assert done.returncode == 2
    assert "mesh.data = 3" in done.stderr
    assert "product of 4" in done.stderr
    assert "Traceback" not in done.stderr
    assert not out.exists()
