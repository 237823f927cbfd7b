"""Shards in ArrayRecord format, which Grain and tfds read at random: one record a group.

ArrayRecord checks its own chunks but tells no checksum, so an index computes the crc32c that a
TFRecord stores. A dataset then has the same fingerprint in both formats.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import uuid
from collections.abc import Callable, Iterator

from array_record.python import array_record_module

from roam_jax.data.example import Message
from roam_jax.data.records import Record, masked_crc32c

# As the library advises for reading at random: no read-ahead, and no threads, which a fork loses.
READER_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"
# One record a group, so that one can be read alone; not compressed, because frames are already.
WRITER_OPTIONS = "group_size:1,uncompressed"
# What the library raises for files that are damaged or none of its own.
ERRORS = (ValueError, RuntimeError, IndexError)


def place(record: Record) -> str:
    """The record and where it lies, for messages."""
    return f"{record.path}: record {record.offset}"


def scan(path: pathlib.Path) -> Iterator[tuple[Record, Message]]:
    """Every record of a shard with its message.

    Raises:
        FileNotFoundError: no such shard.
        ValueError: it is damaged, or no ArrayRecord file.
    """
    for number in range(count_records(path)):
        payload = _read(path, number)
        record = Record(path, number, len(payload), masked_crc32c(payload))
        yield record, Message(payload, 0, len(payload))


def count_records(path: pathlib.Path) -> int:
    """How many records a shard has, by its footer.

    Raises:
        FileNotFoundError: no such shard.
        ValueError: it is damaged, or no ArrayRecord file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such shard")
    with _reading(path, "its footer"):
        return array_record_module.ArrayRecordReader(str(path), READER_OPTIONS).num_records()


@contextlib.contextmanager
def put_in_place(target: pathlib.Path) -> Iterator[pathlib.Path]:
    """A hidden file that takes the place of `target` once the block has ended well."""
    partial = target.with_name(f".{target.name}-{uuid.uuid4().hex}")
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


def remove_leftovers(target: pathlib.Path) -> None:
    """Removes the hidden files that killed attempts to write `target` have left."""
    for path in target.parent.glob(f".{target.name}-*"):
        path.unlink()


@contextlib.contextmanager
def writing(partial: pathlib.Path, target: pathlib.Path) -> Iterator[Callable[[bytes], None]]:
    """Writes an ArrayRecord file of as many records as are given.

    Args:
        partial: file to write.
        target: that it is going to be, for messages.

    Raises:
        ValueError: it cannot be written. What the block itself raises passes unchanged.
    """
    count = 0

    def write(payload: bytes) -> None:
        nonlocal count
        with _told(target):
            writer.write(payload)
        count += 1

    with _told(target):
        writer = array_record_module.ArrayRecordWriter(str(partial), WRITER_OPTIONS)
    try:
        yield write
    finally:
        with _told(target):
            writer.close()
    with _told(target):
        written = array_record_module.ArrayRecordReader(str(partial), READER_OPTIONS).num_records()
    if written != count:
        raise ValueError(f"{target}: {written} records after {count} were written")


@contextlib.contextmanager
def open_message(record: Record) -> Iterator[Message]:
    """The message of one record; all of it is read and checked."""
    payload = read_record(record)
    yield Message(payload, 0, len(payload))


def read_record(record: Record) -> bytes:
    """Reads the payload of one record and checks it.

    Raises:
        ValueError: the file is damaged, or the payload is not the one that was indexed.
    """
    payload = _read(record.path, record.offset)
    checksum = masked_crc32c(payload)
    if checksum != record.checksum:
        raise ValueError(
            f"{place(record)}: the crc32c of its {len(payload)} bytes is "
            f"{checksum:#010x}, expected {record.checksum:#010x}"
        )
    return payload


def _read(path: pathlib.Path, number: int) -> bytes:
    with _reading(path, f"record {number}"):
        # Opening costs a tenth of a millisecond, and holds no file that a fork would share.
        reader = array_record_module.ArrayRecordReader(str(path), READER_OPTIONS)
        return reader.read([number])[0]


@contextlib.contextmanager
def _reading(path: pathlib.Path, what: str) -> Iterator[None]:
    try:
        yield
    except ERRORS as error:
        raise ValueError(
            f"{path}: {what} of an ArrayRecord file is damaged ({path.stat().st_size:,} bytes; "
            f"{error})"
        ) from error


@contextlib.contextmanager
def _told(target: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise ValueError(f"{target}: cannot be written: {error}") from error
