"""TFRecord framing: values against the format's definition, damage named by file and byte."""

import struct

import numpy as np
import pytest

from roam_jax.data import records
from roam_jax.data.records import (
    frame_record,
    index_shard,
    masked_crc32c,
    open_message,
    place,
    read_record,
    scan,
)
from tests.data import rlds

PAYLOADS = [b"first record", b"", bytes(range(256)) * 5, b"last"]


@pytest.fixture
def shard(tmp_path):
    path = tmp_path / "toy-train.tfrecord-00000-of-00001"
    path.write_bytes(b"".join(rlds.frame_record(payload) for payload in PAYLOADS))
    return path


def test_checksum_is_the_published_crc32c_masked():
    # crc32c of "123456789" is 0xE3069283 (RFC 3720, appendix B.4 gives the polynomial).
    rotated = (0xE3069283 >> 15) | (0xE3069283 << 17) & 0xFFFFFFFF
    assert masked_crc32c(b"123456789") == (rotated + 0xA282EAD8) % 2**32


def test_every_record_in_any_order(shard):
    found = index_shard(shard)
    assert [record.length for record in found] == [len(payload) for payload in PAYLOADS]
    assert found[1].offset == 16 + len(PAYLOADS[0])
    for i in (3, 0, 2, 1):
        assert read_record(found[i]) == PAYLOADS[i]


def test_framing_is_what_the_tests_write_by_themselves():
    assert [frame_record(payload) for payload in PAYLOADS] == [
        rlds.frame_record(payload) for payload in PAYLOADS
    ]


def test_an_empty_shard_has_no_records(tmp_path):
    path = tmp_path / "empty"
    path.write_bytes(b"")
    assert index_shard(path) == () and list(scan(path)) == []


@pytest.mark.parametrize("at_once", [1, 3, 64])
def test_messages_are_seen_in_place(shard, monkeypatch, at_once):
    monkeypatch.setattr(records, "ASKED_AT_ONCE", at_once)
    found = []
    for record, (buffer, start, stop) in scan(shard):
        found.append((record, bytes(buffer[start:stop])))
        assert start == record.payload_offset
        with open_message(record) as message:
            assert bytes(message.buffer[message.start : message.stop]) == found[-1][1]
    assert found == list(zip(index_shard(shard), PAYLOADS, strict=True))
    assert place(found[1][0]) == f"{shard}: record at byte {found[1][0].offset}"


@pytest.mark.parametrize("cut", [1, 4, 10, 19])
def test_truncated_shard_names_file_and_byte(shard, cut):
    last = index_shard(shard)[-1].offset
    shard.write_bytes(shard.read_bytes()[:-cut])
    with pytest.raises(ValueError, match="truncated record") as error:
        index_shard(shard)
    assert str(shard) in str(error.value) and f"byte {last}:" in str(error.value)


def test_shard_cut_after_indexing(shard):
    last = index_shard(shard)[-1]
    shard.write_bytes(shard.read_bytes()[:-6])
    with pytest.raises(ValueError, match=f"truncated record at byte {last.offset}"):
        read_record(last)
    with (
        pytest.raises(ValueError, match=f"truncated record at byte {last.offset}"),
        open_message(last),
    ):
        pass


def test_any_flipped_bit_of_a_payload_is_found(shard):
    record = index_shard(shard)[0]
    intact = shard.read_bytes()
    for bit in range(0, 8 * record.length, 7):
        damaged = bytearray(intact)
        damaged[record.payload_offset + bit // 8] ^= 1 << bit % 8
        shard.write_bytes(damaged)
        with pytest.raises(ValueError, match="damaged record at byte 0") as error:
            read_record(record)
        assert str(shard) in str(error.value)


@pytest.mark.parametrize("byte", range(12))
def test_a_flipped_header_is_found_by_the_index(shard, byte):
    second = index_shard(shard)[1].offset
    damaged = bytearray(shard.read_bytes())
    damaged[second + byte] ^= 4
    shard.write_bytes(damaged)
    with pytest.raises(ValueError, match=f"damaged record at byte {second}") as error:
        index_shard(shard)
    assert str(shard) in str(error.value)


def test_the_real_shards_are_intact(bridge_root):
    path = bridge_root / "bridge_dataset-train.tfrecord-00000-of-00001"
    found = index_shard(path)
    data = path.read_bytes()
    assert len(found) == 16
    assert found[-1].offset + 16 + found[-1].length == len(data)
    for record in found:
        (length,) = struct.unpack_from("<Q", data, record.offset)
        start = record.offset + 12
        assert read_record(record) == data[start : start + length]
    assert np.unique([record.checksum for record in found]).size == 16
