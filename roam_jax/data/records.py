"""TFRecord framing without TensorFlow: where each record of a shard lies, reading and writing one.

A shard is a sequence of `u64 length | u32 masked crc32c of the length | payload | u32 masked
crc32c of the payload`, little-endian (tensorflow/core/lib/io/record_writer.h). An index needs 16
bytes a record; the payload checksums that it collects identify a shard's content unread.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import struct

import google_crc32c

HEADER = struct.Struct("<QI")
FOOTER = struct.Struct("<I")


@dataclasses.dataclass(frozen=True)
class Record:
    """One record of a shard.

    Args:
        path: the shard.
        offset: byte at which the record's header starts.
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
