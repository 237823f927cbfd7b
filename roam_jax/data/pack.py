"""Copies a dataset into ArrayRecord shards: the same payloads, each of which can be read alone.

A shard is written to a hidden file and put in place by a rename; a journal beside it says which
are done. The description of the dataset comes last, so a reader refuses what is not finished.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import tensorflow_datasets as tfds

from roam_jax.data.array_records import put_in_place, remove_leftovers, writing
from roam_jax.data.folder import FILE_FORMATS, PACK_JOURNAL, open_dataset
from roam_jax.data.index import Stamp
from roam_jax.files import free_bytes, write_atomically
from roam_jax.spelling import did_you_mean

FILE_NAMES = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
# What a shard takes beyond its source: a header a record, and a padded footer.
OVERHEAD, OVERHEAD_BYTES = 0.01, 3 * 2**16


@dataclasses.dataclass(frozen=True)
class Shard:
    """One shard to copy.

    Args:
        split: that it belongs to.
        source, target: files.
        records: that it should have.
    """

    split: str
    source: pathlib.Path
    target: pathlib.Path
    records: int


class Packing:
    """What is to be copied from `src` to `out`, and what an earlier attempt has done of it.

    Args:
        src: version folder of a tfds dataset.
        out: folder to fill: new, empty, or begun by an earlier attempt.
        splits: which are copied; () = all.

    Raises:
        FileNotFoundError: no dataset in `src`, or a shard is missing.
        ValueError: unknown split, an `out` that holds something else, or too little space.
    """

    def __init__(self, src: pathlib.Path, out: pathlib.Path, *, splits: Sequence[str] = ()):
        self.src, self.out = src.expanduser(), out.expanduser()
        info = open_dataset(self.src, key="--src")
        self._storage = FILE_FORMATS[info.file_format]
        for split in splits:
            if split not in info.splits:
                raise ValueError(
                    f"--split {split}: {self.src} has none; {did_you_mean(split, info.splits)}"
                )
        self._all = [shard for split in info.splits for shard in _shards(info, split, self.out)]
        self._journal = self._open_journal(info)
        self.shards = [shard for shard in self._all if shard.split in (splits or info.splits)]
        for shard in self.shards:
            if not shard.source.is_file():
                raise FileNotFoundError(f"{shard.source}: no such shard")
        self.missing = [shard for shard in self.shards if not self._is_done(shard)]
        self._check_space()

    @property
    def missing_bytes(self) -> int:
        """Size of the shards that are still to be copied."""
        return sum(shard.source.stat().st_size for shard in self.missing)

    @property
    def episodes(self) -> int:
        """Records of all shards, copied or not."""
        return sum(shard.records for shard in self.shards)

    @property
    def left(self) -> tuple[str, ...]:
        """Splits of `src` that `out` has not, or not as a whole."""
        return tuple(dict.fromkeys(shard.split for shard in self._all if not self._is_done(shard)))

    def run(self, advance: Callable[[int], None] = lambda count: None) -> None:
        """Copies what is missing, then describes the dataset.

        Args:
            advance: told the bytes of each payload that is copied.

        Raises:
            ValueError: a source record is damaged (names file and byte), a shard has another
                number of records than declared, or `out` cannot be written. Finished shards stay.
        """
        self.out.mkdir(parents=True, exist_ok=True)
        self._remove_leftovers()
        described = self.out / "dataset_info.json"
        if described.exists():
            listed = {split["name"] for split in json.loads(described.read_bytes())["splits"]}
            if listed & {shard.split for shard in self.missing}:
                described.unlink()
        self._write_journal()
        for file in ("features.json", *(path.name for path in self.src.glob("*.labels.txt"))):
            write_atomically(self.out / file, (self.src / file).read_bytes())
        for number, shard in enumerate(self.missing):
            try:
                self._journal["shards"][shard.target.name] = self._copy(shard, advance)
            except ValueError as error:
                finished = len(self.shards) - len(self.missing) + number
                raise ValueError(
                    f"{error}. {finished} of {len(self.shards)} shards are done and stay in "
                    f"{self.out}; the same command goes on from there"
                ) from error
            self._write_journal()
        write_atomically(described, json.dumps(self._describe(), indent=2))

    def _open_journal(self, info: tfds.core.DatasetInfo) -> dict[str, Any]:
        """What is known of `out`; a new journal for an empty folder."""
        if self.out.resolve() == self.src.resolve():
            raise ValueError(f"--out {self.out}: that is --src; expected another folder")
        if self.out.exists() and not self.out.is_dir():
            raise ValueError(f"--out {self.out}: a file; expected a folder")
        features = (self.src / "features.json").read_bytes()
        lengths = {split: list(info.splits[split].shard_lengths) for split in info.splits}
        content = hashlib.sha256(features + json.dumps(lengths).encode()).hexdigest()
        new = {"dataset": f"{info.name}/{info.version}", "content": content, "shards": {}}
        path = self.out / PACK_JOURNAL
        if not path.is_file():
            there = sorted(path.name for path in self.out.glob("[!.]*"))
            if there:
                raise ValueError(
                    f"--out {self.out}: holds {there[0]} and is no folder that `pack` began; "
                    "expected a new or empty one"
                )
            return new
        try:
            found = json.loads(path.read_bytes())
            same = [found[key] == new[key] for key in ("dataset", "content")]
            found["shards"] = {name: _entry(value) for name, value in found["shards"].items()}
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            raise ValueError(f"{path}: damaged ({error}); delete the folder") from error
        if not all(same):
            what = "with other features or shards" if same[0] else f"not for {new['dataset']}"
            raise ValueError(
                f"--out {self.out}: begun for {found['dataset']}, {what}; expected a folder of its "
                "own"
            )
        return found

    def _write_journal(self) -> None:
        write_atomically(self.out / PACK_JOURNAL, json.dumps(self._journal, indent=1))

    def _is_done(self, shard: Shard) -> bool:
        """Whether the target is as it was left, and the source as it was read."""
        entry = self._journal["shards"].get(shard.target.name)
        return (
            entry is not None
            and _stamp(shard.target) == entry["target"]
            and _stamp(shard.source) == entry["source"]
        )

    def _check_space(self) -> None:
        needed = int(self.missing_bytes * (1 + OVERHEAD)) + OVERHEAD_BYTES * len(self.missing)
        free = free_bytes(self.out)
        if needed > free:
            raise ValueError(
                f"--out {self.out}: {len(self.missing)} shards need {needed / 1e9:,.2f} GB, "
                f"{free / 1e9:,.2f} GB are free there"
            )

    def _remove_leftovers(self) -> None:
        for shard in self.missing:
            remove_leftovers(shard.target)

    def _copy(self, shard: Shard, advance: Callable[[int], None]) -> dict[str, Any]:
        """Copies one shard; returns its entry in the journal."""
        stamp, count, size = _stamp(shard.source), 0, 0
        with put_in_place(shard.target) as partial:
            with writing(partial, shard.target) as write:
                for payload in _payloads(self._storage, shard.source):
                    write(payload)
                    count, size = count + 1, size + len(payload)
                    advance(len(payload))
            if count != shard.records:
                raise ValueError(
                    f"{shard.source}: {count} records, expected {shard.records} by "
                    "dataset_info.json"
                )
            if _stamp(shard.source) != stamp:
                raise ValueError(f"{shard.source}: changed while it was copied")
            target = Stamp.of(partial)
        return {"target": target, "source": stamp, "bytes": size}

    def _describe(self) -> dict[str, Any]:
        """The source's dataset_info.json, for the splits that are copied and as they are now."""
        described = json.loads((self.src / "dataset_info.json").read_bytes())
        described["fileFormat"] = tfds.core.FileFormat.ARRAY_RECORD.value
        splits, described["splits"] = described["splits"], []
        for split in splits:
            shards = [shard for shard in self._all if shard.split == split["name"]]
            if all(map(self._is_done, shards)):
                done = [self._journal["shards"][shard.target.name] for shard in shards]
                size = {"numBytes": str(sum(entry["bytes"] for entry in done))}
                described["splits"].append(split | {"filepathTemplate": FILE_NAMES} | size)
        return described


def _shards(info: tfds.core.DatasetInfo, split: str, out: pathlib.Path) -> list[Shard]:
    found = info.splits[split]
    names = tfds.core.ShardedFileTemplate(
        data_dir=out,
        template=FILE_NAMES,
        dataset_name=info.name,
        split=split,
        filetype_suffix=tfds.core.FileFormat.ARRAY_RECORD.file_suffix,
    )
    targets = sorted(names.sharded_filenames(found.num_shards))
    return [
        Shard(split, pathlib.Path(source), out / target, length)
        for source, target, length in zip(
            found.filepaths, targets, found.shard_lengths, strict=True
        )
    ]


def _entry(found: Any) -> dict[str, Any]:
    """What the journal says of a shard; raises whatever its lack of it leads to."""
    stamps = {name: Stamp(*map(int, found[name])) for name in ("target", "source")}
    return {**stamps, "bytes": int(found["bytes"])}


def _stamp(path: pathlib.Path) -> Stamp | None:
    return Stamp.of(path) if path.exists() else None


def _payloads(storage: types.ModuleType, path: pathlib.Path) -> Iterator[bytes]:
    """Every payload of a shard, checked."""
    for record, _ in storage.scan(path):
        yield storage.read_record(record)
