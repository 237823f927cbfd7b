"""Model directories: every value back, the card says what is known, damage is named."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from roam_jax.evaluate.model_directory import (
    is_model_directory,
    read_model_directory,
    write_model_directory,
)
from roam_jax.evaluate.parameters import count_parameters, stored_parameters
from roam_jax.tasks.datasets import saved_statistics
from roam_jax.train import names
from roam_jax.train.state import partition
from roam_jax.train.workdir import plain

COMMAND = "python -m convert export --workdir runs/x --dst out"


@pytest.fixture(scope="module")
def saved(experiment, params):
    """Arguments of `write_model_directory` for a graft."""
    trained, _ = partition(params, experiment.task.trainable)
    return {
        "config": plain(experiment.config),
        "provenance": experiment.provenance(),
        "params_trainable": names.flatten(trained),
        "step": 6,
        "command": COMMAND,
    }


def test_everything_comes_back(saved, experiment, tmp_path):
    write_model_directory(tmp_path / "out", **saved)
    assert is_model_directory(tmp_path / "out")
    found = read_model_directory(tmp_path / "out")
    assert found.step == 6
    assert found.config == saved["config"]
    assert found.provenance == json.loads(json.dumps(saved["provenance"]))
    assert saved_statistics(found.provenance) == {"": experiment.members[0].statistics}
    assert found.trainable.keys() == saved["params_trainable"].keys()
    for name, value in saved["params_trainable"].items():
        assert found.trainable[name].dtype == np.float32
        np.testing.assert_array_equal(found.trainable[name], value)
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files == {"config.json", "model.safetensors", "statistics.json", "README.md"}
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (written["rounds"], written["step"], written["command"]) == (2, 6, COMMAND)


PSNR = {"mean": 21.25, "interval": [20.5, 22.0]}
FIGURES = {"windows": 4, "episodes": 2, "mean_colour_psnr": 15.0, "psnr_gain": 6.25}
REPORT = {"step": 6, "task": "vae", "splits": {"val": {**FIGURES, "psnr": PSNR}}, "overrides": {}}


def test_the_card(saved, experiment, tmp_path):
    """Data, counts and figures are those of the run."""
    task = experiment.task
    counts = count_parameters(stored_parameters(task), task.trainable)
    write_model_directory(tmp_path / "out", **saved, parameters=counts, report=REPORT)
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("# A CogVideoX graft after 6 steps\n")
    assert COMMAND in card
    for split, source in experiment.splits.items():
        about = source.describe()
        row = f"| {split} | {about['dataset']} | {about['episodes']} | {about['windows']} |"
        assert row in card
    for name, value in experiment.fingerprints.items():
        assert f"| {name} | `{value}` |" in card
    loop = 2 * 2 * (2 * 32 + 1)  # blocks x rounds x (two embeddings and a gate)
    assert f"| loop | {loop} |" in card
    trained = sum(np.size(value) for value in saved["params_trainable"].values())
    frozen = sum(row["count"] for row in counts if not row["trains"])
    assert f"| **all** | {trained:,} |" in card and f"| **all** | {frozen:,} |" in card
    assert "val: 4 windows of 2 episodes" in card and "21.2500 [20.5000, 22.0000] dB" in card
    assert "Not measured" not in card
    assert "yaw (rad)" in card


def test_what_is_not_known_is_said(saved, tmp_path):
    write_model_directory(tmp_path / "out", **saved | {"provenance": {}})
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Not measured." in card and "not recorded" in card and "not counted" in card
    assert read_model_directory(tmp_path / "out").provenance["statistics"] == {}


def test_only_counts_are_grouped_and_bars_keep_their_cell(saved, tmp_path):
    config = saved["config"] | {"seed": 12345}
    data = {"train": {"dataset": "a|b", "episodes": 12345, "windows": 7, "cameras": ["x"]}}
    changed = {"config": config, "provenance": saved["provenance"] | {"data": data}}
    write_model_directory(tmp_path / "out", **saved | changed)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| seed | 12345 |" in card and r"| train | a\|b | 12,345 | 7 | x |" in card


def test_figures_under_other_settings_are_marked(saved, tmp_path):
    measured = REPORT | {"overrides": {"data.root": "a -> b"}}
    write_model_directory(tmp_path / "out", **saved, report=measured)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "settings other than the run's: data.root: a -> b" in card


def test_bad_input(saved, tmp_path):
    with pytest.raises(ValueError, match="the report is of step 5, the model of step 6"):
        write_model_directory(tmp_path / "out", **saved, report={"step": 5})
    with pytest.raises(ValueError, match="out: no trained parameters to write"):
        write_model_directory(tmp_path / "out", **saved | {"params_trainable": {}})
    with pytest.raises(FileExistsError, match="exists: remove it"):
        write_model_directory(tmp_path, **saved)
    broken = saved["params_trainable"] | {"x": jnp.zeros(3), "y": "no array"}
    with pytest.raises(ValueError, match="could not convert"):
        write_model_directory(tmp_path / "out", **saved | {"params_trainable": broken})
    assert list(tmp_path.iterdir()) == []


def test_damage_is_named(saved, tmp_path):
    out = tmp_path / "out"
    write_model_directory(out, **saved)

    def refuse(message, *, error=ValueError):
        with pytest.raises(error, match=message):
            read_model_directory(out)

    weights = (out / "model.safetensors").read_bytes()
    (out / "model.safetensors").write_bytes(weights[:-4])
    refuse("model.safetensors: ends early")
    (out / "model.safetensors").unlink()
    refuse("out: model.safetensors: no such file", error=FileNotFoundError)
    (out / "model.safetensors").write_bytes(weights)
    (out / "statistics.json").write_text("{")
    refuse("statistics.json: no JSON")
    config = json.loads((out / "config.json").read_text())
    for text in ("[]", '{"": 3}'):
        (out / "statistics.json").write_text(text)
        refuse("statistics.json: holds .*, expected an object of objects")
    (out / "statistics.json").write_text("{}")
    sections = {name: value for name, value in config["config"].items() if name != "loop"}
    for found, lacking in ((sections, "loop"), ([], "backbone, canvas")):
        (out / "config.json").write_text(json.dumps(config | {"config": found}))
        refuse(f"config.json: config has no section {lacking}")
    (out / "config.json").write_text(json.dumps(config | {"provenance": []}))
    refuse("config.json: expected config, provenance and step, got TypeError")
    del config["step"]
    (out / "config.json").write_text(json.dumps(config))
    refuse("config.json: expected config, provenance and step, got KeyError")
    (out / "config.json").write_text(json.dumps(config | {"format": "roam_jax model, version 7"}))
    assert is_model_directory(out)
    refuse("config.json: format = 'roam_jax model, version 7', expected 'roam_jax model, version 1")
    (out / "config.json").write_text('{"architectures": ["T5EncoderModel"]}')
    assert not is_model_directory(out)
    refuse("no model directory, expected config.json and model", error=FileNotFoundError)
    assert not is_model_directory(tmp_path / "nowhere")
