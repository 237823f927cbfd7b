"""Configs that lack something, or fit nothing, end with one message."""

import re

import pytest

from roam_jax.tasks.build import build
from roam_jax.tasks.sketch import sketch


def test_the_full_config_says_all_that_it_needs(robot_config):
    robot_config.backbone.path = robot_config.data.root = ""
    with pytest.raises(ValueError, match="(?s)backbone.path.*convert import.*data.root") as error:
        build(robot_config)
    assert "data.text" not in str(error.value)  # that one is given


@pytest.mark.parametrize(
    "section, key, value, message",
    [
        ("train", "task", "grafts", "train.task = 'grafts': expected one of graft"),
        ("data", "frames", 10, "data.frames = 10: .*nearest: 9 or 13"),
        ("canvas", "t_current", 3, "canvas.t_current = 3: expected 1 <= t_current < 3"),
        ("data", "image_size", 60, "data.image_size = 60: expected a multiple of 8"),
        ("data", "camera", "image_7", "image_7"),
        ("loop", "rounds", 0, "loop.rounds = 0: expected at least 1"),
        ("loop", "gate_scope", "tokens", "loop.gate_scope = 'tokens'.*did you mean 'token'"),
        ("decoder", "kind", "pool", "decoder.kind = 'pool'"),
        ("canvas", "thought_cells", -1, "canvas.thought_cells = -1"),
        ("canvas", "reward_weight", 1.0, "canvas.reward_weight = 1.0 without a region"),
        ("loss", "clean_timestep", "zeros", "loss.clean_timestep = 'zeros': expected one of"),
    ],
)
def test_values_that_do_not_fit_are_refused(robot_config, section, key, value, message):
    robot_config[section][key] = value
    with pytest.raises(ValueError, match=message):
        build(robot_config)


@pytest.mark.parametrize("make", [build, sketch])
@pytest.mark.parametrize(
    "key, value, message",
    [
        ("mesh.fsdp", 0, "mesh.fsdp = 0: expected at least 1, or -1 for the rest"),
        ("mesh.data", -7, "mesh.data = -7: expected at least 1, or -1 for the rest"),
        ("mesh.fsdp", -1, "mesh.data = -1, mesh.fsdp = -1: expected at most one -1"),
        ("train.batch_size", 0, "train.batch_size = 0: expected at least 1"),
        ("loop.curriculum", (5, 5, 5, 5), "(5, 5, 5, 5): expected fewer steps than loop.rounds"),
        ("loop.curriculum", (-5,), "loop.curriculum = (-5,): expected rising steps above 0"),
    ],
)
def test_runs_that_could_not_start_are_refused(robot_config, make, key, value, message):
    section, leaf = key.split(".")
    robot_config[section][leaf] = value
    with pytest.raises(ValueError, match=re.escape(message)):
        make(robot_config)


def test_a_curriculum_without_a_loop_is_refused(robot_config):
    robot_config.train.task, robot_config.loop.curriculum = "video", (10,)
    with pytest.raises(ValueError, match=r"loop.curriculum = \(10,\): train.task = video has no"):
        build(robot_config)


def test_a_backbone_that_is_not_there_is_named(robot_config, tmp_path):
    robot_config.backbone.path = str(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="nothing"):
        build(robot_config)


def test_text_of_another_size_is_refused(robot_config, weights, tmp_path):
    import json
    import shutil

    shutil.copytree(weights, tmp_path / "other")
    config = tmp_path / "other" / "transformer" / "config.json"
    sizes = json.loads(config.read_text())
    config.write_text(json.dumps({**sizes, "max_text_seq_length": 226}))
    robot_config.backbone.path = str(tmp_path / "other")
    with pytest.raises(ValueError, match=r"\(1, 512\), the backbone expects \(226, 512\)"):
        build(robot_config)


def test_provenance_names_versions_and_fingerprints(robot_config):
    about = build(robot_config).provenance()
    assert set(about["fingerprints"]) == {"data", "data/val", "transformer", "vae"}
    assert about["packages"]["jax"] not in ("", "not installed")
