"""Random access to the episodes of an RLDS dataset: some cameras, still encoded, checked.

The schema comes from the dataset's own `features.json` (through tfds, which needs no TensorFlow
for it), its meaning from a declaration, the records from our own reader: tfds offers no random
access to TFRecord files, and its parser with `SkipDecoding` takes several times as long.
"""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
from types import ModuleType
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Float32, Int

from roam_jax.data.actions import episode_actions
from roam_jax.data.allocator import keep_freed_memory
from roam_jax.data.declaration import DatasetDeclaration, Stored, check_features
from roam_jax.data.episode import Episode
from roam_jax.data.example import Example, Message
from roam_jax.data.folder import FILE_FORMATS, feature_table, open_dataset
from roam_jax.data.index import EpisodeHeader, EpisodeIndex, build_index, cached_index
from roam_jax.data.known import detect_declaration
from roam_jax.data.records import Record
from roam_jax.spelling import did_you_mean


class EpisodeReader:
    """The episodes of one split, in stored order.

    `reader[i]` reads, checks and parses one record and leaves nothing in memory. The flags
    `has_image_*` are not consulted: published copies have them False beside real frames.

    Args:
        root: version folder of a tfds dataset, such as bridge_dataset/1.0.0.
        split: name of a split, or a part of one, such as "train[:95%]".
        cameras: which of the declared ones are read.
        declaration: what the numbers mean; None = one of the package's, by the features.

    Raises:
        FileNotFoundError: the folder, its description or a shard is missing.
        ValueError: unknown or empty split, unknown camera, features that no declaration fits, a
            damaged record, or another number of records than the dataset declares.
    """

    def __init__(
        self,
        root: str | os.PathLike,
        split: str,
        *,
        cameras: tuple[str, ...] = ("image_0",),
        declaration: DatasetDeclaration | None = None,
    ):
        self.root = pathlib.Path(root).expanduser()
        self.split = split
        self.cameras = cameras
        info = open_dataset(self.root)
        self._file_format = info.file_format
        self.dataset = f"{info.name}/{info.version}"
        self._features = feature_table(info.features)
        where = f"{self.dataset} in {self.root}"
        self.declaration = declaration or detect_declaration(self._features, where=where)
        check_features(self.declaration, self._features, where=where)
        self._check_cameras(where)
        self.headers = self._index(info)
        keep_freed_memory()

    def __setstate__(self, state: dict[str, Any]) -> None:
        # In a worker process.
        vars(self).update(state)
        keep_freed_memory()

    def __len__(self) -> int:
        return len(self.headers)

    def __getitem__(self, index: int) -> Episode:
        """Reads one episode.

        Raises:
            ValueError: the record is damaged (names file and byte) or lacks what is needed.
        """
        record = self.headers.record(index)
        try:
            payload = self._storage.read_record(record)
        except ValueError as error:
            raise ValueError(f"{error}{self.headers.explain(record)}") from error
        try:
            return self._parse(Example(payload), self.headers[index])
        except ValueError as error:
            raise ValueError(f"{self._storage.place(record)}: {error}") from error

    @property
    def _storage(self) -> ModuleType:
        """How shards are read; a module, which cannot travel to another process."""
        return FILE_FORMATS[self._file_format]

    @property
    def has_embedding(self) -> bool:
        """Whether the dataset stores an embedding of its instructions."""
        return self.declaration.embedding is not None

    @property
    def frame_shapes(self) -> dict[str, tuple[int | None, ...]]:
        """Camera -> height, width and channels of its stored frames; None = any."""
        declared = self.declaration.cameras
        return {camera: self._features[declared[camera]].shape for camera in self.cameras}

    @property
    def fingerprint(self) -> str:
        """Hash of the dataset's version and the length and checksum of every record of the split.

        The same for a copy elsewhere or in another shard format, another as soon as one record
        differs.
        """
        text = json.dumps([self.dataset, self.split, self.headers.digest()])
        return hashlib.sha256(text.encode()).hexdigest()

    def motion(
        self, index: int, stride: int = 1
    ) -> tuple[Float32[np.ndarray, "actions A"], Float32[np.ndarray, "kept J"]]:
        """Target actions over `stride` steps and states of an episode's kept steps, no frame.

        Of a TFRecord only the pages that hold them are read, so its payload is not checked.

        Raises:
            ValueError: the record is damaged.
        """
        record = self.headers.record(index)
        try:
            with self._storage.open_message(record) as message:
                state, command, _ = self._numbers(Example(*message), self.headers[index].steps)
        except ValueError as error:
            explained = f"{error}{self.headers.explain(record)}"
            raise ValueError(f"{self._storage.place(record)}: {explained}") from error
        actions = episode_actions(self.declaration, state, command, stride=stride)
        return actions.targets, state[self.declaration.skip_first :]

    def _check_cameras(self, where: str) -> None:
        declared = self.declaration.cameras
        for camera in self.cameras:
            if camera not in declared:
                raise ValueError(
                    f"{where} has no RGB camera {camera!r}; {did_you_mean(camera, declared)}"
                )
        if not self.cameras or len(set(self.cameras)) < len(self.cameras):
            raise ValueError(
                f"data.cameras = {self.cameras}: expected at least one camera, each once"
            )

    def _index(self, info: tfds.core.DatasetInfo) -> EpisodeIndex:
        whole = self.split.partition("[")[0]
        if whole not in info.splits:
            raise ValueError(
                f"{self.root} has no split {whole!r}; {did_you_mean(whole, info.splits)}"
            )
        shards = info.splits[whole]
        paths = [pathlib.Path(path).absolute() for path in shards.filepaths]
        meaning, state = self.declaration, self.declaration.state[0].feature
        read = state, self._width(state), meaning.instruction, meaning.episode_name
        index = cached_index(
            paths,
            lambda: build_index(
                paths, list(shards.shard_lengths), scan=self._storage.scan, header=self._header
            ),
            key=[self.dataset, whole, list(shards.shard_lengths), read],
        )
        if whole != self.split:
            index = index.select(_part(info, self.split))
        if not len(index):
            raise ValueError(
                f"{self.root}: split {self.split!r} is empty; expected at least one episode"
            )
        return index

    def _header(self, record: Record, message: Message) -> EpisodeHeader:
        try:
            return self._parse_header(Example(*message))
        except ValueError as error:
            self._storage.read_record(record)  # a damaged record is reported as such
            raise ValueError(
                f"{self._storage.place(record)}: {error}; "
                "expected an episode as features.json describes it"
            ) from error

    def _parse_header(self, example: Example) -> EpisodeHeader:
        meaning, state = self.declaration, self.declaration.state[0].feature
        values, width = example.number_count(state), self._width(state)
        if values % width:
            raise ValueError(f"{state} has {values} values, expected a multiple of {width}")
        instruction = ""
        if meaning.instruction:
            instruction = b"".join(example.byte_strings(meaning.instruction, 1)).decode()
        return EpisodeHeader(self._name(example), values // width, instruction)

    def _name(self, example: Example) -> str:
        parts = [example.first(feature) for feature in self.declaration.episode_name]
        if parts and None not in parts and "" not in parts:
            return "#".join(map(str, parts))
        state = example.numbers(self.declaration.state[0].feature)
        return f"state-{hashlib.sha256(state.tobytes()).hexdigest()[:16]}"

    def _parse(self, example: Example, header: EpisodeHeader) -> Episode:
        declared = self.declaration.cameras
        images = {camera: example.byte_views(declared[camera]) for camera in self.cameras}
        lengths = {camera: len(views) for camera, views in images.items()}
        if feature := self.declaration.embedding:
            embeddings = example.floats(feature)
            lengths[feature] = len(embeddings) / self._width(feature)
        if set(lengths.values()) != {header.steps}:
            raise ValueError(f"steps differ between features: {lengths}, expected {header.steps}")
        state, command, reward = self._numbers(example, header.steps)
        embedding = embeddings[: self._width(feature)] if feature else None
        return Episode(
            header=header,
            state=state,
            command=command,
            reward=reward,
            language_embedding=embedding,
            images=images,
            frame_shapes=self.frame_shapes,
        )

    def _numbers(
        self, example: Example, steps: int
    ) -> tuple[
        Float32[np.ndarray, "steps J"],
        Float32[np.ndarray, "steps A"],
        Float32[np.ndarray, " steps"],
    ]:
        """State, command and reward of every stored step."""
        meaning = self.declaration
        found = {feature: example.numbers(feature) for feature in meaning.number_features()}
        lengths = {name: len(values) / self._width(name) for name, values in found.items()}
        if set(lengths.values()) != {steps}:
            raise ValueError(f"steps differ between features: {lengths}, expected {steps}")
        found = {name: values.reshape(steps, self._width(name)) for name, values in found.items()}
        state = [part.take(found[part.feature]) for part in meaning.state]
        command = [
            part.take(found[part.feature])
            if isinstance(part, Stored)
            else np.zeros((steps, len(part.names)), np.float32)
            for part in meaning.action
        ]
        reward = np.zeros(steps, np.float32)
        if meaning.reward:
            reward = found[meaning.reward][:, 0]
        return np.concatenate(state, axis=1), np.concatenate(command, axis=1), reward

    def _width(self, feature: str) -> int:
        """Numbers that a feature has in each step."""
        shape = self._features[feature].shape
        return shape[0] if shape else 1


def _part(info: tfds.core.DatasetInfo, split: str) -> Int[np.ndarray, " episodes"]:
    """Which episodes of its whole split a part such as "train[:95%]" holds, by tfds's rules.

    Raises:
        ValueError: not written as tfds reads it.
    """
    whole = info.splits[split.partition("[")[0]]
    try:
        instructions = info.splits[split].file_instructions
    except ValueError as error:
        raise ValueError(
            f"split {split!r}: expected a part such as {whole.name}[:95%] or {whole.name}[100:]"
        ) from error
    ends = np.cumsum(whole.shard_lengths)
    firsts = dict(zip(map(str, whole.filepaths), ends - whole.shard_lengths, strict=True))
    rows = [firsts[str(f.filename)] + f.skip + np.arange(f.take) for f in instructions]
    return np.concatenate(rows) if rows else np.zeros(0, np.int64)
