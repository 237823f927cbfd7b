"""`describe` and `--dry_run` of a canvas model: what is printed, written and drawn."""

import json

import numpy as np
import pytest

import train as train_command
from roam_jax.cli import describe, describe_scene
from roam_jax.model.sizes import model_parameters, step_flops
from roam_jax.tasks.scene_build import scene_experiment
from tests.tasks.scenes import small_model, toy_config
from tests.test_commands import command

TOY = "configs/canvas_toy.py:tiny"


def test_the_model_is_described(tmp_path, capsys):
    assert command(describe.main, "--config", TOY, "--out", tmp_path) == 0
    printed = capsys.readouterr().out
    rows = [line.split() for line in printed.splitlines()]
    module = scene_experiment(toy_config()).model.module
    counts = model_parameters(module)
    groups = {row[0]: row[2] for row in rows if len(row) == 4 and row[1] == "trained"}
    assert groups["encoders"] == f"{counts['encoders']:,}"
    assert groups["loop"] == f"{counts['loop']:,}"
    assert groups["blocks"] == f"{counts['blocks'] + counts['norm']:,}"
    assert ["answer", "tokens", "10", "classification", "mlp"] in rows
    assert ["thought", "queries", "-", "-", "-"] in rows
    assert "120 cells" in printed and "a graft" not in printed and "VAE" not in printed
    report = json.loads((tmp_path / "describe.json").read_text())
    assert [row["rounds"] for row in report["flops"]["rounds"]] == [1, 2]
    last = report["flops"]["rounds"][-1]
    assert last["total"] - last["passes"].get("recomputed", 0) == 2 * step_flops(module, rounds=2)
    assert {"attention", "projections", "feed-forward", "encoders, decoders"} <= {*last["parts"]}
    reward = next(r for r in report["canvas"]["regions"] if r["name"] == "reward")
    assert reward["predicted_frames"] == [0, 1, 2, 3] and report["canvas"]["t_current"] == 2
    drawn = {path.name for path in tmp_path.glob("*.png")}
    assert drawn == {"canvas.png", "topology.png", "mask.png", "plan.png"}


def test_the_scene_is_described(tmp_path, capsys):
    line = ("--config", TOY, "--what", "data", "--out", tmp_path)
    assert command(describe.main, *line) == 0
    assert "scene multimodal" in capsys.readouterr().out
    streams = {
        row["name"]: row for row in json.loads((tmp_path / "data.json").read_text())["streams"]
    }
    assert streams["answer"]["cells"] == 4 and streams["future_video"]["cells"] == 32
    assert sum(streams["answer"]["shares"].values()) == pytest.approx(1)
    assert (tmp_path / "examples.png").exists()


def test_figures_of_streams_are_those_of_the_examples():
    model = small_model()
    found = {row["name"]: row for row in describe_scene.stream_figures(model)}
    assert found["pose"]["mean"] == pytest.approx(0, abs=0.1)
    assert found["pose"]["deviation"] == pytest.approx(1, abs=0.1)
    assert found["words"]["majority"] == pytest.approx(0.2, abs=0.04)  # five words, all alike
    assert list(found["answer"]["shares"]) == ["0", "1", "2", "3"]
    assert all(np.isfinite(found["film"][k]) for k in ("least", "most"))


def test_a_dry_run_draws_examples(tmp_path, capsys):
    line = ("--dry_run", "--config", TOY, "--workdir", tmp_path / "run")
    assert command(train_command.main, *line) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["scene_index", "uint32", "(2,)"] in rows
    assert ["reward", "output", "scalars", "4", "4", "regression"] in rows
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["first_batch.png"]
