"""Datasets laid out as BridgeData V2 for the benchmarks, written by hand: frames and file framing.

The features, their order in a record and the sizes are Bridge's; what the robot does is random.
"""

from __future__ import annotations

import json
import pathlib
import struct
from collections.abc import Sequence

import cv2
import google_crc32c
import numpy as np
import tensorflow_datasets as tfds

NAME = "bridge_dataset"
EPISODES, STEPS = 60_064, 38
CAMERAS = tuple(f"image_{i}" for i in range(4))
FRAME = 256
EMBEDDING = 512
# How fast the amplitudes of a frame's texture fall with their frequency.
SPECTRUM = 1.6
BYTES, FLOATS, INTEGERS = 1, 2, 3


def describe(root: pathlib.Path, shard_lengths: Sequence[int]) -> None:
    """Writes features.json and dataset_info.json of a train split."""
    tensor, scalar = tfds.features.Tensor, tfds.features.Scalar
    image = tfds.features.Image(shape=(FRAME, FRAME, 3), encoding_format="jpeg")
    step = {
        "observation": {
            **dict.fromkeys(CAMERAS, image),
            "state": tensor(shape=(7,), dtype=np.float32),
        },
        "action": tensor(shape=(7,), dtype=np.float32),
        "is_first": scalar(dtype=np.bool_),
        "is_last": scalar(dtype=np.bool_),
        "language_embedding": tensor(shape=(EMBEDDING,), dtype=np.float32),
        "language_instruction": tfds.features.Text(),
        "reward": scalar(dtype=np.float32),
    }
    metadata = {"episode_id": scalar(dtype=np.int32), "file_path": tfds.features.Text()}
    features = {"episode_metadata": metadata, "steps": tfds.features.Dataset(step)}
    tfds.features.FeaturesDict(features).save_config(root)
    split = {"name": "train", "shardLengths": [str(count) for count in shard_lengths]}
    split["filepathTemplate"] = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
    info = {"name": NAME, "version": "1.0.0", "fileFormat": "tfrecord", "splits": [split]}
    (root / "dataset_info.json").write_text(json.dumps(info))


def shard_path(root: pathlib.Path, number: int, shards: int) -> pathlib.Path:
    return root / f"{NAME}-train.tfrecord-{number:05}-of-{shards:05}"


def record(number: int, images: dict[str, list[bytes | int]]) -> list[bytes | int]:
    """One framed TFRecord, in pieces: bytes, or how many zeros stand there.

    The checksum of the payload is right only where there is no piece of zeros.

    Args:
        number: of the episode.
        images: camera -> encoded frames, or sizes of frames that are zeros.
    """
    rng = np.random.default_rng(number)
    state, action = rng.normal(0, 0.02, (2, STEPS, 7)).astype("<f4")
    action[:, 6] = rng.random(STEPS) > 0.5
    zeros = any(isinstance(frame, int) for frames in images.values() for frame in frames)
    embedding: bytes | int = 4 * EMBEDDING * STEPS
    if not zeros:
        embedding = rng.normal(size=EMBEDDING).astype("<f4").tobytes() * STEPS
    step = np.arange(STEPS)
    instruction = f"put thing {number % 5000} on plate {number % 7}".encode()
    pieces = [
        *_entry("episode_metadata/episode_id", INTEGERS, [_varint(number)]),
        *_entry("episode_metadata/file_path", BYTES, [f"/bridge/{number}/out.npy".encode()]),
        *_entry("steps/action", FLOATS, [action.tobytes()]),
        *_entry("steps/is_first", INTEGERS, [bytes((step == 0).tolist())]),
        *_entry("steps/is_last", INTEGERS, [bytes((step == STEPS - 1).tolist())]),
        *_entry("steps/language_embedding", FLOATS, [embedding]),
        *_entry("steps/language_instruction", BYTES, [instruction] * STEPS),
    ]
    for camera, frames in images.items():
        pieces += _entry(f"steps/observation/{camera}", BYTES, frames)
    pieces += _entry("steps/observation/state", FLOATS, [state.tobytes()])
    pieces += _entry("steps/reward", FLOATS, [(step == STEPS - 1).astype("<f4").tobytes()])
    pieces = _field(1, pieces)
    length = struct.pack("<Q", _size(pieces))
    checksum = bytes(4) if zeros else _masked(b"".join(pieces))
    return [length + _masked(length), *pieces, checksum]


def natural_jpegs(count: int, *, quality: int, seed: int = 0) -> list[bytes]:
    """Frames that compress as Bridge's do: a table of soft texture with things on it."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(2 * FRAME)[:, None], np.fft.rfftfreq(2 * FRAME))
    fall = 1 / np.maximum(frequency, 1 / (2 * FRAME)) ** SPECTRUM
    encoded = []
    while len(encoded) < count:
        spectrum = np.fft.rfft2(rng.normal(size=(3, 2 * FRAME, 2 * FRAME))) * fall
        texture = np.fft.irfft2(spectrum)
        grey, *tints = (t / t.std() for t in texture)
        scene = np.stack([110 + 35 * grey + 12 * t for t in (*tints, -tints[0])], axis=-1)
        scene = np.ascontiguousarray(np.clip(scene, 0, 255).astype(np.uint8))
        for _ in range(12):
            corner = rng.integers(0, 2 * FRAME, 2).tolist()
            extent = rng.integers(20, 90, 2).tolist()
            colour = rng.integers(0, 256, 3).tolist()
            cv2.rectangle(scene, (*corner, *extent), colour, cv2.FILLED)
        for top, left in rng.integers(0, FRAME, (min(40, count - len(encoded)), 2)):
            frame = scene[top : top + FRAME, left : left + FRAME]
            flags = (cv2.IMWRITE_JPEG_QUALITY, quality)
            encoded.append(cv2.imencode(".jpg", frame, flags)[1].tobytes())
    return encoded


def _entry(name: str, kind: int, values: Sequence[bytes | int]) -> list[bytes | int]:
    """One feature of the example."""
    listed = [piece for value in values for piece in _field(1, [value])]
    return _field(1, [*_field(1, [name.encode()]), *_field(2, _field(kind, listed))])


def _field(number: int, pieces: Sequence[bytes | int]) -> list[bytes | int]:
    return [_varint(number << 3 | 2) + _varint(_size(pieces)), *pieces]


def _size(pieces: Sequence[bytes | int]) -> int:
    return sum(piece if isinstance(piece, int) else len(piece) for piece in pieces)


def _varint(value: int) -> bytes:
    out = []
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _masked(data: bytes) -> bytes:
    crc = google_crc32c.value(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)
