"""train.py and eval.py as a user types them: a run, a resume, an evaluation, and bad input."""

import json
import pathlib
import shutil
import sys

import pytest

import eval as eval_command
import train as train_command
from roam_jax.cli.arguments import run_command

ROOT = pathlib.Path(__file__).resolve().parent.parent
TINY = str(ROOT / "configs/bridge_3loop.py:tiny")


def command(main, *arguments) -> int:
    """Exit code of a command line."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["command", *map(str, arguments)])
        try:
            run_command(main)
        except SystemExit as stop:
            return stop.code or 0
    return 0


@pytest.fixture(scope="module")
def options(weights, robot_root):
    """A very small run on the real episodes."""
    return [
        f"--config.backbone.path={weights}",
        f"--config.data.root={robot_root}",
        "--config.train.steps=4",
        "--config.optim.warmup_steps=1",
        "--config.train.save_every=2",
        "--config.train.log_every=1",
        "--config.loop.rounds=2",
        "--config.eval.resamples=20",
        "--config.eval.buckets=2",
    ]


@pytest.fixture(scope="module")
def workdir(options, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    assert command(train_command.main, "--config", TINY, "--workdir", folder, *options) == 0
    return folder


def test_a_run_leaves_metrics_checkpoints_and_its_origin(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert {"loss", "loss/diffusion", "loss/action", "grad_norm", "lr"} <= set(lines[0])
    assert {p.name for p in (workdir / "checkpoints").iterdir()} == {"2", "4"}
    saved = json.loads((workdir / "config.json").read_text())
    assert saved["config"]["loop"]["rounds"] == 2
    assert set(saved["provenance"]["fingerprints"]) == {"data", "data/val", "transformer", "vae"}
    assert len(saved["provenance"]["statistics"]["proprio"]["q99"]) == 7


def test_evaluation_from_the_workdir_alone(workdir, capsys):
    assert command(eval_command.main, "--workdir", workdir, "--step", 4) == 0
    report = json.loads((workdir / "eval" / "4.json").read_text())
    assert report["step"] == 4 and report["rounds"] == [1, 2]
    assert list((workdir / "eval").glob("4_*.png"))
    assert "report:" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--rounds", "1,3"], "3"),
        (["--step", "7"], "7"),
        (["--config.loop.rounds=3"], "loop.rounds"),
        (["--config.eval.window=3"], "did you mean --config.eval.windows"),
    ],
)
def test_evaluations_that_do_not_fit_the_run(workdir, arguments, message, capsys):
    before = sorted(p.name for p in workdir.rglob("*"))
    assert command(eval_command.main, "--workdir", workdir, *arguments) == 2
    printed = capsys.readouterr().err
    assert printed.count("error:") == 1 and message in printed
    assert sorted(p.name for p in workdir.rglob("*")) == before


def test_other_frozen_weights_are_refused(workdir, tmp_path, capsys):
    from tests.tiny_weights import write_weights

    other = write_weights(tmp_path, seed=5)
    arguments = ["--workdir", workdir, f"--config.backbone.path={other}"]
    assert command(eval_command.main, *arguments) == 2
    assert "fingerprint" in capsys.readouterr().err


def test_a_workdir_of_another_config_is_refused(workdir, options, capsys):
    arguments = ["--config", TINY, "--workdir", workdir, *options, "--config.optim.lr=1.0"]
    assert command(train_command.main, *arguments) == 2
    assert "optim.lr" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--config.data.root=nowhere"], "nowhere"),
        (["--config.data.camera=image_8"], "image_8"),
        (["--config.data.frames=41"], "no window left"),
        (["--config.mesh.fsdp=3"], "mesh.fsdp = 3"),
        (["--config.train.batch_size=4"], "batch"),
        (["--config.freeze=everything"], "freeze = 'everything'"),
        (["--config.loop.gate=open"], "loop.gate = 'open'"),
        (["--config.backbone.path=random"], "random"),
        (["--config.optim.learning_rate=1"], "no such key"),
    ],
)
def test_bad_input_ends_with_one_message_and_leaves_nothing(
    options, arguments, message, tmp_path, capsys
):
    folder = tmp_path / "run"
    line = ["--config", TINY, "--workdir", folder, *options, *arguments]
    assert command(train_command.main, *line) == 2
    printed = capsys.readouterr().err
    assert printed.count("error:") == 1 and message in printed
    assert not folder.exists()


@pytest.mark.parametrize("damage", ["cut", "flip"])
def test_damaged_records_are_named_with_their_byte(options, bridge_root, damage, tmp_path, capsys):
    root = tmp_path / "bridge_dataset" / "1.0.0"
    shutil.copytree(bridge_root, root)
    shard = next(root.glob("*train*"))
    shard.chmod(0o600)
    data = bytearray(shard.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
    shard.unlink()
    shard.write_bytes(data[: len(data) // 2] if damage == "cut" else data)
    line = ["--config", TINY, "--workdir", tmp_path / "run", *options]
    assert command(train_command.main, *line, f"--config.data.root={root}") == 2
    printed = capsys.readouterr().err
    assert shard.name in printed and "byte" in printed
    assert not (tmp_path / "run").exists()


def test_help_has_an_example(capsys):
    assert command(train_command.main, "--help") == 0
    assert "example:\n  python train.py --config" in capsys.readouterr().out
