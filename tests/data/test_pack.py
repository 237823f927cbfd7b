"""Packing against tfds's own reader: the same payloads, whatever interrupted it on the way."""

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import tensorflow_datasets as tfds

from roam_jax.data import array_records, pack, records
from roam_jax.data.dataset import EpisodeReader
from roam_jax.data.pack import Packing
from tests.data import rlds

SHARDS = 3


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ROAM_CACHE", str(tmp_path / "cache"))


def write(root, **options):
    splits = {
        "train": [rlds.StoredEpisode.random(i, 6 + i) for i in range(7)],
        "val": [rlds.StoredEpisode.random(50 + i, 5) for i in range(3)],
    }
    return rlds.write_dataset(root, splits, shards=SHARDS, **options)


@pytest.fixture
def src(tmp_path):
    return write(tmp_path / "toy" / "1.0.0")


@pytest.fixture
def out(tmp_path):
    return tmp_path / "packed" / "1.0.0"


def source_shard(root, number, split="train"):
    return rlds.shard_path(root, split, number, of=SHARDS)


def packed_shard(root, number, split="train"):
    return rlds.shard_path(root, split, number, of=SHARDS, file_format="array_record")


@pytest.fixture
def reads(monkeypatch):
    """Records that are read, in order; each goes through `reads.hook` first."""

    class Reads(list):
        def hook(self, record):
            """Replaced where something is to happen."""

    found, read_record = Reads(), records.read_record

    def read(record):
        found.hook(record)
        found.append((record.path.name, record.offset))
        return read_record(record)

    monkeypatch.setattr(records, "read_record", read)
    return found


def assert_packed(src, out, splits=("train", "val")):
    """All of the source is there, by tfds's reader and by ours, and nothing besides."""
    builder = tfds.builder_from_directory(out)
    info, was = (json.loads((root / "dataset_info.json").read_text()) for root in (out, src))
    assert info["fileFormat"] == "array_record"
    assert [split["name"] for split in info["splits"]] == list(splits)
    assert info["splits"] == [split for split in was["splits"] if split["name"] in splits]
    assert (info["name"], info["version"]) == (was["name"], was["version"])
    assert (out / "features.json").read_bytes() == (src / "features.json").read_bytes()
    for split in splits:
        source = builder.as_data_source(split)
        references = list(rlds.decoded(src, split))
        assert len(source) == len(references) == sum(builder.info.splits[split].shard_lengths)
        for episode, reference in zip(source, references, strict=True):
            assert episode["episode_metadata"] == reference["episode_metadata"]
            for step, expected in zip(episode["steps"], reference["steps"], strict=True):
                for value, wanted in zip(*map(leaves, (step, expected)), strict=True):
                    np.testing.assert_array_equal(value, wanted)
        packed, stored = EpisodeReader(out, split), EpisodeReader(src, split)
        assert packed.fingerprint == stored.fingerprint
        assert list(packed.headers) == list(stored.headers)
    shards = {packed_shard(out, i, split).name for split in splits for i in range(SHARDS)}
    described = {"features.json", "dataset_info.json", "pack.json"}
    assert {path.name for path in out.iterdir()} == shards | described


def leaves(step):
    """Values of a nested dict, in the order of their names."""
    if not isinstance(step, dict):
        return [step]
    return [leaf for name in sorted(step) for leaf in leaves(step[name])]


def test_tfds_reads_the_same_episodes(src, out):
    told = []
    packing = Packing(src, out)
    assert (packing.episodes, len(packing.shards), len(packing.missing)) == (10, 6, 6)
    size = sum(path.stat().st_size for path in src.glob("*.tfrecord-*"))
    assert packing.missing_bytes == size
    packing.run(told.append)
    assert_packed(src, out)
    assert sum(told) == size - 16 * 10 and len(told) == 10  # the framing of ten records


def test_what_is_left_to_pack(src, out):
    packing = Packing(src, out, splits=["val"])
    assert packing.left == ("train", "val")
    packing.run()
    assert packing.left == ("train",)
    packed_shard(out, 1, "val").unlink()
    assert packing.left == ("train", "val")


def test_array_record_is_packed_too(src, tmp_path, out):
    other = write(tmp_path / "other", file_format="array_record")
    Packing(other, out).run()
    assert_packed(src, out)


def test_real_episodes(bridge_root, out):
    Packing(bridge_root, out).run()
    for split in ("train", "val"):
        packed, stored = (EpisodeReader(root, split) for root in (out, bridge_root))
        assert packed.fingerprint == stored.fingerprint
        info = tfds.builder_from_directory(out).info.splits[split]
        assert (
            info.num_bytes == tfds.builder_from_directory(bridge_root).info.splits[split].num_bytes
        )


def test_label_names_come_along(src, out):
    (src / "steps-kind.labels.txt").write_text("push\nreach\n")
    Packing(src, out).run()
    assert (out / "steps-kind.labels.txt").read_text() == "push\nreach\n"


def test_one_split_and_then_the_other(src, out, reads):
    Packing(src, out, splits=["val"]).run()
    assert_packed(src, out, ("val",))
    with pytest.raises(ValueError, match="no split 'train'"):
        EpisodeReader(out, "train")
    reads.clear()
    packing = Packing(src, out, splits=["train"])
    assert {shard.split for shard in packing.shards} == {"train"}

    def still_described(record):
        assert (out / "dataset_info.json").exists()

    reads.hook = still_described
    packing.run()
    assert len(reads) == 7
    reads.hook = lambda record: None
    assert_packed(src, out)


def test_a_finished_folder_is_left_as_it_is(src, out, reads):
    Packing(src, out).run()
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("*.array_record-*")}
    reads.clear()
    packing = Packing(src, out)
    assert not packing.missing
    packing.run()
    assert not reads
    assert before == {path.name: path.stat().st_mtime_ns for path in out.glob("*.array_record-*")}
    assert_packed(src, out)


@pytest.mark.parametrize("stop", [KeyboardInterrupt, MemoryError])
def test_an_interrupted_copy_goes_on(src, out, reads, stop):
    def interrupt(record):
        if len(reads) == 4:
            raise stop

    reads.hook = interrupt
    with pytest.raises(stop):
        Packing(src, out).run()
    # Three records of the first shard are there, and nothing of the second.
    assert {path.name for path in out.iterdir()} == {
        packed_shard(out, 0).name,
        "features.json",
        "pack.json",
    }
    with pytest.raises(FileNotFoundError, match="no dataset_info.json: `python -m roam_jax pack`"):
        EpisodeReader(out, "train")
    first = packed_shard(out, 0).stat().st_mtime_ns
    reads.clear()
    reads.hook = lambda record: None
    packing = Packing(src, out)
    assert [shard.target for shard in packing.missing] == [
        packed_shard(out, *place) for place in ((1,), (2,), (0, "val"), (1, "val"), (2, "val"))
    ]
    packing.run()
    assert len(reads) == 7 and packed_shard(out, 0).stat().st_mtime_ns == first
    assert_packed(src, out)


def test_a_killed_copy_goes_on(src, out, reads):
    script = f"""
        import os, pathlib, signal
        from roam_jax.data import records
        from roam_jax.data.pack import Packing

        told, read = [], records.read_record

        def kill_at_the_fifth(record):
            told.append(record)
            if len(told) == 5:
                os.kill(os.getpid(), signal.SIGKILL)
            return read(record)

        records.read_record = kill_at_the_fifth
        Packing(pathlib.Path({str(src)!r}), pathlib.Path({str(out)!r})).run()
    """
    ended = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=False)
    assert ended.returncode == -signal.SIGKILL
    (left,) = out.glob(f".{packed_shard(out, 1).name}-*")
    assert not packed_shard(out, 1).exists() and not (out / "dataset_info.json").exists()
    Packing(src, out).run()
    assert len(reads) == 7 and not left.exists()
    assert_packed(src, out)


@pytest.mark.parametrize("change", ["cut", "touched", "gone"])
def test_a_shard_that_is_not_as_it_was_left_is_made_again(src, out, reads, change):
    Packing(src, out).run()
    path = packed_shard(out, 1)
    if change == "cut":
        path.write_bytes(path.read_bytes()[:1000])
    elif change == "touched":
        os.utime(path, ns=(1, 1))
    else:
        path.unlink()
    reads.clear()
    packing = Packing(src, out)
    assert [shard.target for shard in packing.missing] == [path]

    def refused_meanwhile(record):
        assert not (out / "dataset_info.json").exists()

    reads.hook = refused_meanwhile
    packing.run()
    assert [name for name, _ in reads] == [source_shard(src, 1).name] * 2
    reads.hook = lambda record: None
    assert_packed(src, out)


def test_a_source_that_changed_is_copied_again(src, out):
    Packing(src, out).run()
    episodes = [rlds.StoredEpisode.random(80 + i, 9) for i in range(2)]
    rlds.write_shard(source_shard(src, 2), [e.example() for e in episodes], file_format="tfrecord")
    packing = Packing(src, out)
    assert [shard.source for shard in packing.missing] == [source_shard(src, 2)]
    packing.run()
    np.testing.assert_array_equal(EpisodeReader(out, "train")[6].state, episodes[1].state)


def test_a_source_that_changes_meanwhile(src, out, reads):
    path = source_shard(src, 1)
    reads.hook = lambda record: os.utime(path, ns=(len(reads), len(reads)))
    with pytest.raises(ValueError, match=f"{path}: changed while it was copied. 1 of 6 shards"):
        Packing(src, out).run()
    assert not packed_shard(out, 1).exists()


def test_a_damaged_record_stops_with_file_and_byte(src, out):
    path = source_shard(src, 1)
    second = records.index_shard(path)[1].offset
    intact = path.read_bytes()
    damaged = bytearray(intact)
    damaged[damaged.find(b"IDAT", second) + 9] ^= 1
    path.write_bytes(damaged)
    message = f"{path}: damaged record at byte {second}: .*1 of 6 shards are done and stay in {out}"
    with pytest.raises(ValueError, match=message):
        Packing(src, out).run()
    assert {path.name for path in out.iterdir()} == {
        packed_shard(out, 0).name,
        "features.json",
        "pack.json",
    }
    path.write_bytes(intact)
    Packing(src, out).run()
    assert_packed(src, out)


def test_another_number_of_records_than_declared(src, out):
    path = source_shard(src, 1)
    path.write_bytes(path.read_bytes()[: records.index_shard(path)[1].offset])
    message = f"{path}: 1 records, expected 2 by dataset_info.json"
    with pytest.raises(ValueError, match=message):
        Packing(src, out).run()
    assert not packed_shard(out, 1).exists()


def test_missing_source_shard(src, out):
    source_shard(src, 1).unlink()
    with pytest.raises(FileNotFoundError, match="train.tfrecord-00001-of-00003: no such shard"):
        Packing(src, out)
    Packing(src, out, splits=["val"]).run()


def test_a_disk_that_is_full(src, out, monkeypatch):
    class Full:
        def __init__(self, path, options):
            open(path, "wb").close()

        def write(self, payload):
            raise RuntimeError("write() failed: No space left on device")

        def close(self):
            pass

    with monkeypatch.context() as patch:
        patch.setattr(array_records.array_record_module, "ArrayRecordWriter", Full)
        message = f"{packed_shard(out, 0)}: cannot be written: .*No space left on device. 0 of 6"
        with pytest.raises(ValueError, match=message):
            Packing(src, out).run()
    Packing(src, out).run()
    assert_packed(src, out)


def test_too_little_space_is_told_before(src, out, monkeypatch):
    free = shutil._ntuple_diskusage(10**9, 10**9 - 500_000, 500_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free)
    message = rf"--out {out}: 6 shards need \d\.\d\d GB, 0.00 GB are free there"
    with pytest.raises(ValueError, match=message):
        Packing(src, out)
    assert not out.exists()


def test_the_space_that_is_asked_for_is_enough(src, out):
    Packing(src, out).run()
    taken = sum(path.stat().st_size for path in out.glob("*.array_record-*"))
    read = sum(path.stat().st_size for path in src.glob("*.tfrecord-*"))
    assert taken < read * (1 + pack.OVERHEAD) + 6 * pack.OVERHEAD_BYTES


def test_no_other_folder_is_touched(src, out, tmp_path):
    with pytest.raises(ValueError, match=f"--out {src}: that is --src"):
        Packing(src, src)
    link = tmp_path / "link"
    link.symlink_to(src)
    with pytest.raises(ValueError, match="that is --src"):
        Packing(src, link)
    other = write(tmp_path / "other", name="another")
    with pytest.raises(ValueError, match=f"--out {other}: holds another-train.*new or empty"):
        Packing(src, other)
    Packing(src, out).run()
    with pytest.raises(
        ValueError, match=f"--out {out}: begun for toy_bridge/1.0.0, not for another/1"
    ):
        Packing(other, out)
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(ValueError, match=f"--out {file}: a file"):
        Packing(src, file)
    assert_packed(src, out)


def test_other_features_under_the_same_name(src, out, tmp_path):
    Packing(src, out).run()
    other = write(tmp_path / "other", features=rlds.bridge_features(16))
    with pytest.raises(ValueError, match="begun for toy_bridge/1.0.0, with other features or sh"):
        Packing(other, out)


@pytest.mark.parametrize("content", [b"", b"[]", b'{"dataset": 3}'])
def test_a_damaged_journal(src, out, content):
    Packing(src, out).run()
    (out / "pack.json").write_bytes(content)
    with pytest.raises(ValueError, match=f"{out}/pack.json: damaged .*delete the folder"):
        Packing(src, out)


@pytest.mark.parametrize(
    "entry",
    [
        None,
        {"source": [1, 2], "bytes": 3},
        {"target": [1, 2], "source": [1], "bytes": 3},
        {"target": [1, 2], "source": [1, 2]},
        {"target": [1, 2], "source": [1, 2], "bytes": "many"},
        {"target": [1, "x"], "source": [1, 2], "bytes": 3},
    ],
)
def test_a_damaged_entry_of_the_journal(src, out, entry):
    Packing(src, out).run()
    journal = json.loads((out / "pack.json").read_text())
    journal["shards"][packed_shard(out, 0).name] = entry
    (out / "pack.json").write_text(json.dumps(journal))
    with pytest.raises(ValueError, match=f"{out}/pack.json: damaged .*delete the folder"):
        Packing(src, out)


@pytest.mark.parametrize("file", ["features.json", "dataset_info.json"])
@pytest.mark.parametrize("content", [b"", b'{"x": 1', b'{"x": 1}', b"3", b"{}", b"\xff"])
def test_a_broken_description_is_named(src, out, file, content):
    (src / file).write_bytes(content)
    with pytest.raises(ValueError, match=f"^{src / file}: .*expected the file as tfds wrote it"):
        Packing(src, out)
    with pytest.raises(ValueError, match=f"^{src / file}: "):
        EpisodeReader(src, "train")


def test_unknown_split_and_no_dataset(src, out):
    with pytest.raises(ValueError, match="--split vall: .*has none; did you mean 'val'"):
        Packing(src, out, splits=["train", "vall"])
    with pytest.raises(FileNotFoundError, match=f"--src = {src.parent}: .*did you mean {src}"):
        Packing(src.parent, out)
