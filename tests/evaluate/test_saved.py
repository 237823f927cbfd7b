"""Opening a run from its workdir or its export, and what is refused on the way."""

import json
import shutil

import jax
import numpy as np
import pytest

from roam_jax.evaluate.as_trained import check_fingerprints
from roam_jax.evaluate.saved import open_saved, read_saved
from roam_jax.train import names
from roam_jax.train.checkpoint import Checkpoints
from roam_jax.train.sharding import make_mesh
from roam_jax.train.state import TrainState, merge, partition
from roam_jax.train.workdir import LATER_LEAVES, Workdir, plain
from tests.evaluate.test_run import with_overrides

LESS = with_overrides("eval.windows=1")


def assert_same(found, expected):
    found, expected = names.flatten(found), names.flatten(expected)
    assert found.keys() == expected.keys()
    for name, leaf in expected.items():
        np.testing.assert_array_equal(found[name], leaf, err_msg=name)


def test_a_workdir_and_its_export_are_the_same_run(finished, exported, experiment, params):
    for path in (finished, exported):
        assert not read_saved(path).averaged
        run = open_saved(path, overrides=LESS)
        assert run.step == 6 and run.changed == {"eval.windows": "0 -> 1"}
        assert run.experiment.fingerprints == experiment.fingerprints
        assert run.provenance["fingerprints"] == dict(experiment.fingerprints)
        assert_same(run.params, params)
    assert open_saved(finished, step=5, overrides=LESS).step == 5


def test_the_average_of_a_run_is_what_is_loaded(experiment, params, tmp_path):
    """Unless eval.ema says otherwise; a run without one has no choice."""
    config = experiment.config.copy_and_resolve_references()
    config.optim.ema_decay = 0.9
    workdir = Workdir(tmp_path / "run")
    workdir.create(config, experiment.provenance())
    trainable, frozen = partition(params, experiment.task.trainable)
    mean = jax.tree.map(lambda leaf: leaf * 0.5, trainable)
    with Checkpoints(workdir.checkpoints, keep=1) as checkpoints:
        state = TrainState(np.int32(7), trainable, {}, ema=mean)
        checkpoints.save(7, state, data={}, config=plain(config))
    one = make_mesh(1, 1, devices=jax.devices()[:1])
    for asked, expected in (("True", mean), ("False", trainable)):
        saved = read_saved(workdir.path, overrides=with_overrides(f"eval.ema={asked}"))
        assert saved.averaged == (asked == "True")
        found, step = saved.params(experiment.task, rules=experiment.rules, mesh=one)
        assert step == 7
        assert_same(found, merge(expected, frozen))


def test_an_export_holds_one_step(exported):
    with pytest.raises(FileNotFoundError, match="no step 5 in .*: a model directory holds one, 6"):
        open_saved(exported, step=5)


def test_an_export_of_another_model_is_refused_by_its_parameters(exported):
    saved = json.loads((exported / "config.json").read_text())
    saved["config"]["decoder"]["kind"] = "pooled"
    (exported / "config.json").write_text(json.dumps(saved))
    with pytest.raises(ValueError) as error:
        open_saved(exported, overrides=LESS)
    text = str(error.value)
    assert "graft/future_action/query is unexpected" in text
    assert "graft/decoder/hidden/kernel is missing" in text or "has shape" in text


def test_the_model_alone_needs_no_data(finished, experiment, params, toy_root, tmp_path):
    away = shutil.copytree(finished, tmp_path / "run")
    saved = json.loads((away / "config.json").read_text())
    saved["config"]["data"]["root"] = str(tmp_path / "nowhere")
    (away / "config.json").write_text(json.dumps(saved))
    plan = read_saved(away).model()
    shapes = jax.eval_shape(plan.task.init, jax.random.key(0))
    assert jax.tree.map(np.shape, params) == jax.tree.map(lambda leaf: leaf.shape, shapes)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        open_saved(away)


def test_runs_of_earlier_versions_have_the_leaves_that_came_later(finished, tmp_path):
    old = shutil.copytree(finished, tmp_path / "run")
    saved = json.loads((old / "config.json").read_text())
    for key in LATER_LEAVES:
        section, leaf = key.split(".")
        saved["config"][section].pop(leaf, None)
    (old / "config.json").write_text(json.dumps(saved))
    found = read_saved(old, overrides=with_overrides("eval.video_steps=3"))
    assert found.config.eval.video_steps == 3 and found.config.eval.video_sampler == "ddim"
    assert found.changed == {"eval.video_steps": "50 -> 3"}


def test_neither_a_workdir_nor_an_export(tmp_path):
    with pytest.raises(FileNotFoundError, match="is no workdir: it has no config.json"):
        open_saved(tmp_path)


@pytest.mark.parametrize(
    "name, allowed, key",
    [
        ("data/val", "data.root", "data.root"),
        ("text", "data.text", "data.text"),
        ("text", "data.root", "data.text"),
        ("vae", None, "backbone.path"),
    ],
)
def test_only_data_and_text_may_be_others_where_that_was_asked_for(experiment, name, allowed, key):
    config, found = experiment.config, experiment.fingerprints
    trained = {**found, name: "0123"}
    with pytest.raises(ValueError, match=f"{name}.* at {key} = .* was trained with 0123"):
        check_fingerprints(config, found, trained, changed={"eval.windows": "64 -> 1"})
    if allowed:
        check_fingerprints(config, found, trained, changed={allowed: "here -> there"})
