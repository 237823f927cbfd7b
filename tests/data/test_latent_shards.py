"""Encoding into shards: stopped and resumed, in parts, and folders that hold something else."""

import fcntl
import re

import pytest

from roam_jax.data.latent_layout import COMPLETE
from roam_jax.data.latent_shards import Encoding, Part, missing_shards
from tests.data.latent_windows import encode, fill, make_layout, open_cache, open_windows


@pytest.fixture(scope="module")
def windows(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROAM_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield open_windows(tmp_path_factory.mktemp("toy") / "1.0.0")


class Stopped(Exception):
    """In place of a Ctrl-C, which would end the tests."""


class Counted:
    """An encoder that counts its calls, and stops at one of them."""

    def __init__(self, stop_at=None):
        self.calls, self._stop_at = 0, stop_at

    def __call__(self, videos):
        if self.calls == self._stop_at:
            raise Stopped
        self.calls += 1
        assert len(videos["frames"]) == 2  # one compiled size
        return encode(videos)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_stop_costs_one_shard_and_the_same_command_goes_on(windows, tmp_path):
    out = tmp_path / "latents"
    # Two calls a shard of three windows; the fourth, in the second shard, does not end.
    with pytest.raises(Stopped):
        fill(windows, out, encoder=Counted(stop_at=3))
    first = "latents-00000-of-00004.array_record"
    assert names(out) == [first, "latents.json"]
    stamp = (out / first).stat()
    # What a kill leaves: the hidden file of an unfinished shard.
    (out / ".latents-00001-of-00004.array_record-0123").write_bytes(b"half")
    told = []
    encoding = Encoding(windows, out, make_layout(windows))
    assert (encoding.missing, encoding.missing_windows) == ([1, 2, 3], 8)
    encoder = Counted()
    assert encoding.run(encoder, batch_size=2, advance=told.append)
    assert (encoder.calls, sum(told)) == (2 + 2 + 1, 8)
    shards = [f"latents-{n:05}-of-00004.array_record" for n in range(4)]
    assert names(out) == ["complete.json", *shards, "latents.json"]
    assert (out / first).stat() == stamp
    assert len(open_cache(out, windows)) == 11
    # Once more: nothing is left to do.
    assert fill(windows, out, encoder=Counted(stop_at=0))


def test_windows_are_counted_once_whatever_their_copies(windows, tmp_path):
    told = []
    encoding = Encoding(windows, tmp_path / "latents", make_layout(windows, copies=3, drawn=True))
    assert encoding.missing_windows == len(windows) == 11
    encoding.run(encode, batch_size=2, advance=told.append)
    assert sum(told) == 11


@pytest.mark.parametrize("sizes_known", [True, False])
def test_a_damaged_shard_is_made_again(windows, tmp_path, sizes_known):
    out = tmp_path / "latents"
    fill(windows, out)
    shard = out / make_layout(windows).shard_name(1)
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    if not sizes_known:
        (out / COMPLETE).unlink()
    assert missing_shards(out, make_layout(windows)) == [1]
    assert fill(windows, out)
    assert shard.read_bytes() == whole
    open_cache(out, windows)


def test_one_process_a_part(windows, tmp_path):
    out = tmp_path / "latents"
    out.mkdir()
    with (out / ".part-0-of-1.lock").open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match=r"another process encodes this part \(--process 0/1"):
            fill(windows, out)
    assert fill(windows, out)
    assert not list(out.glob(".part*"))


def test_parts_are_disjoint_and_the_last_completes(windows, tmp_path):
    out = tmp_path / "latents"
    assert not fill(windows, out, part=Part(1, 3))
    assert missing_shards(out, make_layout(windows)) == [0, 2, 3]
    with pytest.raises(ValueError, match="3 of 4 shards are missing"):
        open_cache(out, windows)
    assert not fill(windows, out, part=Part(2, 3))
    assert fill(windows, out, part=Part(0, 3))
    whole = tmp_path / "whole"
    fill(windows, whole)
    assert names(out) == names(whole)
    for path in out.glob("*.array_record"):
        assert path.read_bytes() == (whole / path.name).read_bytes()


def test_sizes_are_those_on_disk(windows, tmp_path):
    out = tmp_path / "latents"
    encoding = Encoding(windows, out, make_layout(windows))
    fill(windows, out)
    stored = sum(path.stat().st_size for path in out.glob("*.array_record"))
    assert 0.5 * encoding.size() < stored <= encoding.size()
    assert encoding.size([0]) < encoding.size() / 3
    # 10 latent frames of 3 x 4 x 4 (means and log-variances), 8 actions and 3 states of 7, 3
    # rewards, episode, start and row of the text.
    assert make_layout(windows).record_bytes == 4 * (10 * 48 + 11 * 7 + 3 + 3)
    assert make_layout(windows, copies=4).window_bytes == 4 * make_layout(windows).record_bytes


def test_another_command_on_the_same_folder_is_refused_by_name(windows, tmp_path):
    out = tmp_path / "latents"
    fill(windows, out)
    for change, message in (
        ({"stride": 2}, "--stride: 1 there, 2 here"),
        ({"copies": 2, "drawn": True}, "--copies: 1 there, 2 here"),
        ({"shard_windows": 4}, "--shard_windows: 3 there, 4 here"),
        ({"made_with": {"weights of the VAE": "xyz"}}, "weights of the VAE: abc there, xyz here"),
        ({"arithmetic": "bfloat16 on gpu"}, "arithmetic: float32 on cpu there, bfloat16 on gpu"),
        ({"dtype": "float16"}, "record: "),
    ):
        with pytest.raises(ValueError, match=re.escape(message)) as error:
            fill(windows, out, **change)
        assert f"--out {out} was begun otherwise: " in str(error.value)
        assert "--config 'my config.py'" in str(error.value)


def test_folders_that_hold_something_else(windows, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="--out .*file: a file; expected a folder"):
        fill(windows, tmp_path / "file")
    with pytest.raises(ValueError, match="holds file and is no folder that `encode` began"):
        fill(windows, tmp_path)


def test_a_shard_that_cannot_be_written_is_named(windows, tmp_path, monkeypatch):
    from roam_jax.data import array_records

    class Full:
        def __init__(self, path, options):
            pass

        def write(self, payload):
            raise RuntimeError("No space left on device")

        def close(self):
            pass

    monkeypatch.setattr(array_records.array_record_module, "ArrayRecordWriter", Full)
    message = "latents-00000-of-00004.array_record: cannot be written: No space left"
    with pytest.raises(ValueError, match=message):
        fill(windows, tmp_path / "latents")
    assert names(tmp_path / "latents") == ["latents.json"]


def test_other_shapes_than_described_are_refused(windows, tmp_path):
    def small(videos):
        return {name: array[..., :2] for name, array in encode(videos).items()}

    with pytest.raises(ValueError, match=r"observed_latents of shape \(2, 3, 4, 2\), expected"):
        fill(windows, tmp_path / "latents", encoder=small)
