"""Declarations: layouts told apart by features, a robot of one's own, and ways to get one wrong."""

import dataclasses
import re

import numpy as np
import pytest
import tensorflow_datasets as tfds

from roam_jax.contracts import POSE_AND_GRIPPER, POSE_CHANGE_AND_GRIPPER
from roam_jax.data.dataset import EpisodeReader
from roam_jax.data.declaration import Published, Reached, Stored, load_declaration
from roam_jax.data.known import BRIDGE, OXE_BRIDGE
from tests.conftest import ROOT
from tests.data import rlds

PAGE = (ROOT / "docs" / "data.md").read_text()
# The worked example of the page on data is what is tested here.
ARM = next(b for b in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "DATASET" in b)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ROAM_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def arm(tmp_path):
    """The declaration of a user's robot, from its file."""
    path = tmp_path / "my_arm.py"
    path.write_text(ARM)
    return load_declaration(str(path))


@pytest.fixture
def arm_root(tmp_path):
    episodes = [rlds.ArmEpisode.random(seed, 6 + seed) for seed in range(3)]
    return rlds.write_dataset(
        tmp_path / "arm", {"train": episodes}, rlds.arm_features(8), name="my_arm"
    )


def write_oxe(root, *, name="bridge"):
    splits = {
        "train": [rlds.OxeEpisode.random(seed, 6 + seed) for seed in range(3)],
        "test": [rlds.OxeEpisode.random(9, 5)],
    }
    return rlds.write_dataset(root, splits, rlds.oxe_features(8), name=name)


def test_both_bridges_mean_the_same_dimensions():
    for declaration in (BRIDGE, OXE_BRIDGE):
        assert declaration.state_spec == POSE_AND_GRIPPER
        assert declaration.action_spec == POSE_CHANGE_AND_GRIPPER


@pytest.mark.parametrize("split", ["train", "test"])
def test_oxe_episodes_equal_tfds(tmp_path, split):
    reader = EpisodeReader(write_oxe(tmp_path / "oxe"), split)
    assert reader.declaration.name == "OXE bridge"
    assert reader.declaration.splits == ("train", "test")
    references = list(rlds.decoded(reader.root, split))
    assert len(reader) == len(references)
    for i, reference in enumerate(references):
        episode, steps = reader[i], reference["steps"]
        assert episode.header.steps == len(steps)
        text = steps[0]["observation"]["natural_language_instruction"]
        assert episode.header.instruction.encode() == text
        np.testing.assert_array_equal(
            episode.language_embedding, steps[0]["observation"]["natural_language_embedding"]
        )
        for name, values in {
            "image": episode.frames(range(len(steps)), camera="image_0"),
            "state": episode.state,
        }.items():
            np.testing.assert_array_equal(
                values, np.stack([step["observation"][name] for step in steps]), err_msg=name
            )
        opened = np.array([step["action"]["open_gripper"] for step in steps])
        assert 0 < opened.sum() < len(opened)
        np.testing.assert_array_equal(episode.command[:, 6], opened.astype(np.float32))
        assert not episode.command[:, :6].any()
        np.testing.assert_array_equal(episode.reward, [step["reward"] for step in steps])
    names = [header.name for header in reader.headers]
    assert all(name.startswith("state-") for name in names) and len(set(names)) == len(names)


def test_layouts_are_told_apart_by_features_not_by_name(tmp_path):
    oxe = write_oxe(tmp_path / "bridge_dataset" / "1.0.0", name="bridge_dataset")
    bridge = rlds.write_dataset(
        tmp_path / "bridge" / "0.1.0", {"train": [rlds.StoredEpisode.random(0, 5)]}, name="bridge"
    )
    found = EpisodeReader(oxe, "train")
    assert (found.dataset, found.declaration.name) == ("bridge_dataset/1.0.0", "OXE bridge")
    assert found.declaration.cameras == {"image_0": "steps/observation/image"}
    found = EpisodeReader(bridge, "train")
    assert (found.dataset, found.declaration.name) == ("bridge/1.0.0", "BridgeData V2")
    # Of the four cameras, those that are there; depth is no camera.
    assert list(found.declaration.cameras) == ["image_0", "image_1"]


def test_a_robot_of_ones_own(arm, arm_root):
    reader = EpisodeReader(arm_root, "train", cameras=("wrist",), declaration=arm)
    assert reader.declaration.rate == 10 and not reader.has_embedding
    names = (*(f"joint_{i}" for i in range(6)), "gripper")
    spec = reader.declaration.action_spec
    assert spec.names == reader.declaration.state_spec.names == names
    assert spec.kinds == ("linear",) * 6 + ("gripper",)
    for seed, episode in enumerate(reader):
        written = rlds.ArmEpisode.random(seed, 6 + seed)
        assert episode.header.instruction == f"task {seed}"
        frames = episode.frames(range(episode.header.steps), camera="wrist")
        np.testing.assert_array_equal(frames, written.frames)
        np.testing.assert_array_equal(episode.state[:, :6], written.joints[:, :6])
        np.testing.assert_array_equal(episode.command[:, :6], written.action[:, :6])
        # Stored 1 closed, read 1 open.
        np.testing.assert_array_equal(episode.state[:, 6], 1 - written.joints[:, 6])
        np.testing.assert_array_equal(episode.command[:, 6], 1 - written.action[:, 6])
        assert not episode.reward.any() and episode.language_embedding is None
        # No step is dropped, and at half the rate a target is that of the second step.
        targets, _ = reader.motion(seed)
        told = written.action[:-1, :6]
        np.testing.assert_array_equal(targets[:, :6], told)
        slower, _ = reader.motion(seed, 2)
        np.testing.assert_array_equal(slower, targets[1:])


def test_a_gripper_between_other_ends():
    part = Stored(("jaw",), "f", kind="gripper", columns=(1,), opened=80.0, closed=-20.0)
    values = np.array([[0, 80], [0, -20], [0, 30]], np.float32)
    np.testing.assert_array_equal(part.take(values), [[1], [0], [0.5]])


def test_the_digest_follows_meanings_only(arm):
    renamed = dataclasses.replace(arm, name="other", cameras={"hand": "steps/x"})
    assert renamed.digest() == arm.digest()
    for change in ({"rate": 5.0}, {"skip_first": 1}, {"action": arm.action[:1]}):
        assert dataclasses.replace(arm, **change).digest() != arm.digest()


def test_auto_is_no_file():
    assert load_declaration("auto") is None


def test_a_missing_file(tmp_path):
    path = tmp_path / "arn.py"
    with pytest.raises(FileNotFoundError, match=rf"data.declaration = '{path}': no such file"):
        load_declaration(str(path))


@pytest.mark.parametrize(
    ("text", "found"), [("dataset = 3", "None"), ("DATASET = {'rate': 5}", r"\{'rate': 5\}")]
)
def test_a_file_without_a_declaration(tmp_path, text, found):
    path = tmp_path / "arm.py"
    path.write_text(text)
    message = rf"{path}': DATASET is {found}, expected a DatasetDeclaration"
    with pytest.raises(ValueError, match=message):
        load_declaration(str(path))


def test_missing_features_are_named_with_the_nearest(arm, arm_root):
    wrong = dataclasses.replace(
        arm, cameras={"wrist": "steps/observation/wrist_rbg"}, instruction="steps/tasks"
    )
    with pytest.raises(ValueError, match="the declaration 'my arm' names features that") as error:
        EpisodeReader(arm_root, "train", cameras=("wrist",), declaration=wrong)
    text = str(error.value)
    assert text.startswith(f"my_arm/1.0.0 in {arm_root}: ")
    assert "wrist_rbg (did you mean 'steps/observation/wrist_rgb'?)" in text
    assert "steps/tasks (did you mean 'steps/task'?)" in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 8}, "steps/action has 7 numbers, expected 8 by the declaration"),
        ({"columns": (0, 1, 2, 3, 4, 9)}, r"7 numbers, the declaration takes \[0, 1, 2, 3, 4, 9\]"),
        ({"columns": (0, 1, 2, 3, 4, -1)}, r"the declaration takes \[0, 1, 2, 3, 4, -1\] as joint"),
        ({"columns": None}, r"takes \[0, 1, 2, 3, 4, 5, 6\] as joint_0"),
        ({"feature": "steps/task"}, "steps/task is Text.*expected numbers or booleans"),
        ({"feature": "steps/observation/wrist_rgb"}, "wrist_rgb is Image.*expected numbers"),
    ],
)
def test_numbers_that_are_not_as_declared(arm, arm_root, change, message):
    joints, gripper = arm.action
    wrong = dataclasses.replace(arm, action=(dataclasses.replace(joints, **change), gripper))
    with pytest.raises(ValueError, match=message):
        EpisodeReader(arm_root, "train", cameras=("wrist",), declaration=wrong)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cameras": {"wrist": "steps/task"}}, "camera 'wrist': steps/task is Text.*expected RGB"),
        ({"reward": "steps/action"}, "steps/action has 7 numbers, expected one a step"),
        ({"instruction": "steps/action"}, "instruction: steps/action is .*expected a text"),
        ({"embedding": "steps/task"}, "embedding: steps/task is .*expected a vector of float32"),
        ({"episode_name": ("steps/action",)}, "episode_name: steps/action is .*expected a text"),
    ],
)
def test_features_of_another_kind_than_declared(arm, arm_root, change, message):
    wrong = dataclasses.replace(arm, **change)
    with pytest.raises(ValueError, match=message):
        EpisodeReader(arm_root, "train", cameras=("wrist",), declaration=wrong)


def test_depth_is_no_camera(tmp_path):
    root = rlds.write_dataset(tmp_path / "toy", {"train": [rlds.StoredEpisode.random(0, 5)]})
    wrong = dataclasses.replace(BRIDGE, cameras={"depth": "steps/observation/depth_0"})
    wrong = dataclasses.replace(wrong, embedding=None)
    with pytest.raises(ValueError, match="camera 'depth': .*expected RGB"):
        EpisodeReader(root, "train", cameras=("depth",), declaration=wrong)


def test_an_undeclared_camera_names_the_nearest(arm, arm_root):
    with pytest.raises(ValueError, match="no RGB camera 'wrst'; did you mean 'wrist'"):
        EpisodeReader(arm_root, "train", cameras=("wrst",), declaration=arm)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"action": (Reached(("joint_7",)),)}, "follows 'joint_7', which.*did you mean 'joint_5'"),
        ({"action": (Reached(("joint_1", "joint_1")),)}, "'my arm': dimensions.*each name once"),
        ({"state": ()}, r"'my arm': dimensions \(\).*at least one"),
        ({"action": ()}, r"'my arm': dimensions \(\).*at least one"),
        ({"cameras": {}}, "'my arm': no camera"),
        ({"rate": 0.0}, "'my arm': rate = 0.0"),
        ({"skip_first": -1}, "skip_first = -1; expected.*no negative"),
        ({"published": Published(("my_arm",), (0.0,), (1.0,))}, "figures of 1 dim.*expected 7"),
    ],
)
def test_declarations_that_make_no_sense(arm, change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(arm, **change)


def test_a_dimension_twice(arm):
    joints, gripper = arm.state
    again = dataclasses.replace(gripper, names=("joint_3",))
    with pytest.raises(ValueError, match="'my arm': dimensions .*'joint_3'.*each name once"):
        dataclasses.replace(arm, state=(joints, again))


def test_stored_dimensions_that_make_no_sense():
    with pytest.raises(ValueError, match=r"f: 1 columns for 2 names \('a', 'b'\)"):
        Stored(("a", "b"), "f", columns=(0,))
    with pytest.raises(ValueError, match="f: opened = closed = 1.0; expected two"):
        Stored(("a",), "f", kind="gripper", closed=1.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "Gripper"}, "f: kind = 'Gripper': expected one of linear, angle, gripper"),
        ({"kind": "change"}, "f: kind = 'change': expected one of linear"),
        ({"per_step": "absolut"}, "per_step = 'absolut': .*did you mean 'absolute'"),
    ],
)
def test_misspelt_kinds(options, message):
    with pytest.raises(ValueError, match=message):
        Stored(("a",), "f", **options)


def test_a_gripper_is_never_followed():
    with pytest.raises(ValueError, match="follows the gripper 'gripper' of the state; expected"):
        dataclasses.replace(BRIDGE, action=(Reached(("x", "gripper")),), published=None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("DATASET = Datset(", "SyntaxError"),
        (
            "from roam_jax.data.declaration import DatasetDeclaration as D\nDATASET = D(nam='x')",
            "TypeError: .*argument",
        ),
    ],
)
def test_a_file_that_does_not_run(tmp_path, text, message):
    path = tmp_path / "mine.py"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"data.declaration = '{path}': {message}"):
        load_declaration(str(path))


def test_integers_are_numbers(tmp_path):
    """A gripper kept as int64 among the features of Bridge."""

    class Counted(rlds.StoredEpisode):
        def example(self):
            fields = {
                "steps/observation/image_0": rlds.encode(self.frames),
                "steps/observation/state": self.state,
                "steps/jaw": [int(value > 0.5) for value in self.action[:, 6]],
            }
            return rlds.example(fields)

    step = {
        "observation": {
            "image_0": tfds.features.Image(shape=(8, 8, 3), encoding_format="png"),
            "state": tfds.features.Tensor(shape=(7,), dtype=np.float32),
        },
        "jaw": tfds.features.Scalar(dtype=np.int64),
    }
    features = tfds.features.FeaturesDict({"steps": tfds.features.Dataset(step)})
    episode = Counted.random(4, 9)
    root = rlds.write_dataset(tmp_path / "toy", {"train": [episode]}, features)
    declaration = dataclasses.replace(
        BRIDGE,
        cameras={"image_0": "steps/observation/image_0"},
        action=(BRIDGE.action[0], Stored(("gripper",), "steps/jaw", kind="gripper")),
        **dict.fromkeys(("instruction", "embedding", "reward")),
        episode_name=(),
    )
    found = EpisodeReader(root, "train", declaration=declaration)[0]
    np.testing.assert_array_equal(found.command[:, 6], episode.action[:, 6] > 0.5)
