"""The index of a split: where each episode lies, how long it is, what it is called.

Made once from a few pages a record and kept under the size and time of every shard; a shard that
changed makes a new one. It is arrays, not objects: 60,064 episodes take some megabytes and open in
milliseconds. With the number of windows that each episode gives, it is the index of (episode, t).
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import pathlib
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import logging
from jaxtyping import Int

from roam_jax.contracts import cache_dir
from roam_jax.data.example import Message
from roam_jax.data.records import Record
from roam_jax.files import write_atomically

# Part of the cache's key: a change in what is stored must not meet older files.
LAYOUT = 1
COLUMNS = {
    "shard": np.int32,
    "offset": np.int64,
    "length": np.int64,
    "checksum": np.uint32,
    "steps": np.int32,
    "instruction": np.int32,
}


class EpisodeHeader(NamedTuple):
    """What an index knows of an episode.

    `name` is the same in every split and format; `steps` counts all stored ones; `instruction` is
    that of the first step, often empty.
    """

    name: str
    steps: int
    instruction: str


class Stamp(NamedTuple):
    """Size in bytes and time of change in ns of a file."""

    size: int
    changed: int

    @classmethod
    def of(cls, path: pathlib.Path) -> Stamp:
        """As the file is now."""
        found = path.stat()
        return cls(found.st_size, found.st_mtime_ns)


@dataclasses.dataclass(frozen=True)
class EpisodeIndex(Sequence[EpisodeHeader]):
    """Headers and places of all episodes of a split, in stored order.

    Args:
        paths: shards, in order.
        stamps: of the shards when they were indexed.
        columns: arrays with a row an episode, see `COLUMNS`.
        instructions: distinct texts; the column `instruction` points to them.
        names: of the episodes.
    """

    paths: tuple[pathlib.Path, ...]
    stamps: tuple[Stamp, ...]
    columns: dict[str, np.ndarray]
    instructions: tuple[str, ...]
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> EpisodeHeader:
        """Header of one episode."""
        instruction = self.instructions[self.columns["instruction"][index]]
        return EpisodeHeader(self.names[index], int(self.columns["steps"][index]), instruction)

    def record(self, index: int) -> Record:
        """Where one episode lies."""
        shard, offset, length, checksum = (
            int(self.columns[name][index]) for name in ("shard", "offset", "length", "checksum")
        )
        return Record(self.paths[shard], offset, length, checksum)

    @property
    def steps(self) -> np.ndarray:
        """Stored steps of each episode."""
        return self.columns["steps"]

    def select(self, rows: Int[np.ndarray, " episodes"]) -> EpisodeIndex:
        """Some of the episodes, in the order of `rows`."""
        columns = {name: values[rows] for name, values in self.columns.items()}
        names = tuple(self.names[row] for row in rows)
        return dataclasses.replace(self, columns=columns, names=names)

    def digest(self) -> str:
        """Hash of the length and checksum of every record, the same in either shard format."""
        hashed = hashlib.sha256()
        for name in ("length", "checksum"):
            hashed.update(np.ascontiguousarray(self.columns[name]).tobytes())
        return hashed.hexdigest()

    def explain(self, record: Record) -> str:
        """Whether the record's shard changed since it was indexed, for a message; "" if not."""
        before = self.stamps[self.paths.index(record.path)]
        now = Stamp.of(record.path) if record.path.exists() else Stamp(0, 0)
        if now == before:
            return ""
        return (
            f"; the file changed since it was indexed ({before.size:,} bytes then, {now.size:,} "
            "now): start again, and the index is made anew"
        )


def build_index(
    shards: Sequence[pathlib.Path],
    declared: Sequence[int],
    *,
    scan: Callable[[pathlib.Path], Iterator[tuple[Record, Message]]],
    header: Callable[[Record, Message], EpisodeHeader],
) -> EpisodeIndex:
    """Reads the headers of every shard.

    Args:
        shards: files of the split, in order.
        declared: how many records each should have.
        scan: of the shards' format.
        header: what is known of a record.

    Raises:
        FileNotFoundError, ValueError: a shard is missing or damaged, or has another number of
            records than declared.
    """
    began = time.monotonic()
    rows: dict[str, list[int]] = {name: [] for name in COLUMNS}
    names, texts, stamps = [], {}, []
    for number, (path, expected) in enumerate(zip(shards, declared, strict=True)):
        logging.log_every_n_seconds(
            logging.INFO,
            "indexing: shard %d of %d, %d episodes",
            30,
            number,
            len(shards),
            len(names),
        )
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such shard")
        stamps.append(Stamp.of(path))
        before = len(names)
        for record, message in scan(path):
            found = header(record, message)
            names.append(found.name)
            text = texts.setdefault(found.instruction, len(texts))
            row = number, record.offset, record.length, record.checksum, found.steps, text
            for column, value in zip(rows.values(), row, strict=True):
                column.append(value)
        if len(names) - before != expected:
            raise ValueError(
                f"{path}: {len(names) - before} records in {path.stat().st_size} bytes, expected "
                f"{expected} by dataset_info.json"
            )
    logging.info("indexed %d episodes in %.1f s", len(names), time.monotonic() - began)
    columns = {name: np.array(rows[name], dtype) for name, dtype in COLUMNS.items()}
    return EpisodeIndex(tuple(shards), tuple(stamps), columns, tuple(texts), tuple(names))


def cached_index(
    shards: Sequence[pathlib.Path], build: Callable[[], EpisodeIndex], *, key: Any
) -> EpisodeIndex:
    """`build()`, once for each size and time of the shards.

    The cache is `cache_dir() / "index"`, since datasets are often read-only.

    Args:
        shards: files of the split, in order.
        build: makes the index.
        key: what else the index depends on, JSON-serialisable.
    """
    text = json.dumps([LAYOUT, [str(path) for path in shards], key])
    path = cache_dir() / "index" / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.npz"
    stamps = [Stamp.of(shard) if shard.exists() else Stamp(0, 0) for shard in shards]
    if path.exists():
        found = _read(path, shards)
        changed = [s for s, a, b in zip(shards, found.stamps, stamps, strict=True) if a != b]
        if not changed:
            return found
        logging.warning(
            "%s changed since it was indexed (and %d more of %d shards); indexing again",
            changed[0],
            len(changed) - 1,
            len(shards),
        )
    index = build()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, _to_bytes(index))
    return index


def _to_bytes(index: EpisodeIndex) -> bytes:
    texts = json.dumps({"instructions": index.instructions, "names": index.names})
    buffer = io.BytesIO()
    np.savez(
        buffer,
        stamps=np.array(index.stamps, np.int64).reshape(-1, 2),
        texts=np.frombuffer(texts.encode(), np.uint8),
        **index.columns,
    )
    return buffer.getvalue()


def _read(path: pathlib.Path, shards: Sequence[pathlib.Path]) -> EpisodeIndex:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            texts = json.loads(arrays["texts"].tobytes())
            columns = {name: arrays[name] for name in COLUMNS}
            stamps = tuple(Stamp(*map(int, row)) for row in arrays["stamps"])
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path}: damaged index ({error}); delete it to have it made again"
        ) from error
    return EpisodeIndex(
        tuple(shards), stamps, columns, tuple(texts["instructions"]), tuple(texts["names"])
    )
