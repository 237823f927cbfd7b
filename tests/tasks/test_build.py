"""Configs that lack something, or fit nothing, end with one message."""

import pytest

from roam_jax.tasks.build import build


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
