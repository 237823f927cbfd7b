"""`pack` as a user types it: what it prints, its help, bad input."""

import pytest
from absl import logging

from roam_jax.__main__ import VERBS, main
from roam_jax.cli import pack, progress
from roam_jax.data.dataset import EpisodeReader
from tests.data import rlds
from tests.test_commands import command


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ROAM_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def src(tmp_path):
    episodes = {
        "train": [rlds.StoredEpisode.random(i, 6) for i in range(4)],
        "val": [rlds.StoredEpisode.random(9, 6)],
    }
    return rlds.write_dataset(tmp_path / "toy", episodes, shards=2)


def test_a_copy_and_what_to_do_next(src, tmp_path, capsys):
    out = tmp_path / "packed"
    assert command(main, "pack", "--src", src, "--out", out, "--split", "train") == 0
    packed, now, following = capsys.readouterr().out.splitlines()
    assert packed.startswith("packed: 2 shards, ") and packed.endswith(" s")
    assert now == f"now:    2 shards, 4 episodes in {out}"
    assert following.startswith("left:   val (") and "without --split" in following
    assert len(EpisodeReader(out, "train")) == 4
    assert command(main, "pack", "--src", src, "--out", out) == 0
    packed, now, following = capsys.readouterr().out.splitlines()
    assert packed.startswith("packed: 2 shards, ") and packed.endswith("; 2 were there")
    assert now == f"now:    4 shards, 5 episodes in {out}"
    assert following == f"next:   train.py with --config.data.root={out}"
    assert len(EpisodeReader(out, "val")) == 1


def test_help_has_an_example(capsys):
    assert "pack" in VERBS
    assert command(main, "pack", "--help") == 0
    text = capsys.readouterr().out
    assert "example:\n  python -m roam_jax pack --src bridge_dataset/1.0.0 --out" in text


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--src", "{src}"], "required: --out"),
        (["--src", "{src}", "--out", "{src}"], "that is --src"),
        (["--src", "{src}/..", "--out", "{src}/../x"], "did you mean"),
        (["--src", "{src}", "--out", "{src}/../x", "--split", "vel"], "did you mean 'val'"),
        (["--src", "{src}", "--out", "{src}/features.json"], "expected a folder"),
        (["--src", "{src}", "--out", "{src}/../x", "--shards", "3"], "--shards"),
    ],
)
def test_bad_input_is_one_message(src, arguments, message, capsys):
    assert command(main, "pack", *(text.format(src=src) for text in arguments)) == 2
    text = capsys.readouterr().err
    assert message in text and "Traceback" not in text


def test_log_files_get_a_line_now_and_then(monkeypatch):
    clock, lines = [100.0], []
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(logging, "info", lambda text, *args: lines.append(text % args))
    shown = {"done": "packed", "unit": "B", "shown": pack.size, "scaled": True}
    with progress.Progress(4 * 10**9, **shown) as bar:
        for _ in range(4):
            clock[0] += 20
            bar.advance(10**9)
    assert lines == [
        "packed 2.00 GB of 4.00 GB, 00:40 left",
        "packed 4.00 GB of 4.00 GB, 00:00 left",
    ]


def test_sizes_are_read_at_a_glance():
    assert [pack.size(n) for n in (0, 999, 12_345, 124 * 10**9)] == [
        "0.00 B",
        "999 B",
        "12.3 kB",
        "124 GB",
    ]
