"""The index of a split: kept for the files that it was made from, and for no others."""

import dataclasses
import os
import pickle

import numpy as np
import pytest
import tensorflow_datasets as tfds
from absl import logging

from roam_jax.data.dataset import EpisodeReader
from roam_jax.data.folder import FILE_FORMATS
from roam_jax.data.known import BRIDGE
from tests.data import rlds

FORMATS = ("tfrecord", "array_record")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ROAM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "index"


@pytest.fixture(params=FORMATS)
def toy(request, tmp_path):
    return write(tmp_path / "toy", request.param)


def write(root, file_format, *, seed=0):
    episodes = [rlds.StoredEpisode.random(seed + i, 6 + i) for i in range(5)]
    episodes[3].instruction = episodes[1].instruction
    episodes[4].instruction = ""
    return rlds.write_dataset(root, {"train": episodes}, shards=2, file_format=file_format)


def shard(root, number):
    (path,) = root.glob(f"*-{number:05}-of-00002")
    return path


@pytest.fixture
def never_scan(monkeypatch):
    """From the call of what it returns on, no shard may be looked through."""

    def forbid():
        def scan(path):
            raise AssertionError(f"{path} was scanned")

        for storage in FILE_FORMATS.values():
            monkeypatch.setattr(storage, "scan", scan)

    return forbid


def warnings(monkeypatch):
    found = []
    monkeypatch.setattr(logging, "warning", lambda text, *args: found.append(text % args))
    return found


def test_headers_are_those_of_the_records(toy):
    reader = EpisodeReader(toy, "train")
    assert reader.headers.steps.tolist() == [6, 7, 8, 9, 10]
    for i, header in enumerate(reader.headers):
        assert header == reader[i].header == reader.headers[i]
        assert header.name == f"/recordings/{i}.npy#{i}" and header.steps == 6 + i
    texts = [header.instruction for header in reader.headers]
    assert texts == ["do thing 0", "do thing 1", "do thing 2", "do thing 1", ""]
    assert len(reader.headers.instructions) == 4
    assert [reader.headers.record(i).path for i in (0, 2, 3, 4)] == [
        shard(toy, number) for number in (0, 0, 1, 1)
    ]


def test_a_kept_index_is_the_same_and_reads_no_shard(toy, never_scan, monkeypatch):
    logged = warnings(monkeypatch)
    first = EpisodeReader(toy, "train")
    never_scan()
    again = EpisodeReader(toy, "train")
    assert list(again.headers) == list(first.headers)
    assert [again.headers.record(i) for i in range(5)] == [
        first.headers.record(i) for i in range(5)
    ]
    assert again.fingerprint == first.fingerprint and not logged
    for name, column in first.headers.columns.items():
        assert again.headers.columns[name].dtype == column.dtype
    np.testing.assert_array_equal(again[4].state, first[4].state)


def test_other_cameras_and_a_worker_use_the_same_index(toy, never_scan, cache):
    first = EpisodeReader(toy, "train")
    never_scan()
    other = EpisodeReader(toy, "train", cameras=("image_1", "image_0"))
    assert other.fingerprint == first.fingerprint
    sent = pickle.loads(pickle.dumps(first))
    np.testing.assert_array_equal(sent[3].state, first[3].state)
    assert len(list(cache.iterdir())) == 1


def test_another_size_is_noticed_when_it_is_opened(toy, monkeypatch):
    before = EpisodeReader(toy, "train").fingerprint
    form = "tfrecord" if "tfrecord" in shard(toy, 1).name else "array_record"
    episodes = [rlds.StoredEpisode.random(70 + i, 12) for i in range(2)]
    rlds.write_shard(shard(toy, 1), [e.example() for e in episodes], file_format=form)
    logged = warnings(monkeypatch)
    reader = EpisodeReader(toy, "train")
    assert logged == [
        f"{shard(toy, 1)} changed since it was indexed (and 0 more of 2 shards); indexing again"
    ]
    assert reader.fingerprint != before
    assert reader.headers.steps.tolist() == [6, 7, 8, 12, 12]
    np.testing.assert_array_equal(reader[4].state, episodes[1].state)


def test_another_time_is_noticed_when_it_is_opened(toy, monkeypatch, never_scan):
    before = EpisodeReader(toy, "train").fingerprint
    for number in (0, 1):
        os.utime(shard(toy, number), ns=(1, 10**18 + number))
    logged = warnings(monkeypatch)
    assert EpisodeReader(toy, "train").fingerprint == before
    (line,) = logged
    assert line.startswith(str(shard(toy, 0))) and "1 more of 2 shards" in line
    never_scan()
    EpisodeReader(toy, "train")
    assert len(logged) == 1


def test_a_change_under_a_running_reader_is_told(toy):
    """The next epoch of a run that outlives its data."""
    reader = EpisodeReader(toy, "train")
    size = shard(toy, 1).stat().st_size
    write(toy, "tfrecord" if "tfrecord" in shard(toy, 1).name else "array_record", seed=40)
    for read in (reader.__getitem__, reader.motion):
        with pytest.raises(ValueError, match="changed since it was indexed") as error:
            read(4)
        text = str(error.value)
        assert text.startswith(str(shard(toy, 1))) and f"({size:,} bytes then" in text
        assert text.endswith("start again, and the index is made anew")
    assert EpisodeReader(toy, "train")[4].header.name == "/recordings/44.npy#44"


def test_a_damaged_shard_that_did_not_change_is_no_change(tmp_path):
    root = write(tmp_path / "toy", "tfrecord")
    path = shard(root, 0)
    damaged = bytearray(path.read_bytes())
    damaged[damaged.find(b"IDAT") + 9] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match="damaged record at byte 0") as error:
        EpisodeReader(root, "train")[0]
    assert "changed" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"no archive", None])
def test_a_damaged_index_is_named(toy, cache, content):
    EpisodeReader(toy, "train")
    (path,) = cache.iterdir()
    path.write_bytes(path.read_bytes()[:-40] if content is None else content)
    with pytest.raises(ValueError, match=f"{path}: damaged index .*delete it to have it made"):
        EpisodeReader(toy, "train")
    path.unlink()
    EpisodeReader(toy, "train")


def test_a_failed_index_leaves_nothing(toy, cache):
    path = shard(toy, 1)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=str(path)):
        EpisodeReader(toy, "train")
    assert not cache.exists() or not list(cache.iterdir())


def test_another_declared_number_is_another_index(toy):
    EpisodeReader(toy, "train")
    info = (toy / "dataset_info.json").read_text()
    (toy / "dataset_info.json").write_text(info.replace('["3", "2"]', '["3", "3"]'))
    with pytest.raises(ValueError, match="2 records in .*expected 3 by dataset_info.json"):
        EpisodeReader(toy, "train")


def test_a_corrected_width_makes_a_new_index(tmp_path):
    """features.json is no shard, but says how long episodes are."""
    episode = rlds.StoredEpisode.random(0, 12)
    root = rlds.write_dataset(tmp_path / "toy", {"train": [episode]})
    wrong = tfds.features.Tensor(shape=(14,), dtype=np.float32)
    plain = {"image_0": tfds.features.Image(shape=(8, 8, 3), encoding_format="png")}
    features = rlds.bridge_features(8, observation={**plain, "state": wrong})
    features.save_config(root)
    declaration = dataclasses.replace(
        BRIDGE,
        cameras={"image_0": "steps/observation/image_0"},
        state=tuple(dataclasses.replace(part, width=None) for part in BRIDGE.state),
    )
    assert EpisodeReader(root, "train", declaration=declaration).headers.steps.tolist() == [6]
    rlds.bridge_features(8).save_config(root)
    reader = EpisodeReader(root, "train", declaration=declaration)
    assert reader.headers.steps.tolist() == [12]
    np.testing.assert_array_equal(reader[0].state, episode.state)
