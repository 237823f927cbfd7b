"""`describe` and `--dry_run` of a cloned policy: what is printed, written and drawn."""

import json

import pytest

import train as train_command
from roam_jax.cli import describe
from roam_jax.tasks.clone_build import clone_experiment
from tests.tasks.bodies import clone_config
from tests.test_commands import ROOT, command

TINY = str(ROOT / "configs/mujoco_bc.py:tiny")
OPTIONS = ["--config.data.demonstrations=2", "--config.model.depth=1"]
ONE_ROUND = ["--config.loop.rounds=1", "--config.loop.gate=off"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ROAM_CACHE", str(tmp_path / "cache"))


def test_the_policy_is_described(tmp_path, capsys):
    out = tmp_path / "out"
    only = "--config.data.bodies=('arm2',)"
    assert command(describe.main, "--config", TINY, "--out", out, *OPTIONS, *ONE_ROUND, only) == 0
    printed = capsys.readouterr().out
    rows = [line.split() for line in printed.splitlines()]
    assert "arm2:" in printed.splitlines() and "VAE" not in printed
    assert any(row[:2] == ["action_shoulder", "vectors"] or "regression" in row for row in rows)
    report = json.loads((out / "describe.json").read_text())
    layout = clone_experiment(clone_config()).model.bodies["arm2"].module.layout
    assert report["bodies"]["arm2"]["canvas"]["cells"] == sum(
        map(layout.region_numel, layout.regions)
    )
    assert [row["rounds"] for row in report["flops"]["rounds"]] == [1]
    drawn = {path.name for path in (out / "arm2").glob("*.png")}
    assert drawn == {"canvas.png", "topology.png", "mask.png", "plan.png"}
    assert not (tmp_path / "cache").exists()  # a model is described without demonstrations


def test_demonstrations_are_described_and_a_dry_run_draws_them(tmp_path, capsys):
    out = tmp_path / "out"
    asked = ["--config", TINY, "--what", "data", "--out", out, *OPTIONS]
    assert command(describe.main, *asked) == 0
    printed = capsys.readouterr().out
    assert "train arm2 2 episodes, 80 steps; 0 dropped (diverged)" in printed
    report = json.loads((out / "data.json").read_text())
    (tip,) = (row for row in report["bodies"]["arm3"] if row["stream"] == "tip")
    assert tip["numbers"] == ["x", "y", "z"] and tip["least"][0] < tip["most"][0]
    assert {path.name for path in out.glob("*.png")} == {
        "first_batch_arm2.png",
        "first_batch_arm3.png",
    }
    run = tmp_path / "run"
    assert (
        command(train_command.main, "--dry_run", "--config", TINY, "--workdir", run, *OPTIONS) == 0
    )
    printed = capsys.readouterr().out
    assert "arm3: 3 joints, 10 cells, sees joints 3 x 3, tip 1 x 3, goal 1 x 3" in printed
    assert ["arm2/mask", "bool", "(2,", "4)"] in [line.split() for line in printed.splitlines()]
    assert len(list(run.glob("*.png"))) == 2
