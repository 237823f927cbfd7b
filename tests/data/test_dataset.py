"""Episodes against tfds's own decoding of the same records, and ways to get a dataset wrong."""

import dataclasses
import io
import json

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from roam_jax.data.actions import episode_actions
from roam_jax.data.dataset import EpisodeReader
from roam_jax.data.records import index_shard
from tests.data import rlds


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ROAM_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def toy(tmp_path):
    return rlds.write_dataset(
        tmp_path / "toy",
        {
            "train": [rlds.StoredEpisode.random(i, 10 + i) for i in range(3)],
            "val": [rlds.StoredEpisode.random(9, 10)],
        },
    )


@pytest.mark.parametrize(("split", "count"), [("train", 16), ("val", 4)])
@pytest.mark.parametrize("cameras", [("image_0",), ("image_2", "image_0", "image_3")])
def test_real_episodes_equal_tfds(bridge_root, split, count, cameras):
    reader = EpisodeReader(bridge_root, split, cameras=cameras)
    assert len(reader) == count and reader.cameras == cameras
    for i, reference in enumerate(rlds.decoded(bridge_root, split)):
        episode, steps = reader[i], reference["steps"]
        assert episode.header == reader.headers[i]
        assert episode.header.steps == len(steps) == 10
        assert episode.header.instruction.encode() == steps[0]["language_instruction"]
        metadata = reference["episode_metadata"]
        name = f"{metadata['file_path'].decode()}#{metadata['episode_id']}"
        assert episode.header.name == name
        assert set(episode.images) == set(cameras)
        for camera in cameras:
            frames = np.stack([step["observation"][camera] for step in steps])
            np.testing.assert_array_equal(episode.frames(range(10), camera=camera), frames)
            np.testing.assert_array_equal(
                episode.frames([7, 2, 2], camera=camera), frames[[7, 2, 2]]
            )
        np.testing.assert_array_equal(
            episode.state, np.stack([step["observation"]["state"] for step in steps])
        )
        action = np.stack([step["action"] for step in steps])
        np.testing.assert_array_equal(episode.command[:, 6], action[:, 6])
        # What was reached is known from the states alone.
        assert not episode.command[:, :6].any()
        np.testing.assert_array_equal(episode.reward, [step["reward"] for step in steps])
        np.testing.assert_array_equal(episode.language_embedding, steps[0]["language_embedding"])


def test_frames_equal_pillow(bridge_root):
    episode = EpisodeReader(bridge_root, "val")[0]
    for i, frame in enumerate(episode.frames(range(10), camera="image_0")):
        stored = io.BytesIO(episode.images["image_0"][i])
        np.testing.assert_array_equal(frame, Image.open(stored))


def test_traps_of_the_real_episodes(bridge_root):
    """Flags that are False beside real frames, and a first action that is none."""
    for reference in rlds.decoded(bridge_root, "val"):
        assert not any(reference["episode_metadata"][f"has_image_{i}"] for i in range(4))
    for episode in EpisodeReader(bridge_root, "train"):
        assert episode.frames([0], camera="image_0").std() > 20
    for reference in rlds.decoded(bridge_root, "train"):
        assert np.abs(reference["steps"][0]["action"][:6]).max() < 1e-6
    assert EpisodeReader(bridge_root, "train").declaration.skip_first == 1
    black = EpisodeReader(bridge_root, "train", cameras=("image_3",))[0]
    assert not black.frames(range(10), camera="image_3").any()


def test_toy_episodes_hold_what_was_written(toy):
    reader = EpisodeReader(toy, "train")
    for i in (2, 0, 1):
        written, episode = rlds.StoredEpisode.random(i, 10 + i), reader[i]
        frames = episode.frames(range(3, 7), camera="image_0")
        np.testing.assert_array_equal(frames, written.frames[3:7])
        np.testing.assert_array_equal(episode.command[:, 6], written.action[:, 6])
        np.testing.assert_array_equal(episode.state, written.state)
        np.testing.assert_array_equal(episode.reward, written.reward)
        np.testing.assert_array_equal(episode.language_embedding, written.embedding)
        assert episode.header.name == f"/recordings/{i}.npy#{i}"
    both = EpisodeReader(toy, "train", cameras=("image_1", "image_0"))
    assert not both[0].frames(range(3), camera="image_1").any()
    assert both[0].frames(range(3), camera="image_0").any()
    assert both.frame_shapes == {"image_1": (8, 8, 3), "image_0": (8, 8, 3)}


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("file_format", ["tfrecord", "array_record"])
def test_motion_is_that_of_the_whole_episode(tmp_path, file_format, stride):
    episodes = [rlds.StoredEpisode.random(i, 10 + i) for i in range(3)]
    root = rlds.write_dataset(tmp_path / "toy", {"train": episodes}, file_format=file_format)
    reader = EpisodeReader(root, "train")
    for i, episode in enumerate(reader):
        targets, states = reader.motion(i, stride)
        expected = episode_actions(
            reader.declaration, episode.state, episode.command, stride=stride
        )
        np.testing.assert_array_equal(targets, expected.targets)
        np.testing.assert_array_equal(states, episodes[i].state[1:])
        assert len(targets) == len(states) - stride


def test_episodes_without_metadata_are_named_by_their_states(tmp_path):
    one, other = (rlds.StoredEpisode.random(seed, 5, name="") for seed in (1, 2))
    root = rlds.write_dataset(tmp_path / "a", {"train": [one, other], "val": [other]})
    train, val = EpisodeReader(root, "train"), EpisodeReader(root, "val")
    assert train.headers[1].name == val.headers[0].name != train.headers[0].name


def test_fingerprint_follows_content_only(toy, tmp_path):
    fingerprint = EpisodeReader(toy, "train").fingerprint
    copy = tmp_path / "copy"
    toy.rename(copy)
    assert EpisodeReader(copy, "train").fingerprint == fingerprint
    assert EpisodeReader(copy, "val").fingerprint != fingerprint
    episodes = [rlds.StoredEpisode.random(i, 10 + i) for i in range(3)]
    episodes[1].state[4, 2] += 1
    rlds.write_dataset(toy, {"train": episodes})
    assert EpisodeReader(toy, "train").fingerprint != fingerprint


@pytest.mark.parametrize("missing", ["features.json", "dataset_info.json"])
def test_wrong_root(toy, missing):
    with pytest.raises(FileNotFoundError, match=r"no features.json and no dataset_info.json.*/toy"):
        EpisodeReader(toy.parent, "train")
    (toy / missing).unlink()
    with pytest.raises(FileNotFoundError, match=f"data.root = {toy}: found no {missing};"):
        EpisodeReader(toy, "train")


def test_unknown_split_names_the_nearest(toy):
    with pytest.raises(ValueError, match=r"no split 'vall'; did you mean 'val'"):
        EpisodeReader(toy, "vall")


@pytest.mark.parametrize("shards", [["0"], []])
def test_empty_split(tmp_path, shards):
    root = rlds.write_dataset(tmp_path / "toy", {"train": []})
    info = json.loads((root / "dataset_info.json").read_text())
    info["splits"][0]["shardLengths"] = shards
    (root / "dataset_info.json").write_text(json.dumps(info))
    with pytest.raises(ValueError, match="split 'train' is empty"):
        EpisodeReader(root, "train")


@pytest.mark.parametrize("cameras", [(), ("image_0", "image_1", "image_0")])
def test_no_camera_and_one_twice(toy, cameras):
    with pytest.raises(ValueError, match=r"data.cameras = \(.*expected at least one camera, each"):
        EpisodeReader(toy, "train", cameras=cameras)


def test_an_unknown_file_format(toy):
    info = json.loads((toy / "dataset_info.json").read_text())
    (toy / "dataset_info.json").write_text(json.dumps(info | {"fileFormat": "parquet"}))
    with pytest.raises(ValueError, match="parquet, expected one of tfrecord, array_record"):
        EpisodeReader(toy, "train")


@pytest.mark.parametrize(
    ("camera", "hint"), [("image_7", "did you mean 'image_1'"), ("depth", "known: image_0, ")]
)
def test_missing_camera_names_the_nearest(toy, camera, hint):
    with pytest.raises(ValueError, match=f"no RGB camera '{camera}'; {hint}"):
        EpisodeReader(toy, "train", cameras=("image_0", camera))


def test_a_layout_that_nothing_declares(tmp_path):
    """Every layout that the package knows, and what the data lacks of it."""
    vector = tfds.features.Tensor(shape=(3,), dtype=np.float32)
    features = rlds.bridge_features(8, action={"world_vector": vector, "rotation_delta": vector})
    root = rlds.write_dataset(tmp_path / "other", {"train": []}, features)
    with pytest.raises(ValueError, match="features.json is that of no dataset") as error:
        EpisodeReader(root, "train")
    text = str(error.value)
    assert "toy_bridge/1.0.0 in" in text and str(root) in text
    assert "BridgeData V2 needs steps/action; OXE bridge needs steps/action/open_gripper" in text
    assert "--config.data.declaration=FILE" in text


def test_another_action_width_is_refused(tmp_path):
    features = rlds.bridge_features(8, action=tfds.features.Tensor(shape=(8,), dtype=np.float32))
    root = rlds.write_dataset(tmp_path / "wide", {"train": []}, features)
    with pytest.raises(ValueError, match=r"steps/action has 8 numbers, expected 7"):
        EpisodeReader(root, "train")


def test_a_dataset_without_rewards_is_refused(tmp_path):
    features = rlds.bridge_features(8, reward=None)
    root = rlds.write_dataset(tmp_path / "bare", {"train": []}, features)
    with pytest.raises(ValueError, match=r"no dataset.*BridgeData V2 needs steps/reward"):
        EpisodeReader(root, "train")


def test_text_is_optional(tmp_path):
    class Mute(rlds.StoredEpisode):
        """Without words, their embedding and a name."""

        def example(self):
            return rlds.example(
                {
                    "steps/observation/image_0": rlds.encode(self.frames),
                    "steps/observation/state": self.state,
                    "steps/action": self.action,
                    "steps/reward": self.reward,
                }
            )

    features = rlds.bridge_features(8, language_instruction=None, language_embedding=None)
    features = tfds.features.FeaturesDict({"steps": features["steps"]})
    episodes = [Mute.random(seed, 5) for seed in range(2)]
    reader = EpisodeReader(
        rlds.write_dataset(tmp_path / "mute", {"train": episodes}, features), "train"
    )
    assert not reader.has_embedding and reader[1].language_embedding is None
    assert [header.instruction for header in reader.headers] == ["", ""]
    assert reader.headers[0].name.startswith("state-")
    assert reader.headers[0].name != reader.headers[1].name
    np.testing.assert_array_equal(reader[1].state, episodes[1].state)


def test_steps_without_a_reward_are_refused(toy):
    episode = rlds.StoredEpisode.random(9, 10)
    episode.reward = episode.reward[:-1]
    rlds.write_dataset(toy, {"val": [episode]})
    with pytest.raises(ValueError, match=r"record at byte 0: .*'steps/reward': 9.0}, expected 10"):
        EpisodeReader(toy, "val")[0]


def test_a_short_embedding_is_refused(toy):
    episode = rlds.StoredEpisode.random(9, 10)
    episode.embedding = episode.embedding[:5]
    rlds.write_dataset(toy, {"val": [episode]})
    with pytest.raises(ValueError, match=r"record at byte 0: .*language_embedding': 6.25}.* 10"):
        EpisodeReader(toy, "val")[0]


def test_an_episode_without_steps_is_only_short(toy):
    empty = {
        "steps/observation/image_0": [],
        "steps/observation/state": np.zeros(0, np.float32),
        "steps/action": np.zeros(0, np.float32),
        "steps/reward": np.zeros(0, np.float32),
        "steps/language_instruction": [],
        "steps/language_embedding": np.zeros(0, np.float32),
        "episode_metadata/file_path": [b"empty"],
        "episode_metadata/episode_id": [7],
    }
    episode = rlds.StoredEpisode.random(9, 1)
    episode.example = lambda: rlds.example(empty)
    rlds.write_dataset(toy, {"val": [episode, rlds.StoredEpisode.random(8, 4)]})
    reader = EpisodeReader(toy, "val")
    assert reader.headers.steps.tolist() == [0, 4]
    actions, states = reader.motion(0)
    assert (actions.shape, states.shape) == ((0, 7), (0, 7))


def test_frames_of_several_shapes_are_refused(toy):
    episode = rlds.StoredEpisode.random(9, 4)
    found = EpisodeReader(toy, "val")[0]
    png = cv2.imencode(".png", np.zeros((4, 6, 3), np.uint8))[1].tobytes()
    images = {"image_0": [found.images["image_0"][0], memoryview(png)]}
    mixed = dataclasses.replace(found, images=images, frame_shapes={"image_0": (None, None, 3)})
    with pytest.raises(ValueError, match=r"frames of several shapes \[\(4, 6, 3\), \(8, 8, 3\)\]"):
        mixed.frames(range(2), camera="image_0")
    assert mixed.frames([0], camera="image_0").shape == (1, *episode.frames.shape[1:])


def test_missing_shard(toy):
    rlds.shard_path(toy, "val").unlink()
    with pytest.raises(FileNotFoundError, match="toy_bridge-val.*no such shard"):
        EpisodeReader(toy, "val")


def test_truncated_shard_names_file_and_byte(toy):
    path = rlds.shard_path(toy, "train")
    last = index_shard(path)[-1].offset
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=f"{path}: truncated record at byte {last}"):
        EpisodeReader(toy, "train")


def test_shard_cut_between_records(toy):
    path = rlds.shard_path(toy, "train")
    path.write_bytes(path.read_bytes()[: index_shard(path)[-1].offset])
    with pytest.raises(ValueError, match=r"2 records in .*expected 3 by dataset_info.json"):
        EpisodeReader(toy, "train")


def test_a_flipped_frame_is_found_when_it_is_read(toy):
    path = rlds.shard_path(toy, "train")
    second = index_shard(path)[1]
    damaged = bytearray(path.read_bytes())
    frame = damaged.find(b"IDAT", second.offset)
    damaged[frame + 9] ^= 1
    path.write_bytes(damaged)
    reader = EpisodeReader(toy, "train")
    reader[0]
    with pytest.raises(ValueError, match=f"{path}: damaged record at byte {second.offset}"):
        reader[1]


def test_flipped_structure_is_reported_as_damage(toy):
    path = rlds.shard_path(toy, "train")
    second = index_shard(path)[1]
    damaged = bytearray(path.read_bytes())
    damaged[second.payload_offset] ^= 2
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match=f"{path}: damaged record at byte {second.offset}"):
        EpisodeReader(toy, "train")


def test_intact_records_of_something_else(toy):
    path = rlds.shard_path(toy, "val")
    path.write_bytes(rlds.frame_record(b"no example"))
    with pytest.raises(ValueError, match=r"record at byte 0: .*expected an episode"):
        EpisodeReader(toy, "val")


def test_frames_of_another_size_than_declared(tmp_path):
    root = rlds.write_dataset(
        tmp_path / "toy", {"train": [rlds.StoredEpisode.random(0, 5)]}, rlds.bridge_features(16)
    )
    with pytest.raises(
        ValueError, match=r"image_0, step 2: frame of shape \(8, 8, 3\), expected \(16, 16"
    ):
        EpisodeReader(root, "train")[0].frames(range(2, 4), camera="image_0")
