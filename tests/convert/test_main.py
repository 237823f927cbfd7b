"""The commands: exit codes, one message, nothing half-written; and the prompts of a dataset."""

import errno
import hashlib
import json
import os
import re
import sys

import numpy as np
import pytest

from convert.__main__ import VERBS, main
from convert.loops import Loops, write_loops
from roam_jax.cli.arguments import run_command
from roam_jax.cogvideox.load import fingerprint
from roam_jax.cogvideox.save import save_diffusers
from roam_jax.data.dataset import EpisodeReader
from tests.cogvideox.diffusers_models import TINY, random_params
from tests.data import rlds


@pytest.fixture
def command(monkeypatch):
    """Exit code of a command line."""

    def run(*arguments) -> int:
        monkeypatch.setattr(sys, "argv", ["convert", *map(str, arguments)])
        try:
            run_command(main)
        except SystemExit as stop:
            return stop.code or 0
        return 0

    return run


def test_import(command, tmp_path, capsys):
    save_diffusers(tmp_path / "src", transformer=(TINY, random_params(TINY)), dtype=np.float16)
    (tmp_path / "src" / "tokenizer").mkdir()
    (tmp_path / "src" / "tokenizer" / "spiece.model").write_bytes(b"x")
    argv = ["import", "--src", tmp_path / "src", "--dst", tmp_path / "dst"]
    assert command(*argv) == 0
    printed = capsys.readouterr().out
    assert "parameters in 88 tensors (88 float16)" in printed
    assert fingerprint(tmp_path / "dst" / "transformer") in printed
    assert "dst/tokenizer/spiece.model: copied" in printed

    assert command(*argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1
    assert "dst exists" in captured.err


def test_what_is_not_imported_is_said(command, tmp_path, capsys):
    save_diffusers(tmp_path / "src", transformer=(TINY, random_params(TINY)), dtype=np.float16)
    argv = ["import", "--src", tmp_path / "src", "--dst"]
    assert command(*argv, tmp_path / "a") == 0
    assert "not imported" not in capsys.readouterr().out
    (tmp_path / "src" / "lora").mkdir()
    write_loops(tmp_path / "src", Loops({}, {"graft/x": np.zeros(2, np.float32)}))
    assert command(*argv, tmp_path / "b") == 0
    assert (
        f"not imported: loops.json, loops.safetensors, lora; `export --src {tmp_path}/src --as ce` "
        "and convert.loops read loops.safetensors\n"
    ) in capsys.readouterr().out
    assert command("import", "--src", tmp_path / "a", "--dst", tmp_path / "c") == 2
    assert "a: this is converted already (transformer/manifest.json" in capsys.readouterr().err


def test_a_full_disk_is_one_message_and_nothing_is_left(command, tmp_path, capsys, monkeypatch):
    save_diffusers(tmp_path / "src", transformer=(TINY, random_params(TINY)), dtype=np.float16)
    before = set(tmp_path.iterdir())

    reason = errno.ENOSPC

    def fail(*_):
        raise OSError(reason, os.strerror(reason))

    monkeypatch.setattr(os, "posix_fallocate", fail)
    argv = ["import", "--src", tmp_path / "src", "--dst", tmp_path / "dst"]
    assert command(*argv) == 2
    printed = capsys.readouterr().err
    size = r"weights.safetensors: needs [\d,]{6,} bytes, [\d,]+ are free: No space left on device"
    assert re.fullmatch(rf"error: .*transformer/{size}\n", printed)
    reason = errno.EIO
    assert command(*argv) == 2
    assert "Input/output error" in capsys.readouterr().err
    assert set(tmp_path.iterdir()) == before


def test_bit_rot_is_found(command, tmp_path, capsys):
    save_diffusers(tmp_path / "src", transformer=(TINY, random_params(TINY)), dtype=np.float16)
    command("import", "--src", tmp_path / "src", "--dst", tmp_path / "dst")
    weights = tmp_path / "dst" / "transformer" / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    written = json.loads((weights.parent / "manifest.json").read_text())["fingerprint"]
    content[-100] ^= 4
    weights.write_bytes(content)
    found = hashlib.blake2b(content, digest_size=16).hexdigest()
    assert command("export", "--src", tmp_path / "dst", "--dst", tmp_path / "back") == 2
    printed = capsys.readouterr().err
    assert f"{weights}: its bytes changed" in printed and found in printed and written in printed
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize("verb", VERBS)
def test_help_has_an_example(verb, command, capsys):
    assert command(verb, "--help") == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"usage: python -m convert {verb} ")
    assert f"example:\n  python -m convert {verb} " in printed


def test_help_lists_the_verbs(command, capsys):
    assert command("--help") == 0
    printed = capsys.readouterr().out
    assert all(f"\n  {verb} " in printed for verb in VERBS)


@pytest.mark.parametrize(
    "argv, message",
    [
        ([], "the following arguments are required: VERB"),
        (["imports"], "error: no verb 'imports': did you mean 'import'"),
        (["import", "--dst", "x"], "one of the arguments --src --ce is required"),
        (["export", "--dst", "x"], "one of the arguments --src --workdir is required"),
        (["export", "--src", "a", "--workdir", "b", "--dst", "x"], "not allowed with argument"),
        (["export", "--workdir", "b", "--dst", "x", "--fast"], "unknown argument '--fast'"),
        (["inspect"], "the following arguments are required: DIR|FILE"),
        (["inspect", "nowhere"], "error: nowhere: no such file or folder"),
    ],
)
def test_bad_usage(argv, message, command, capsys):
    assert command(*argv) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.out == ""


def test_without_torch_the_extra_is_named(command, monkeypatch, tmp_path, capsys):
    for name in ("convert.verify", "convert.canvas_engineering"):
        monkeypatch.setitem(sys.modules, name, None)
    (tmp_path / "x.pt").write_bytes(b"")
    (tmp_path / "loops").mkdir()
    write_loops(tmp_path / "loops", Loops({}, {"blocks/loop/gate": np.zeros((2, 2), np.float32)}))
    for argv in (
        ["verify", "--src", tmp_path],
        ["import", "--ce", tmp_path / "x.pt", "--dst", tmp_path / "y"],
        ["inspect", tmp_path / "x.pt"],
        ["export", "--src", tmp_path / "loops", "--as", "ce", "--dst", tmp_path / "y.pt"],
    ):
        assert command(*argv) == 2
        hint = "`pip install -e '.[convert]'` in the checkout installs it"
        assert hint in capsys.readouterr().err


def test_prompts_are_the_distinct_instructions_of_both_splits(command, tmp_path, robot_root):
    out = tmp_path / "prompts.txt"
    assert command("prompts", "--data", robot_root, "--out", out) == 0
    found = out.read_text(encoding="utf-8").splitlines()
    readers = [EpisodeReader(robot_root, split) for split in ("train", "val")]
    assert found == sorted(
        {reader[i].header.instruction for reader in readers for i in range(len(reader))}
    )
    with pytest.raises(FileExistsError, match="exists"):
        main(["prompts", "--data", str(robot_root), "--out", str(out)])


def test_prompts_of_a_dataset_with_a_declaration(command, tmp_path, capsys):
    """Other names of splits, cameras and instructions."""
    episodes = [rlds.StoredEpisode.random(seed, 3) for seed in range(3)]
    for episode, text in zip(episodes, ("open", "close", "open"), strict=True):
        episode.instruction = text
    splits = {"train": episodes[:1], "held_out": episodes[1:]}
    root = rlds.write_dataset(tmp_path / "1.0.0", splits)
    (tmp_path / "toy.py").write_text(
        "from roam_jax.data.declaration import DatasetDeclaration, Stored\n"
        "STATE = 'steps/observation/state'\n"
        "DATASET = DatasetDeclaration(name='toy', rate=5.0, splits=('train', 'held_out'),\n"
        "    cameras={'front': 'steps/observation/image_0'},\n"
        "    instruction='steps/language_instruction',\n"
        "    state=(Stored(('x',), STATE, columns=(0,)),),\n"
        "    action=(Stored(('x',), 'steps/action', columns=(0,)),))\n"
    )
    out = tmp_path / "prompts.txt"
    argv = ["prompts", "--data", root, "--out", out]
    assert command(*argv) == 2  # Bridge's validation split is not there
    assert "val" in capsys.readouterr().err and not out.exists()
    assert command(*argv, "--declaration", tmp_path / "toy.py") == 0
    assert out.read_text().splitlines() == ["close", "open"]
    episodes[0].instruction = "open\rit"  # would be two lines to some readers
    root = rlds.write_dataset(tmp_path / "2.0.0", splits)
    argv = ["prompts", "--data", root, "--declaration", tmp_path / "toy.py"]
    assert command(*argv, "--out", tmp_path / "other.txt") == 2
    assert r"instruction 'open\rit' has more than one line" in capsys.readouterr().err
    assert not (tmp_path / "other.txt").exists()
