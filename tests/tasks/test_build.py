"""Configs that lack something, or fit nothing, end with one message."""

import functools
import re

import jax
import numpy as np
import pytest

from roam_jax.data.embedded import EmbeddedSpec, ensure_embedded
from roam_jax.tasks.build import build
from roam_jax.tasks.sketch import sketch
from tests.tasks.models import make_params


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
        ("data", "image_size", (64, 60), r"data.image_size = \(64, 60\): .*multiple of 16"),
        ("data", "cameras", ("image_7",), "no RGB camera 'image_7'; did you mean"),
        ("data", "cameras", (), r"data.cameras = \(\): expected at least one camera"),
        ("data", "cameras", ("image_0", "image_0"), "expected at least one camera, each once"),
        ("data", "rate", 2.0, "data.rate = 2: the dataset has 5 steps a second"),
        ("data", "goal", "final", "data.goal = 'final': expected one of none, last, uniform"),
        ("data", "declaration", "none.py", "data.declaration = 'none.py': no such file"),
        ("loop", "rounds", 0, "loop.rounds = 0: expected at least 1"),
        ("loss", "balance", "gradnorm", "loss.balance = 'gradnorm': train.task = graft trains no"),
        ("model", "depth", 6, "model.depth = 6: train.task = graft .*expected 3"),
        ("loop", "gate_scope", "tokens", "loop.gate_scope = 'tokens'.*did you mean 'token'"),
        ("decoder", "kind", "pool", "decoder.kind = 'pool'"),
        ("canvas", "thought_cells", -1, "canvas.thought_cells = -1"),
        ("canvas", "reward_weight", 1.0, "canvas.reward_weight = 1.0 without a region"),
        ("loss", "clean_timestep", "zeros", "loss.clean_timestep = 'zeros': expected one of"),
    ],
)
def test_values_that_do_not_fit_are_refused(robot_config, section, key, value, message):
    robot_config[section][key] = value
    with pytest.raises((ValueError, FileNotFoundError), match=message):
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


@pytest.mark.parametrize(
    "mixture, message",
    [
        ((("one", 0.5, "ROOT"),), "weights one 0.5 sum to 0.5, expected 1"),
        ((("one", 1.0),), r"member ('one', 1.0), expected (name, weight, root) or"),
        ((("one", "all", "ROOT"),), "member ('one', 'all', "),
        (("one",), "member 'one', expected"),
        ((("", 0.5, "ROOT"), ("two", 0.5, "ROOT")), "expected a name for each"),
    ],
)
def test_a_mixture_that_is_none(robot_config, mixture, message):
    root = robot_config.data.root
    robot_config.data.mixture = tuple(
        tuple(root if value == "ROOT" else value for value in entry)
        if isinstance(entry, tuple)
        else entry
        for entry in mixture
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        build(robot_config)


def test_a_declaration_beside_a_mixture_is_refused(robot_config):
    robot_config.data.mixture = (("one", 1.0, robot_config.data.root),)
    robot_config.data.declaration = "arm.py"
    with pytest.raises(ValueError, match="data.declaration = 'arm.py' beside data.mixture"):
        build(robot_config)


def test_a_mixture_has_a_split_and_a_fingerprint_for_each_member(robot_config, tmp_path):
    root = robot_config.data.root
    spec = EmbeddedSpec(seed=7, train=3, val=1, image_size=16)
    other = str(ensure_embedded(variant=spec, directory=tmp_path))
    robot_config.data.mixture = (("one", 0.25, root), ["two", 0.75, other])  # as from JSON
    robot_config.data.root = ""
    experiment = build(robot_config)
    assert list(experiment.splits) == ["train/one", "train/two", "val/one", "val/two"]
    prints = experiment.fingerprints
    assert {"data/one", "data/one/val", "data/two", "data/two/val"} <= set(prints)
    assert prints["data/one"] != prints["data/two"]
    assert prints["mixture"] == "one 0.25, two 0.75"
    assert set(experiment.provenance()["statistics"]) == {"one", "two"}
    batches = [next(loader) for loader in [experiment.batches()] for _ in range(4)]
    members = np.concatenate([batch["dataset"] for batch in batches])
    assert np.bincount(members).tolist() == [4, 12]
    for name, field in experiment.task.batch_spec.items():
        assert (batches[0][name].shape, batches[0][name].dtype) == (field.shape, field.dtype)


@pytest.mark.parametrize(
    "section, value, message",
    [("augment.hue", 0.1, "data.augment.hue = 0.1"), ("goal", "uniform", "data.goal = 'uniform'")],
)
def test_what_changes_cannot_be_encoded_once(robot_config, section, value, message):
    with robot_config.data.unlocked():
        robot_config.data.update_from_flattened_dict({section: value})
    robot_config.data.encode_once = 0
    build(robot_config)  # each time anew: right
    robot_config.data.encode_once = 10_000
    with pytest.raises(ValueError, match=f"{message} with data.encode_once = 10000"):
        build(robot_config)


def test_cameras_and_goals_are_encoded_once_as_each_time(robot_config):
    robot_config.data.cameras = ("image_0", "image_1")
    robot_config.data.goal = "last"
    robot_config.canvas.camera_weight = 0.5
    robot_config.data.image_size = (32, 48)
    robot_config.data.encode_once = 0
    frames = build(robot_config)
    robot_config.data.encode_once = 10_000
    latents = build(robot_config)
    pixels, encoded = next(frames.batches()), next(latents.batches())
    for name, field in latents.task.batch_spec.items():
        assert (encoded[name].shape, encoded[name].dtype) == (field.shape, field.dtype)
    vae = jax.device_put(latents.model.backbone.pretrained_vae())
    encode = jax.jit(functools.partial(latents.model.backbone.encode_batch, time=latents.time))
    expected = encode(vae, pixels)
    assert set(expected) == set(encoded) - set(pixels)
    for name, array in expected.items():
        np.testing.assert_allclose(encoded[name], array, atol=1e-5)
    params = make_params(frames)
    rng = jax.random.key(0)
    loss = jax.jit(frames.task.loss, static_argnums=3)
    losses = [loss(params, batch, rng, 1) for batch in (pixels, encoded)]
    assert {"loss/diffusion", "loss/action", "loss/camera"} <= set(losses[0][1])
    for name, value in losses[0][1].items():
        np.testing.assert_allclose(losses[1][1][name], value, rtol=1e-4)
