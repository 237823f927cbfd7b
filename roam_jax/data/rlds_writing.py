"""Writes RLDS datasets as TFRecords that tensorflow_datasets reads, without TensorFlow.

A folder appears only when it is complete: several processes may ask for it at once.
"""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_generated_pb2 as tf_example

from roam_jax.data.records import frame_record

T = TypeVar("T")


def write_folder_once(folder: pathlib.Path, write: Callable[[pathlib.Path], T]) -> T:
    """Writes into a temporary sibling and renames it; a folder of another process stays.

    Args:
        folder: the place of the result.
        write: fills the (empty, existing) folder that it is given.

    Returns:
        What `write` returned.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = pathlib.Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        result = write(temporary)
        temporary.chmod(0o755)  # mkdtemp's is for its owner alone
        try:
            os.rename(temporary, folder)
        except OSError:
            # A folder cannot be renamed onto a full one: another process was first.
            if not folder.exists():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return result


def shard_name(name: str, split: str) -> str:
    """File name of the only shard of a split."""
    return f"{name}-{split}.tfrecord-00000-of-00001"


def write_split(
    root: pathlib.Path, name: str, split: str, payloads: Iterable[bytes]
) -> dict[str, Any]:
    """Writes one shard of records.

    Returns:
        The split's entry in `dataset_info.json`.
    """
    size = count = 0
    with (root / shard_name(name, split)).open("wb") as shard:
        for payload in payloads:
            shard.write(frame_record(payload))
            size += len(payload)
            count += 1
    return {
        "name": split,
        "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
        "numBytes": str(size),
        "shardLengths": [str(count)],
    }


def write_info(
    root: pathlib.Path,
    features: tfds.features.FeaturesDict,
    *,
    name: str,
    version: str,
    module: str,
    description: str,
    generator: int,
    splits: list[dict[str, Any]],
) -> None:
    """Writes `features.json` and `dataset_info.json` beside the shards."""
    info = {
        "citation": "roam_jax",
        "description": description,
        "fileFormat": "tfrecord",
        "moduleName": module,
        "name": name,
        "releaseNotes": {version: f"Generator {generator}."},
        "splits": splits,
        "version": version,
    }
    features.save_config(root)
    (root / "dataset_info.json").write_text(json.dumps(info, indent=2))


def serialize_example(flat: Mapping[str, list[bytes] | np.ndarray]) -> bytes:
    """A tf.train.Example: bytes, floats and integers go to the three lists that it knows.

    tfds names nested features by "/"-joined paths and stores a sequence's steps end to end.
    """
    example = tf_example.Example()
    for name, values in flat.items():
        feature = example.features.feature[name]
        if isinstance(values, list):
            feature.bytes_list.value.extend(values)
        elif np.issubdtype(values.dtype, np.floating):
            feature.float_list.value.extend(values.astype(np.float32).ravel().tolist())
        else:
            feature.int64_list.value.extend(values.astype(np.int64).ravel().tolist())
    return example.SerializeToString(deterministic=True)
