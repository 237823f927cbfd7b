"""Writes small RLDS datasets for the tests, with nothing of the code under test.

`StoredEpisode` has Bridge's layout, `OxeEpisode` that of the Open X-Embodiment copy, `ArmEpisode`
that of a robot which the package does not know.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import struct
from collections.abc import Iterator, Sequence
from typing import Protocol

import cv2
import google_crc32c
import numpy as np
import tensorflow_datasets as tfds
from array_record.python import array_record_module


def bridge_features(size: int, **overrides) -> tfds.features.FeaturesDict:
    """Bridge's features with two cameras; `overrides` replace or (None) remove step features."""
    step = {
        "observation": {
            "image_0": tfds.features.Image(shape=(size, size, 3), encoding_format="png"),
            "image_1": tfds.features.Image(shape=(size, size, 3), encoding_format="png"),
            "depth_0": tfds.features.Image(shape=(size, size, 1), encoding_format="png"),
            "state": tfds.features.Tensor(shape=(7,), dtype=np.float32),
        },
        "action": tfds.features.Tensor(shape=(7,), dtype=np.float32),
        "reward": tfds.features.Scalar(dtype=np.float32),
        "language_instruction": tfds.features.Text(),
        "language_embedding": tfds.features.Tensor(shape=(8,), dtype=np.float32),
        **overrides,
    }
    return tfds.features.FeaturesDict(
        {
            "steps": tfds.features.Dataset({k: v for k, v in step.items() if v is not None}),
            "episode_metadata": {
                "file_path": tfds.features.Text(),
                "episode_id": tfds.features.Scalar(dtype=np.int32),
            },
        }
    )


@dataclasses.dataclass
class StoredEpisode:
    """Raw content of one episode; every array has all stored steps."""

    name: str
    state: np.ndarray
    action: np.ndarray
    reward: np.ndarray
    frames: np.ndarray
    instruction: str
    embedding: np.ndarray
    number: int = 0

    @classmethod
    def random(cls, seed: int, steps: int, *, size: int = 8, name: str | None = None):
        """An episode that nothing repeats; losslessly encoded frames."""
        rng = np.random.default_rng(seed)
        action = rng.normal(0, 0.02, (steps, 7)).astype(np.float32)
        action[:, 6] = rng.choice([0.0, 0.5, 1.0], steps)
        return cls(
            name=f"/recordings/{seed}.npy" if name is None else name,
            state=rng.normal(0, 0.5, (steps, 7)).astype(np.float32),
            action=action,
            frames=rng.integers(0, 256, (steps, size, size, 3), np.uint8),
            instruction=f"do thing {seed}",
            embedding=rng.normal(size=8).astype(np.float32),
            reward=rng.normal(size=steps).astype(np.float32),
            number=seed,
        )

    def example(self) -> bytes:
        """The episode as a serialized tf.train.Example."""
        steps = len(self.frames)
        black = cv2.imencode(".png", np.zeros_like(self.frames[0]))[1].tobytes()
        depth = cv2.imencode(".png", np.zeros_like(self.frames[0, ..., 0]))[1].tobytes()
        return example(
            {
                "steps/observation/image_0": encode(self.frames),
                "steps/observation/image_1": [black] * steps,
                "steps/observation/depth_0": [depth] * steps,
                "steps/observation/state": self.state,
                "steps/action": self.action,
                "steps/reward": self.reward,
                "steps/language_instruction": [self.instruction.encode()] * steps,
                "steps/language_embedding": np.tile(self.embedding, steps),
                "episode_metadata/file_path": [self.name.encode()],
                "episode_metadata/episode_id": [self.number],
            }
        )


def oxe_features(size: int) -> tfds.features.FeaturesDict:
    """Features of OXE's `bridge` 0.1.0, in full."""
    tensor, scalar = tfds.features.Tensor, tfds.features.Scalar
    step = {
        "observation": {
            "image": tfds.features.Image(shape=(size, size, 3), encoding_format="png"),
            "natural_language_embedding": tensor(shape=(512,), dtype=np.float32),
            "natural_language_instruction": tensor(shape=(), dtype=np.object_),
            "state": tensor(shape=(7,), dtype=np.float32),
        },
        "action": {
            "open_gripper": scalar(dtype=np.bool_),
            "rotation_delta": tensor(shape=(3,), dtype=np.float32),
            "terminate_episode": scalar(dtype=np.float32),
            "world_vector": tensor(shape=(3,), dtype=np.float32),
        },
        "is_first": scalar(dtype=np.bool_),
        "is_last": scalar(dtype=np.bool_),
        "is_terminal": scalar(dtype=np.bool_),
        "reward": scalar(dtype=np.float32),
    }
    return tfds.features.FeaturesDict({"steps": tfds.features.Dataset(step)})


@dataclasses.dataclass
class OxeEpisode:
    """Raw content of an episode of OXE's `bridge`."""

    state: np.ndarray
    open_gripper: np.ndarray
    rotation_delta: np.ndarray
    world_vector: np.ndarray
    reward: np.ndarray
    frames: np.ndarray
    instruction: str
    embedding: np.ndarray

    @classmethod
    def random(cls, seed: int, steps: int, *, size: int = 8):
        """An episode that nothing repeats."""
        rng = np.random.default_rng([1, seed])
        return cls(
            state=rng.normal(0, 0.5, (steps, 7)).astype(np.float32),
            open_gripper=rng.random(steps) > 0.5,
            rotation_delta=rng.normal(size=(steps, 3)).astype(np.float32),
            world_vector=rng.normal(size=(steps, 3)).astype(np.float32),
            reward=rng.normal(size=steps).astype(np.float32),
            frames=rng.integers(0, 256, (steps, size, size, 3), np.uint8),
            instruction=f"do other thing {seed}",
            embedding=rng.normal(size=512).astype(np.float32),
        )

    def example(self) -> bytes:
        """The episode as a serialized tf.train.Example."""
        steps = len(self.frames)
        last = np.arange(steps) == steps - 1
        return example(
            {
                "steps/observation/image": encode(self.frames),
                "steps/observation/natural_language_embedding": np.tile(self.embedding, steps),
                "steps/observation/natural_language_instruction": [self.instruction.encode()]
                * steps,
                "steps/observation/state": self.state,
                "steps/action/open_gripper": self.open_gripper,
                "steps/action/rotation_delta": self.rotation_delta,
                "steps/action/terminate_episode": last.astype(np.float32),
                "steps/action/world_vector": self.world_vector,
                "steps/is_first": np.arange(steps) == 0,
                "steps/is_last": last,
                "steps/is_terminal": last,
                "steps/reward": self.reward,
            }
        )


def arm_features(size: int) -> tfds.features.FeaturesDict:
    """Six joints, one gripper, a wrist camera; no reward, no embedding, no metadata."""
    step = {
        "observation": {
            "wrist_rgb": tfds.features.Image(shape=(size, size, 3), encoding_format="png"),
            "joints": tfds.features.Tensor(shape=(7,), dtype=np.float32),
        },
        "action": tfds.features.Tensor(shape=(7,), dtype=np.float32),
        "task": tfds.features.Text(),
    }
    return tfds.features.FeaturesDict({"steps": tfds.features.Dataset(step)})


@dataclasses.dataclass
class ArmEpisode:
    """Raw content of an episode of the arm; grippers are stored 1 closed, 0 open."""

    joints: np.ndarray
    action: np.ndarray
    frames: np.ndarray
    task: str

    @classmethod
    def random(cls, seed: int, steps: int, *, size: int = 8):
        """An episode that nothing repeats."""
        rng = np.random.default_rng([2, seed])
        joints, action = rng.normal(0, 0.5, (2, steps, 7)).astype(np.float32)
        joints[:, 6], action[:, 6] = rng.random(steps), rng.choice([0.0, 0.5, 1.0], steps)
        frames = rng.integers(0, 256, (steps, size, size, 3), np.uint8)
        return cls(joints=joints, action=action, frames=frames, task=f"task {seed}")

    def example(self) -> bytes:
        """The episode as a serialized tf.train.Example."""
        return example(
            {
                "steps/observation/wrist_rgb": encode(self.frames),
                "steps/observation/joints": self.joints,
                "steps/action": self.action,
                "steps/task": [self.task.encode()] * len(self.frames),
            }
        )


class Serialized(Protocol):
    """An episode of any layout."""

    def example(self) -> bytes:
        """The episode as a serialized tf.train.Example."""


def encode(frames: np.ndarray) -> list[bytes]:
    """Frames as PNG, which loses nothing."""
    return [cv2.imencode(".png", frame[..., ::-1])[1].tobytes() for frame in frames]


def write_dataset(
    root: pathlib.Path,
    splits: dict[str, Sequence[Serialized]],
    features: tfds.features.FeaturesDict | None = None,
    *,
    name: str = "toy_bridge",
    shards: int = 1,
    file_format: str = "tfrecord",
) -> pathlib.Path:
    """A dataset folder; each split has `shards` files with as equal numbers as can be."""
    root.mkdir(parents=True, exist_ok=True)
    size = max((e.frames.shape[1] for s in splits.values() for e in s), default=8)
    features = features or bridge_features(size)
    features.save_config(root)
    info = {"name": name, "version": "1.0.0", "fileFormat": file_format, "splits": []}
    for split, episodes in splits.items():
        examples = [episode.example() for episode in episodes]
        parts = [
            [examples[i] for i in places]
            for places in np.array_split(np.arange(len(examples)), shards)
        ]
        for number, part in enumerate(parts):
            path = shard_path(root, split, number, of=shards, name=name, file_format=file_format)
            write_shard(path, part, file_format=file_format)
        info["splits"].append(
            {
                "name": split,
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
                "numBytes": str(sum(map(len, examples))),
                "shardLengths": [str(len(part)) for part in parts],
            }
        )
    (root / "dataset_info.json").write_text(json.dumps(info))
    return root


def write_shard(path: pathlib.Path, payloads: Sequence[bytes], *, file_format: str) -> None:
    """One file of records."""
    if file_format == "tfrecord":
        path.write_bytes(b"".join(map(frame_record, payloads)))
        return
    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1,uncompressed")
    for payload in payloads:
        writer.write(payload)
    writer.close()


def shard_path(
    root: pathlib.Path,
    split: str,
    number: int = 0,
    *,
    of: int = 1,
    name: str = "toy_bridge",
    file_format: str = "tfrecord",
) -> pathlib.Path:
    return root / f"{name}-{split}.{file_format}-{number:05}-of-{of:05}"


def payloads(path: pathlib.Path) -> list[bytes]:
    """Records of a TFRecord file, unchecked."""
    data, offset, found = path.read_bytes(), 0, []
    while offset < len(data):
        (length,) = struct.unpack_from("<Q", data, offset)
        found.append(data[offset + 12 : offset + 12 + length])
        offset += 16 + length
    return found


def decoded(root: pathlib.Path, split: str) -> Iterator[dict]:
    """Whole episodes of TFRecord shards by tfds, every camera decoded; steps are a list."""
    info = tfds.builder_from_directory(root).info
    for path in info.splits[split].filepaths:
        for payload in payloads(pathlib.Path(path)):
            episode = info.features.deserialize_example_np(payload)
            yield episode | {"steps": list(episode["steps"])}


def frame_record(payload: bytes) -> bytes:
    """TFRecord framing of one payload."""
    length = struct.pack("<Q", len(payload))
    return length + _masked(length) + payload + _masked(payload)


def example(features: dict) -> bytes:
    """A tf.train.Example: by name, lists of bytes or of ints, arrays of floats or of booleans."""
    entries = []
    for name, values in features.items():
        if isinstance(values, np.ndarray) and values.dtype == bool:
            values = values.astype(int).tolist()
        if isinstance(values, np.ndarray):
            kind, body = 2, field(1, values.astype("<f4").tobytes())
        elif values and isinstance(values[0], int):
            kind, body = 3, field(1, b"".join(varint(value) for value in values))
        else:
            kind, body = 1, b"".join(field(1, value) for value in values)
        entries.append(field(1, field(1, name.encode()) + field(2, field(kind, body))))
    return field(1, b"".join(entries))


def field(number: int, payload: bytes) -> bytes:
    """A length-delimited protobuf field."""
    return varint(number << 3 | 2) + varint(len(payload)) + payload


def varint(value: int) -> bytes:
    value %= 1 << 64
    out = []
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _masked(data: bytes) -> bytes:
    crc = google_crc32c.value(data)
    return struct.pack("<I", (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF)
