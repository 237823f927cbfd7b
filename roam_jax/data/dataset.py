"""Random access to the episodes of an RLDS dataset: one camera, still encoded, checked.

The schema comes from the dataset's own `features.json` (through tfds, which needs no TensorFlow
for it), the records from our own reader: tfds offers no random access to TFRecord files, and its
parser with `SkipDecoding` takes several times as long for an episode.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import mmap
import os
import pathlib

import cv2
import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Float32, UInt8

from roam_jax.contracts import ACTION_DIM, PROPRIO_DIM
from roam_jax.data.example import Example
from roam_jax.data.records import Record, index_shard, read_record
from roam_jax.spelling import did_you_mean

STATE = "steps/observation/state"
ACTION = "steps/action"
REWARD = "steps/reward"
INSTRUCTION = "steps/language_instruction"
EMBEDDING = "steps/language_embedding"
FILE_PATH = "episode_metadata/file_path"
EPISODE_ID = "episode_metadata/episode_id"
# Numbers of every step, and their shape.
TRACKS = {STATE: (PROPRIO_DIM,), ACTION: (ACTION_DIM,), REWARD: ()}
# Episodes are stored upright; an orientation tag must not turn a frame.
DECODE_FLAGS = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION


@dataclasses.dataclass(frozen=True)
class EpisodeHeader:
    """What an index needs to know of an episode.

    Args:
        name: `file_path#episode_id` where the dataset has both, else a hash of the states; the
            same episode has the same name in every split.
        steps: stored steps, the first (a zero action) included.
        instruction: language instruction of the first step; often empty.
    """

    name: str
    steps: int
    instruction: str


@dataclasses.dataclass(frozen=True)
class Episode:
    """One stored episode, every step of it; frames stay encoded until they are asked for.

    Args:
        header: its name, length and instruction.
        state: x, y, z in m; roll, pitch, yaw in rad; gripper.
        action: stored commands: deltas of x, y, z, roll, pitch, yaw; gripper 1 open, 0 closed.
        reward: as stored with each step; Bridge stores 1 with the last one.
        language_embedding: sentence embedding of the first step, None where the dataset has none.
        images: encoded frames of the reader's camera.
        frame_shape: height, width and channels by `features.json`; None = any.
    """

    header: EpisodeHeader
    state: Float32[np.ndarray, "steps 7"]
    action: Float32[np.ndarray, "steps 7"]
    reward: Float32[np.ndarray, " steps"]
    language_embedding: Float32[np.ndarray, " D"] | None
    images: tuple[bytes, ...]
    frame_shape: tuple[int | None, ...]

    def frames(self, start: int, stop: int) -> UInt8[np.ndarray, "T H W 3"]:
        """Decodes steps start..stop - 1 as RGB.

        Raises:
            ValueError: a frame does not decode, or not to the shape in `features.json`.
        """
        return np.stack([self._frame(step) for step in range(start, stop)])

    def _frame(self, step: int) -> np.ndarray:
        encoded = np.frombuffer(self.images[step], np.uint8)
        frame = cv2.imdecode(encoded, DECODE_FLAGS) if encoded.size else None
        if frame is None:
            raise ValueError(
                f"episode {self.header.name}, step {step}: {encoded.size} bytes that are no image"
            )
        if any(n not in (None, m) for n, m in zip(self.frame_shape, frame.shape, strict=True)):
            raise ValueError(
                f"episode {self.header.name}, step {step}: frame of shape {frame.shape}, "
                f"expected {self.frame_shape} by features.json"
            )
        return frame


class EpisodeReader:
    """The episodes of one split, in stored order.

    `reader[i]` reads, checks and parses one record and leaves nothing in memory. The flags
    `has_image_*` are not consulted: published copies have them False beside real frames.

    Args:
        root: version folder of a tfds dataset, such as bridge_dataset/1.0.0.
        split: name of a split.
        camera: image feature of the observation.

    Raises:
        FileNotFoundError: the folder, its description or a shard is missing.
        ValueError: unknown or empty split, unknown camera, another layout than Bridge's, a
            damaged record header, or fewer records than the dataset declares.
    """

    def __init__(self, root: str | os.PathLike, split: str, *, camera: str = "image_0"):
        self.root = pathlib.Path(root).expanduser()
        self.split = split
        self.camera = camera
        info = _open(self.root).info
        self.dataset = f"{info.name}/{info.version}"
        self._image = f"steps/observation/{camera}"
        self._features = _feature_table(info.features)
        self._check_features()
        self._records = _index_split(self.root, info, split)
        self.headers = self._scan()

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Episode:
        """Reads one episode.

        Raises:
            ValueError: the record is damaged (names file and byte) or lacks what is needed.
        """
        record = self._records[index]
        payload = read_record(record)
        try:
            return self._parse(Example(payload), self.headers[index])
        except ValueError as error:
            raise ValueError(f"{record.path}: record at byte {record.offset}: {error}") from error

    @property
    def frame_shape(self) -> tuple[int | None, ...]:
        """Height, width and channels of the camera's stored frames; None = any."""
        return self._features[self._image].shape

    @property
    def has_embedding(self) -> bool:
        """Whether the dataset stores a `language_embedding` a step."""
        return EMBEDDING in self._features

    @property
    def fingerprint(self) -> str:
        """Hash of the dataset's version and the stored checksum of every record of the split.

        The same for a copy of the same files elsewhere, another as soon as one record differs.
        """
        shards = [[r.path.name, r.offset, r.length, r.checksum] for r in self._records]
        text = json.dumps([self.dataset, self.split, shards])
        return hashlib.sha256(text.encode()).hexdigest()

    def _check_features(self) -> None:
        """Refuses other layouts than Bridge's, by the names and shapes in features.json."""
        cameras = {
            name.removeprefix("steps/observation/")
            for name, feature in self._features.items()
            if isinstance(feature, tfds.features.Image) and feature.shape[-1] == 3
        }
        where = f"{self.dataset} in {self.root}"
        nested = [name for name in self._features if name.startswith(f"{ACTION}/")]
        if nested:
            raise ValueError(
                f"{where} has a dict action with {sorted(nested)}, the layout of OXE's `bridge`; "
                f"expected {ACTION} as ({ACTION_DIM},) float32, as in bridge_dataset 1.0.0"
            )
        for name, shape in TRACKS.items():
            feature = self._features.get(name)
            if feature is None or feature.shape != shape or feature.np_dtype != np.float32:
                raise ValueError(f"{where}: {name} is {feature}, expected {shape} float32")
        if self.camera not in cameras:
            raise ValueError(
                f"{where} has no RGB camera {self.camera!r}; {did_you_mean(self.camera, cameras)}"
            )

    def _scan(self) -> tuple[EpisodeHeader, ...]:
        """Headers of all episodes, from the few pages of each record that hold them."""
        headers = []
        shards: dict[pathlib.Path, list[Record]] = {}
        for record in self._records:
            shards.setdefault(record.path, []).append(record)
        for path, records in shards.items():
            # Mapped only while it is indexed, so that no page stays counted as ours; without
            # read-ahead, which would fetch the frames between the pages that are wanted.
            with (
                open(path, "rb") as shard,
                mmap.mmap(shard.fileno(), 0, access=mmap.ACCESS_READ) as pages,
            ):
                pages.madvise(mmap.MADV_RANDOM)
                headers += [self._scan_record(record, pages) for record in records]
        return tuple(headers)

    def _scan_record(self, record: Record, pages: mmap.mmap) -> EpisodeHeader:
        start = record.payload_offset
        try:
            return self._header(Example(pages, start, start + record.length))
        except ValueError as error:
            read_record(record)  # a damaged record is reported as such
            raise ValueError(
                f"{record.path}: record at byte {record.offset}: {error}; "
                "expected an episode as features.json describes it"
            ) from error

    def _header(self, example: Example) -> EpisodeHeader:
        floats = example.float_count(STATE)
        if floats % PROPRIO_DIM:
            raise ValueError(f"{STATE} has {floats} values, expected a multiple of {PROPRIO_DIM}")
        instruction = ""
        if INSTRUCTION in self._features:
            instruction = b"".join(example.byte_strings(INSTRUCTION, 1)).decode()
        return EpisodeHeader(self._name(example), floats // PROPRIO_DIM, instruction)

    def _name(self, example: Example) -> str:
        if FILE_PATH in self._features and EPISODE_ID in self._features:
            path = b"".join(example.byte_strings(FILE_PATH, 1)).decode()
            number = example.integers(EPISODE_ID)
            if path and number:
                return f"{path}#{number[0]}"
        return f"state-{hashlib.sha256(example.floats(STATE).tobytes()).hexdigest()[:16]}"

    def _parse(self, example: Example, header: EpisodeHeader) -> Episode:
        images = tuple(example.byte_strings(self._image))
        lengths = {self.camera: len(images)}
        tracks = {name: example.floats(name) for name in TRACKS}
        lengths |= {n: len(tracks[n]) / math.prod(shape) for n, shape in TRACKS.items()}
        if set(lengths.values()) != {header.steps}:
            raise ValueError(f"steps differ between features: {lengths}, expected {header.steps}")
        embedding = None
        if self.has_embedding:
            width = self._features[EMBEDDING].shape[0]
            embedding = example.floats(EMBEDDING)[:width]
        return Episode(
            header=header,
            state=tracks[STATE].reshape(-1, PROPRIO_DIM),
            action=tracks[ACTION].reshape(-1, ACTION_DIM),
            reward=tracks[REWARD],
            language_embedding=embedding,
            images=images,
            frame_shape=self.frame_shape,
        )


def _open(root: pathlib.Path) -> tfds.core.DatasetBuilder:
    """The builder that describes the dataset in `root`.

    Raises:
        FileNotFoundError: no dataset there; names the version folder below where there is one.
    """
    missing = [n for n in ("features.json", "dataset_info.json") if not (root / n).is_file()]
    if missing:
        below = sorted(path.parent for path in root.glob("*/features.json"))
        hint = f"; did you mean {below[-1]}?" if below else ""
        raise FileNotFoundError(
            f"data.root = {root}: found no {' and no '.join(missing)}; expected the version folder "
            f"of a tfds dataset, such as bridge_dataset/1.0.0{hint}"
        )
    return tfds.builder_from_directory(root)


def _feature_table(
    features: tfds.features.FeaturesDict,
) -> dict[str, tfds.features.FeatureConnector]:
    """Leaf features by the names that they have in a record, such as steps/observation/state."""
    table = {}

    def visit(prefix: str, feature: tfds.features.FeatureConnector) -> None:
        if isinstance(feature, tfds.features.Dataset):
            feature = feature.feature
        if isinstance(feature, tfds.features.FeaturesDict):
            for name, child in feature.items():
                visit(f"{prefix}/{name}" if prefix else name, child)
        else:
            table[prefix] = feature

    visit("", features)
    return table


def _index_split(root: pathlib.Path, info: tfds.core.DatasetInfo, split: str) -> tuple[Record, ...]:
    """Records of a split in stored order, as many as dataset_info.json declares."""
    if info.file_format is not tfds.core.FileFormat.TFRECORD:
        raise ValueError(f"{root}: file format {info.file_format.value}, expected tfrecord")
    if split not in info.splits:
        raise ValueError(f"{root} has no split {split!r}; {did_you_mean(split, info.splits)}")
    shards = info.splits[split]
    records = []
    for path, declared in zip(shards.filepaths, shards.shard_lengths, strict=True):
        path = pathlib.Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such shard of split {split!r}")
        found = index_shard(path)
        if len(found) != declared:
            raise ValueError(
                f"{path}: {len(found)} records in {path.stat().st_size} bytes, "
                f"expected {declared} by dataset_info.json"
            )
        records += found
    if not records:
        raise ValueError(f"{root}: split {split!r} is empty; expected at least one episode")
    return tuple(records)
