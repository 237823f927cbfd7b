"""TFRecord framing without TensorFlow: where each record of a shard lies, reading and writing one.

`scan`, `open_message`, `read_record` and `place` are what a shard format offers; `array_records`
has the same four.

A shard is a sequence of `u64 length | u32 masked crc32c of the length | payload | u32 masked
crc32c of the payload`, little-endian (tensorflow/core/lib/io/record_writer.h). An index needs 16
bytes a record; the payload checksums that it collects identify a shard's content unread.
"""

from __future__ import annotations

import contextlib
import dataclasses
import mmap
import os
import pathlib
import struct
from collections.abc import Iterator

import google_crc32c

from roam_jax.data.example import Message, feature_ends

HEADER = struct.Struct("<QI")
FOOTER = struct.Struct("<I")
ASKED_AT_ONCE = 64


@dataclasses.dataclass(frozen=True)
class Record:
    """One record of a shard.

    Args:
        path: the shard.
        offset: byte at which the record's header starts; its number in an ArrayRecord file.
        length: bytes of the payload.
        checksum: masked crc32c of the payload, as stored.
    """

    path: pathlib.Path
    offset: int
    length: int
    checksum: int

    @property
    def payload_offset(self) -> int:
        """Byte at which the payload starts."""
        return self.offset + HEADER.size


def place(record: Record) -> str:
    """The record and where it lies, for messages."""
    return f"{record.path}: record at byte {record.offset}"


def masked_crc32c(data: bytes) -> int:
    """The checksum of the framing: crc32c, rotated right by 15 bits, plus a constant."""
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def frame_record(payload: bytes) -> bytes:
    """One record as it stands in a shard: header, payload, checksum of the payload."""
    length = struct.pack("<Q", len(payload))
    header = length + FOOTER.pack(masked_crc32c(length))
    return header + payload + FOOTER.pack(masked_crc32c(payload))


def index_shard(path: pathlib.Path) -> tuple[Record, ...]:
    """Finds every record of a shard from its headers alone; payloads are skipped over.

    Raises:
        FileNotFoundError: no such shard.
        ValueError: a header is damaged, or the shard ends inside a record; names file and byte.
    """
    records = []
    size = os.path.getsize(path)
    offset = 0
    with open(path, "rb", buffering=0) as shard:
        while offset < size:
            if offset + HEADER.size > size:
                raise ValueError(_truncated(path, offset, offset + HEADER.size, size))
            header = os.pread(shard.fileno(), HEADER.size, offset)
            length, length_checksum = HEADER.unpack(header)
            if masked_crc32c(header[:8]) != length_checksum:
                raise ValueError(
                    f"{path}: damaged record at byte {offset}: its length {length} does not match "
                    "the checksum beside it; expected an intact TFRecord header"
                )
            end = offset + HEADER.size + length + FOOTER.size
            if end > size:
                raise ValueError(_truncated(path, offset, end, size))
            footer = os.pread(shard.fileno(), FOOTER.size, end - FOOTER.size)
            records.append(Record(path, offset, length, FOOTER.unpack(footer)[0]))
            offset = end
    return tuple(records)


def scan(path: pathlib.Path) -> Iterator[tuple[Record, Message]]:
    """Every record of a shard with its message, of which only what is looked at is read.

    Raises:
        FileNotFoundError, ValueError: as `index_shard`.
    """
    records = index_shard(path)
    if not records:
        return
    with _mapped(path) as pages:
        for first in range(0, len(records), ASKED_AT_ONCE):
            some = records[first : first + ASKED_AT_ONCE]
            _ask_for_pages([_message(record, pages) for record in some])
            for record in some:
                yield record, _message(record, pages)


@contextlib.contextmanager
def open_message(record: Record) -> Iterator[Message]:
    """The message of one record; only the pages that are looked at are read.

    Its bytes are unchecked, but the checksum beside them must be the one that was indexed.

    Raises:
        ValueError: the shard has since been cut, or holds another record there.
    """
    with _mapped(record.path) as pages:
        end = record.payload_offset + record.length
        if end + FOOTER.size > len(pages):
            raise ValueError(_truncated(record.path, record.offset, end + FOOTER.size, len(pages)))
        (checksum,) = FOOTER.unpack_from(pages, end)
        if checksum != record.checksum:
            raise ValueError(
                f"another record than was indexed: its checksum is {checksum:#010x}, expected "
                f"{record.checksum:#010x}"
            )
        yield _message(record, pages)


def _ask_for_pages(messages: list[Message]) -> None:
    """Has the system read where features begin, in many records at a time.

    A disk gives many scattered pages together in the time of a few that are waited for in turn.
    """
    walks = [(message, feature_ends(message)) for message in messages]
    while walks:
        ahead = []
        for message, walk in walks:
            position = next(walk, message.stop)
            if position < message.stop:
                page = position - position % mmap.PAGESIZE
                message.buffer.madvise(mmap.MADV_WILLNEED, page, mmap.PAGESIZE)
                ahead.append((message, walk))
        walks = ahead


def _message(record: Record, pages: mmap.mmap) -> Message:
    return Message(pages, record.payload_offset, record.payload_offset + record.length)


@contextlib.contextmanager
def _mapped(path: pathlib.Path) -> Iterator[mmap.mmap]:
    # Mapped only while it is read, so that no page stays counted as ours; without read-ahead, which
    # would fetch the frames between the pages that are wanted.
    with (
        open(path, "rb") as shard,
        mmap.mmap(shard.fileno(), 0, access=mmap.ACCESS_READ) as pages,
    ):
        pages.madvise(mmap.MADV_RANDOM)
        yield pages


def read_record(record: Record) -> bytes:
    """Reads the payload of one record and checks it.

    Raises:
        ValueError: the payload differs from its checksum, or the shard has since been cut; names
            file and byte.
    """
    with open(record.path, "rb", buffering=0) as shard:
        payload = os.pread(shard.fileno(), record.length, record.payload_offset)
    if len(payload) < record.length:
        end = record.payload_offset + record.length
        raise ValueError(_truncated(record.path, record.offset, end, os.path.getsize(record.path)))
    checksum = masked_crc32c(payload)
    if checksum != record.checksum:
        raise ValueError(
            f"{record.path}: damaged record at byte {record.offset}: the crc32c of its "
            f"{record.length} bytes is {checksum:#010x}, expected {record.checksum:#010x}"
        )
    return payload


def _truncated(path: pathlib.Path, offset: int, end: int, size: int) -> str:
    return (
        f"{path}: truncated record at byte {offset}: it needs bytes up to {end}, "
        f"but the file ends at byte {size}"
    )
