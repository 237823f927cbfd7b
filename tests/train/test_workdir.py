from __future__ import annotations

import json
import pathlib

import pytest

from roam_jax.cli.arguments import leaf_items, load_config
from roam_jax.train.workdir import Workdir, differences, plain, with_later_leaves
from tests.train import toy

PROVENANCE = {"git": "abc", "fingerprints": {"data": "d1", "vae": "v1"}}


@pytest.fixture
def folder(tmp_path):
    folder = Workdir(tmp_path / "deep" / "run")
    folder.create(toy.make_config(), PROVENANCE)
    return folder


def test_config_and_provenance_come_back(folder):
    config = toy.make_config()
    assert folder.read() == (config.to_dict(), PROVENANCE)
    assert list(json.loads(folder.config_file.read_text())) == ["config", "provenance"]
    assert [path.name for path in folder.path.iterdir()] == ["config.json"]


def test_same_config_resumes_and_keeps_the_first_provenance(folder):
    later = PROVENANCE | {"git": "def"}
    folder.require(toy.make_config(), later)
    folder.create(toy.make_config(), later)
    assert folder.read()[1] == PROVENANCE


def test_another_config_is_refused_with_its_keys(folder):
    config = toy.make_config(log_every=7, save_every=8, eval_every=9, keep=1, batch_size=32)
    config.optim.lr = 0.5
    config.unlock()
    config.extra = "x"
    with pytest.raises(ValueError, match="was made with another config") as error:
        folder.require(config, PROVENANCE)
    changes = "extra: (absent) -> x; optim.lr: 0.01 -> 0.5; train.batch_size: 16 -> 32."
    assert str(folder.path) in str(error.value)
    assert f"config: {changes} Use another" in str(error.value)


def test_a_run_of_an_earlier_version_resumes(folder):
    """Its config lacks a leaf that came later; another value of it is another run."""
    saved = json.loads(folder.config_file.read_text())
    saved["config"]["data"] = {}
    folder.config_file.write_text(json.dumps(saved))
    config = toy.make_config()
    config.unlock()
    config.data = {"posterior": "mean"}
    folder.require(config, PROVENANCE)
    config.data.posterior = "sample"
    with pytest.raises(ValueError, match="data.posterior: mean -> sample"):
        folder.require(config, PROVENANCE)


def test_a_run_from_before_the_canvas_model_resumes(tmp_path):
    """Its config.json, as that version wrote it, has no leaf more or less after completion."""
    root = pathlib.Path(__file__).resolve().parents[2]
    saved = (root / "tests/golden/config_before_canvas.json").read_text()
    (tmp_path / "config.json").write_text(saved)
    config = load_config(str(root / "configs/bridge_3loop.py:tiny"))
    assert not differences(with_later_leaves(json.loads(saved)["config"]), plain(config))
    Workdir(tmp_path).require(config, {})
    changes = {"loop.reinject": "scalar", "model.width": 8, "canvas.predict": ("video",)}
    for key, value in changes.items():
        other = config.copy_and_resolve_references()
        other.update_from_flattened_dict({key: value})
        assert dict(leaf_items(other))[key] == value
        with pytest.raises(ValueError, match=f"another config: {key}: .* -> "):
            Workdir(tmp_path).require(other, {})


def test_what_only_changes_the_log_may_differ(folder):
    folder.require(toy.make_config(log_every=7, save_every=8, eval_every=9, keep=1), PROVENANCE)


def test_other_data_or_weights_are_refused(folder):
    changed = {"fingerprints": {"data": "d2", "vae": "v1"}}
    with pytest.raises(ValueError, match="other data or weights: data: d1 -> d2"):
        folder.require(toy.make_config(), changed)


def test_other_encoded_windows_are_refused(folder, tmp_path):
    def provenance(fingerprint, place="here"):
        return PROVENANCE | {"latents": {"": {"folder": place, "fingerprint": fingerprint}}}

    def config(place):
        config = toy.make_config()
        config.unlock()
        config.data = {"latents": place}
        return config

    message = f"workdir {folder.path}: data.latents: none -> here; expected what the run began with"
    toy_config = json.loads(folder.config_file.read_text())
    toy_config["config"]["data"] = {"latents": ""}
    folder.config_file.write_text(json.dumps(toy_config))
    with pytest.raises(ValueError, match=message):
        folder.require(config("here"), provenance("a"))
    other = Workdir(tmp_path / "other")
    other.create(config("here"), provenance("a"))
    other.require(config("there"), provenance("a", "there"))  # moved
    with pytest.raises(ValueError, match="data.latents: here -> none; expected"):
        other.require(config(""), PROVENANCE | {"latents": {}})
    with pytest.raises(ValueError, match="data.latents: here -> here, encoded otherwise; expected"):
        other.require(config("here"), provenance("b"))


def test_a_run_without_config_is_refused(folder):
    folder.metrics_file.write_text("")
    folder.config_file.unlink()
    with pytest.raises(ValueError, match=r"holds a run but no config\.json"):
        folder.require(toy.make_config(), {})


def test_a_folder_of_several_seeds_is_refused(folder):
    folder.config_file.unlink()
    (folder.path / "seeds").mkdir()
    message = f"holds runs of several seeds: expected --seeds, or .* {folder.path}/seeds/SEED"
    with pytest.raises(ValueError, match=message):
        folder.require(toy.make_config(), {})


def test_reading_what_is_no_workdir(tmp_path):
    with pytest.raises(FileNotFoundError, match="is no workdir"):
        Workdir(tmp_path).read()
    (tmp_path / "config.json").write_text('{"config": {')
    with pytest.raises(ValueError, match=r"config\.json: expected"):
        Workdir(tmp_path).read()


def test_differences_looks_at_leaves():
    old = {"a": {"b": 1, "c": [1, 2]}, "d": None}
    new = {"a": {"b": 1, "c": [1, 3]}, "d": {"e": 1}}
    assert differences(old, new) == {"a.c": "[1, 2] -> [1, 3]", "d": "None -> {'e': 1}"}
