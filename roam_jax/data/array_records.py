"""Shards in ArrayRecord format, which Grain and tfds read at random: one record a group.

ArrayRecord checks its own chunks but tells no checksum, so an index computes the crc32c that a
TFRecord stores. A dataset then has the same fingerprint in both formats.
"""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Iterator

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
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such shard")
    with _reading(path, "its footer"):
        count = array_record_module.ArrayRecordReader(str(path), READER_OPTIONS).num_records()
    for number in range(count):
        payload = _read(path, number)
        record = Record(path, number, len(payload), masked_crc32c(payload))
        yield record, Message(payload, 0, len(payload))


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
