"""Writes small Bridge-like datasets for the tests, with nothing of the code under test."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import struct

import cv2
import google_crc32c
import numpy as np
import tensorflow_datasets as tfds


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
        pngs = [cv2.imencode(".png", frame[..., ::-1])[1].tobytes() for frame in self.frames]
        black = cv2.imencode(".png", np.zeros_like(self.frames[0]))[1].tobytes()
        depth = cv2.imencode(".png", np.zeros_like(self.frames[0, ..., 0]))[1].tobytes()
        return example(
            {
                "steps/observation/image_0": pngs,
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


def write_dataset(
    root: pathlib.Path,
    splits: dict[str, list[StoredEpisode]],
    features: tfds.features.FeaturesDict | None = None,
) -> pathlib.Path:
    """A dataset folder with one shard a split."""
    root.mkdir(parents=True, exist_ok=True)
    size = max((e.frames.shape[1] for s in splits.values() for e in s), default=8)
    features = features or bridge_features(size)
    features.save_config(root)
    info = {"name": "toy_bridge", "version": "1.0.0", "fileFormat": "tfrecord", "splits": []}
    for split, episodes in splits.items():
        payload = b"".join(frame_record(episode.example()) for episode in episodes)
        shard_path(root, split).write_bytes(payload)
        info["splits"].append(
            {
                "name": split,
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
                "numBytes": str(len(payload)),
                "shardLengths": [str(len(episodes))],
            }
        )
    (root / "dataset_info.json").write_text(json.dumps(info))
    return root


def shard_path(root: pathlib.Path, split: str) -> pathlib.Path:
    return root / f"toy_bridge-{split}.tfrecord-00000-of-00001"


def frame_record(payload: bytes) -> bytes:
    """TFRecord framing of one payload."""
    length = struct.pack("<Q", len(payload))
    return length + _masked(length) + payload + _masked(payload)


def example(features: dict) -> bytes:
    """A tf.train.Example: lists of bytes, lists of ints, or arrays of floats by name."""
    entries = []
    for name, values in features.items():
        if isinstance(values, np.ndarray):
            kind, body = 2, field(1, values.astype("<f4").tobytes())
        elif isinstance(values[0], int):
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
