"""A config's shapes without its files are those of the run."""

import numpy as np
import pytest

from roam_jax.cogvideox.config import TransformerConfig
from roam_jax.cogvideox.vae_config import VAEConfig
from roam_jax.evaluate.parameters import stored_parameters
from roam_jax.tasks.build import build
from roam_jax.tasks.sketch import sketch
from roam_jax.train import names


@pytest.mark.parametrize("task", ["graft", "video", "vae"])
def test_a_sketch_has_the_shapes_of_the_run(robot_config, task):
    robot_config.train.task = task
    robot_config.data.encode_once = 0
    experiment, plan = build(robot_config), sketch(robot_config)
    assert plan.task.batch_spec == experiment.task.batch_spec
    assert plan.task.trainable == experiment.task.trainable
    assert plan.rules == experiment.rules and plan.assumed == ()
    if plan.has_backbone:
        robot_config.data.encode_once = 10**6
        assert plan.encoded_task.batch_spec == build(robot_config).task.batch_spec


def test_views_and_frame_sizes_are_those_of_the_run(robot_config, bridge_root):
    robot_config.data.root, robot_config.data.encode_once = str(bridge_root), 0
    robot_config.data.cameras, robot_config.data.goal = ("image_0", "image_2"), "last"
    robot_config.data.image_size, robot_config.canvas.camera_weight = (32, 48), 0.5
    experiment, plan = build(robot_config), sketch(robot_config)
    assert plan.task.batch_spec == experiment.task.batch_spec
    assert plan.task.batch_spec["camera_frames"].shape == (4, 1, 9, 32, 48, 3)
    robot_config.data.encode_once = 10**6
    assert plan.encoded_task.batch_spec == build(robot_config).task.batch_spec


DECLARATION = """
from roam_jax.data.declaration import DatasetDeclaration, Stored

DATASET = DatasetDeclaration(
    name="arm",
    cameras={"image_0": "steps/observation/image"},
    state=(Stored(("a", "b", "c"), "steps/observation/joints"),),
    action=(Stored(("a", "b"), "steps/action"),),
    rate=10.0,
)
"""


def test_sizes_of_a_robot_are_those_of_its_declaration(robot_config, tmp_path):
    (tmp_path / "arm.py").write_text(DECLARATION)
    robot_config.data.declaration = str(tmp_path / "arm.py")
    robot_config.canvas.proprio, robot_config.canvas.proprio_weight = True, 1.0
    plan = sketch(robot_config)
    spec = plan.task.batch_spec
    assert spec["action_chunk"].shape == (4, 4, 2) and spec["past_actions"].shape == (4, 4, 2)
    assert spec["observed_proprio"].shape == (4, 2, 3) and "action_mask" not in spec
    sizes = plan.model.module.graft_config
    assert (sizes.action_dim, sizes.proprio_dim) == (2, 3)


def test_robots_that_differ_are_put_together_and_masked(robot_config, tmp_path):
    (tmp_path / "arm.py").write_text(DECLARATION)
    robot_config.data.mixture = (
        ("arm", 0.5, str(tmp_path), str(tmp_path / "arm.py")),
        ("bridge", 0.5, str(tmp_path)),
    )
    robot_config.data.mixture_actions = "pad"
    spec = sketch(robot_config).task.batch_spec
    assert spec["action_chunk"].shape == (4, 4, 2 + 7) and spec["action_mask"].shape == (4, 9)
    assert spec["future_proprio"].shape == (4, 1, 3 + 7) and spec["proprio_mask"].shape == (4, 10)


IN_FEET = DECLARATION.replace('"a", "b"), "steps/action"', '"x", "b"), "steps/action", unit="ft"')


@pytest.mark.parametrize(
    "weights_of, rule, own, message",
    [
        ((0.5, 0.7), "pad", DECLARATION, "weights arm 0.5, bridge 0.7 sum to 1.2, expected 1"),
        ((0.5, 0.5), "pad", IN_FEET, r"dimension 'x' is .*ft.* in one member and .*m.* in another"),
        ((0.5, 0.5), "same", DECLARATION, "members have other dimensions .*mixture_actions=pad"),
        ((0.5, 0.5), "pads", DECLARATION, "data.mixture_actions = 'pads'"),
    ],
)
def test_a_mixture_whose_members_do_not_fit_is_refused(
    robot_config, tmp_path, bridge_root, weights_of, rule, own, message
):
    (tmp_path / "arm.py").write_text(own)
    arm, bridge = weights_of
    robot_config.data.mixture = (
        ("arm", arm, str(tmp_path), str(tmp_path / "arm.py")),
        ("bridge", bridge, str(bridge_root)),
    )
    robot_config.data.mixture_actions = rule
    with pytest.raises(ValueError, match=message):
        sketch(robot_config)


def test_no_data_is_opened_or_made(robot_config, tmp_path, monkeypatch):
    monkeypatch.setenv("ROAM_CACHE", str(tmp_path / "cache"))
    (tmp_path / "arm.py").write_text(DECLARATION)
    alone = sketch(robot_config).task.batch_spec
    robot_config.data.mixture = (("a", 0.5, "embedded"), ("b", 0.5, "nowhere", "auto"))
    assert sketch(robot_config).task.batch_spec == alone
    robot_config.data.mixture = [["a", 1, "embedded:pretrain", str(tmp_path / "arm.py")]]
    assert sketch(robot_config).task.batch_spec["action_chunk"].shape == (4, 4, 2)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("mixture", [("a", 0.5, "embedded"), (("a", 0.5),), (("a", 1, "b", 2),)])
def test_a_mixture_that_is_none_is_refused(robot_config, mixture):
    robot_config.data.mixture = mixture
    with pytest.raises(ValueError, match=r"data.mixture: member .*expected \(name, weight, root"):
        sketch(robot_config)


def test_the_published_sizes_are_assumed_and_said(robot_config):
    robot_config.backbone.path = robot_config.data.root = robot_config.data.text = ""
    plan = sketch(robot_config)
    assert [sentence.split()[0] for sentence in plan.assumed] == ["backbone.path", "data.text"]
    assert plan.task.batch_spec["text"].shape == (4, 226, 4096)
    assert plan.model.backbone.transformer_config == TransformerConfig()
    assert plan.model.backbone.vae_config == VAEConfig()


@pytest.mark.parametrize(
    "task, assumed",
    [
        (
            "graft",
            [
                "backbone.path is empty: sizes of the published CogVideoX-2B, frozen weights in 16 "
                "bits",
                "data.text is empty: embeddings as the published CogVideoX-2B has them",
            ],
        ),
        (
            "video",
            [
                "backbone.path is empty: sizes of the published CogVideoX-2B's VAE, frozen weights "
                "in 16 bits",
                "data.text is empty: embeddings as the published CogVideoX-2B has them",
            ],
        ),
        ("vae", ["data.text is empty: embeddings as the published CogVideoX-2B has them"]),
    ],
)
def test_what_is_assumed_is_what_is_counted(robot_config, task, assumed):
    robot_config.train.task = task
    robot_config.backbone.path = robot_config.data.text = ""
    plan = sketch(robot_config)
    assert list(plan.assumed) == assumed
    frozen = {
        leaf.dtype
        for name, leaf in stored_parameters(plan.task).items()
        if not names.matches(name, plan.task.trainable)
    }
    assert frozen == ({np.dtype(np.float16)} if plan.has_backbone else set())
    if task == "video":
        layers = robot_config.backbone.scratch.layers
        assert plan.model.backbone.transformer_config.num_layers == layers


def test_text_without_a_name_is_what_the_backbone_expects(robot_config):
    robot_config.data.text = ""
    assert sketch(robot_config).task.batch_spec["text"].shape == (4, 1, 512)


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("backbone.path", "nowhere", "nowhere"),
        ("data.text", "nowhere.safetensors", "nowhere.safetensors: no text embeddings"),
        ("train.task", "grafts", "train.task = 'grafts'"),
        ("data.frames", 10, "data.frames = 10"),
        ("decoder.kind", "token", "did you mean 'tokens'"),
    ],
)
def test_what_does_not_fit_is_refused(robot_config, key, value, message):
    section, leaf = key.split(".")
    robot_config[section][leaf] = value
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        sketch(robot_config)
