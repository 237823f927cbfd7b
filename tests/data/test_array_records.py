"""ArrayRecord shards: the same episodes as from TFRecord, and damage in one message."""

import numpy as np
import pytest
from array_record.python import array_record_data_source

from roam_jax.data import array_records, records
from roam_jax.data.dataset import EpisodeReader
from tests.data import rlds

PAYLOADS = [b"first record", b"", bytes(range(256)) * 5, b"last"]
FORMATS = ("tfrecord", "array_record")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ROAM_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def shard(tmp_path):
    path = tmp_path / "toy-train.array_record-00000-of-00001"
    rlds.write_shard(path, PAYLOADS, file_format="array_record")
    return path


@pytest.fixture
def both(tmp_path):
    """The same episodes in both formats, in three shards each."""
    episodes = {
        "train": [rlds.StoredEpisode.random(i, 6 + i) for i in range(7)],
        "val": [rlds.StoredEpisode.random(9, 10)],
    }
    return {
        form: rlds.write_dataset(tmp_path / form, episodes, shards=3, file_format=form)
        for form in FORMATS
    }


def train_path(root, number):
    return rlds.shard_path(root, "train", number, of=3, file_format="array_record")


def test_every_record_in_any_order(shard):
    found = [record for record, _ in array_records.scan(shard)]
    assert [(record.offset, record.length) for record in found] == [
        (i, len(payload)) for i, payload in enumerate(PAYLOADS)
    ]
    for record, payload in zip(found, PAYLOADS, strict=True):
        assert record.checksum == records.masked_crc32c(payload)
    for i in (3, 0, 2, 1):
        assert array_records.read_record(found[i]) == PAYLOADS[i]
        with array_records.open_message(found[i]) as (buffer, start, stop):
            assert buffer[start:stop] == PAYLOADS[i]
    # The project's own reader for Grain sees the same.
    source = array_record_data_source.ArrayRecordDataSource([str(shard)])
    assert [source[i] for i in range(len(source))] == PAYLOADS
    assert array_records.place(found[2]) == f"{shard}: record 2"


def test_what_is_packed_is_read_at_random(shard):
    """Each record in a group of its own, uncompressed, by the writer's own options."""
    reader = array_records.array_record_module.ArrayRecordReader(str(shard))
    written = reader.writer_options_string()
    assert "group_size:1," in written and "uncompressed" in written


@pytest.mark.parametrize("split", ["train", "val"])
def test_both_formats_hold_the_same_episodes(both, split):
    one, other = (EpisodeReader(both[form], split, cameras=("image_1", "image_0")) for form in both)
    assert one.fingerprint == other.fingerprint
    assert list(one.headers) == list(other.headers) and len(one) == len(other)
    for i in reversed(range(len(one))):
        a, b = one[i], other[i]
        assert a.header == b.header
        for name in ("state", "command", "reward", "language_embedding"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)
        for camera in one.cameras:
            assert list(map(bytes, a.images[camera])) == list(map(bytes, b.images[camera]))
            np.testing.assert_array_equal(
                *(x.frames(range(6), camera=camera) for x in (a, b)), err_msg=camera
            )
        for x, y in zip(one.motion(i), other.motion(i), strict=True):
            np.testing.assert_array_equal(x, y)


def test_the_fingerprint_follows_content(both, tmp_path):
    episodes = [rlds.StoredEpisode.random(i, 6 + i) for i in range(7)]
    episodes[5].state[2, 3] += 1
    other = rlds.write_dataset(
        tmp_path / "other", {"train": episodes}, shards=3, file_format="array_record"
    )
    before = EpisodeReader(both["array_record"], "train").fingerprint
    assert EpisodeReader(other, "train").fingerprint != before


def test_a_flipped_byte_of_a_payload_is_found_by_the_index(both):
    path = train_path(both["array_record"], 1)
    damaged = bytearray(path.read_bytes())
    damaged[damaged.find(b"IDAT") + 9] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match=f"{path}: record 0 of an ArrayRecord file is damaged"):
        EpisodeReader(both["array_record"], "train")


def test_a_flipped_byte_of_a_payload_is_found_when_it_is_read(both):
    reader = EpisodeReader(both["array_record"], "train")
    path = train_path(both["array_record"], 1)
    damaged = bytearray(path.read_bytes())
    second = damaged.find(b"steps/observation/image_0", damaged.find(b"/recordings/3.npy") + 1)
    damaged[damaged.find(b"IDAT", second) + 9] ^= 1
    path.write_bytes(damaged)
    reader[3]
    for read in (reader.__getitem__, reader.motion):
        with pytest.raises(ValueError, match=f"{path}: record 1 .*damaged.*changed since it was"):
            read(4)


@pytest.mark.parametrize("kept", [0, 10, 1000, 66_000])
def test_a_cut_file_is_one_message(both, kept):
    path = train_path(both["array_record"], 2)
    path.write_bytes(path.read_bytes()[:kept])
    # The library finds no records where there is no footer.
    with pytest.raises(ValueError, match=f"{path}: 0 records in {kept} bytes, expected 2 by data"):
        EpisodeReader(both["array_record"], "train")


def test_a_file_cut_under_a_reader(both):
    reader = EpisodeReader(both["array_record"], "train")
    path = train_path(both["array_record"], 0)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ValueError, match=f"{path}: record 1 of .*changed since it was indexed"):
        reader[1]


def test_a_shard_replaced_under_a_reader(both):
    """Intact, but not what was indexed."""
    reader = EpisodeReader(both["array_record"], "train")
    path = train_path(both["array_record"], 0)
    other = [rlds.StoredEpisode.random(50 + i, 6).example() for i in range(3)]
    rlds.write_shard(path, other, file_format="array_record")
    message = f"{path}: record 2: the crc32c of its .*expected.*changed since it was indexed"
    with pytest.raises(ValueError, match=message):
        reader[2]


def test_something_else_than_array_record(both):
    path = train_path(both["array_record"], 0)
    path.write_bytes(rlds.frame_record(b"a TFRecord") * 9000)
    with pytest.raises(ValueError, match=f"{path}: 0 records in .*expected 3 by dataset_info"):
        EpisodeReader(both["array_record"], "train")


def test_missing_shard(both):
    train_path(both["array_record"], 1).unlink()
    with pytest.raises(FileNotFoundError, match="train.array_record-00001-of-00003: no such shard"):
        EpisodeReader(both["array_record"], "train")
    with pytest.raises(FileNotFoundError, match="no such shard"):
        list(array_records.scan(train_path(both["array_record"], 1)))


def test_another_number_of_records_than_declared(both):
    path = train_path(both["array_record"], 1)
    rlds.write_shard(path, [rlds.StoredEpisode.random(3, 9).example()], file_format="array_record")
    with pytest.raises(ValueError, match=f"{path}: 1 records in .*expected 2 by dataset_info.json"):
        EpisodeReader(both["array_record"], "train")


def test_records_of_something_else(both):
    path = train_path(both["array_record"], 1)
    rlds.write_shard(path, [b"no example"] * 2, file_format="array_record")
    with pytest.raises(ValueError, match=f"{path}: record 0: .*expected an episode as features"):
        EpisodeReader(both["array_record"], "train")
