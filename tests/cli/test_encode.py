"""`encode` as a user types it: what it prints, training on what it made, bad input."""

import json
import shutil

import pytest

import train as train_command
from roam_jax.cli import encode
from roam_jax.tasks import latents
from roam_jax.tasks.latents import layout_encoder
from roam_jax.train.metrics import read_metrics, reproducible
from tests.evaluate.conftest import write_toy
from tests.test_commands import TINY, command


@pytest.fixture(scope="module")
def options(weights, tmp_path_factory):
    root = write_toy(tmp_path_factory.mktemp("toy") / "1.0.0", seed=0)
    return [
        *("--config", TINY, f"--config.backbone.path={weights}", f"--config.data.root={root}"),
        "--config.data.image_size=(16,16)",
        "--config.train.steps=3",
        "--config.train.batch_size=2",
        "--config.train.log_every=1",
        "--config.optim.warmup_steps=1",
        "--config.loop.rounds=1",
        "--config.mesh.data=1",
        "--config.mesh.fsdp=1",
    ]


SMALL = ("--shard_windows", "3", "--batch", "2")


@pytest.fixture(scope="module")
def folder(options, tmp_path_factory):
    """All seven windows, encoded by two processes; read only."""
    out = tmp_path_factory.mktemp("latents") / "toy"
    for process in ("1/2", "0/2"):
        line = [*options, "--out", out, "--process", process, *SMALL]
        assert command(encode.main, *line) == 0
    return out


@pytest.fixture
def one_device(monkeypatch):
    """A mesh of one of the eight fake devices."""
    import jax

    devices = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda *_: devices)


def metrics(options, workdir, *more):
    assert command(train_command.main, *options, "--workdir", workdir, *more) == 0
    rows = read_metrics(workdir / "metrics.jsonl")
    return list(map(reproducible, rows))


@pytest.mark.exact
def test_training_on_the_folder_is_training_on_frames(
    options, folder, tmp_path, one_device, capsys
):
    frames = metrics(options, tmp_path / "frames", "--config.data.encode_once=0")
    latents = metrics(options, tmp_path / "latents", f"--config.data.latents={folder}")
    assert {"loss", "loss/diffusion", "loss/action", "grad_norm"} <= set(frames[0])
    assert latents == frames and len(frames) == 3
    saved = json.loads((tmp_path / "latents" / "config.json").read_text())
    about = saved["provenance"]["latents"][""]
    assert (about["windows"], about["stride"], about["copies"]) == (7, 1, 1)
    line = [*options, "--workdir", tmp_path / "frames", "--config.data.encode_once=0"]
    assert command(train_command.main, *line, f"--config.data.latents={folder}") == 2
    message = f"data.latents: none -> {folder}; expected what the run began with"
    assert message in capsys.readouterr().err


def test_a_first_look_says_what_it_takes(options, tmp_path, capsys):
    out = tmp_path / "latents"
    line = [*options, "--out", out, *SMALL, "--stride", "2", "--dtype", "float16", "--dry_run"]
    assert command(encode.main, *line) == 0
    windows, size, here = capsys.readouterr().out.splitlines()
    assert windows == "windows: 4 of 7, every 2 starts"
    # 5 latent frames of 16 x 2 x 2, twice, in 2 bytes; 8 actions and 3 states of 7, 3 rewards, and
    # three places in 4 bytes.
    assert size.startswith("size:    1.61 kB a window, ") and " in 2 shards; " in size
    assert 2 * 5 * 64 * 2 + 4 * (11 * 7 + 3 + 3) == 1612
    assert here.startswith("here:    2 of 2 shards to encode, 4 windows, ")
    assert not out.exists()


def test_what_it_says_and_what_to_do_next(options, folder, tmp_path, capsys):
    assert command(encode.main, *options, "--out", folder, *SMALL) == 0
    *_, here, encoded, following = capsys.readouterr().out.splitlines()
    assert here.startswith("here:    0 of 3 shards to encode, 0 windows")
    assert encoded.startswith("encoded: 0 windows in ")
    assert following == f"next:    train.py with --config.data.latents={folder}"
    line = [*options, "--out", tmp_path / "part", *SMALL, "--process", "2/4"]
    assert command(encode.main, *line) == 0
    *_, encoded, following = capsys.readouterr().out.splitlines()
    assert encoded.startswith("encoded: 1 windows in ")
    assert following.startswith("next:    shards of other processes are missing")


def test_ctrl_c_says_how_to_go_on(options, folder, tmp_path, capsys, monkeypatch):
    out, calls = tmp_path / "latents", []

    def stopped(experiment, layout):
        encoder = layout_encoder(experiment, layout)

        def encode(videos):
            calls.append(len(videos["frames"]))
            if len(calls) == 4:  # the second call of the second shard
                raise KeyboardInterrupt
            return encoder(videos)

        return encode

    with monkeypatch.context() as patch:
        patch.setattr(latents, "layout_encoder", stopped)
        assert command(encode.main, *options, "--out", out, *SMALL) == 130
    message = capsys.readouterr().err
    assert "stopped after 3 of 7 windows; the same command goes on" in message
    first = "latents-00000-of-00003.array_record"
    assert sorted(path.name for path in out.iterdir()) == [first, "latents.json"]
    assert command(encode.main, *options, "--out", out, *SMALL) == 0
    assert "encoded: 4 windows in " in capsys.readouterr().out
    for path in folder.glob("*.array_record"):
        assert (out / path.name).read_bytes() == path.read_bytes()


def test_help_has_an_example(capsys):
    assert command(encode.main, "--help") == 0
    text = capsys.readouterr().out
    assert "example:\n  python -m roam_jax encode --config configs/bridge_3loop.py:tiny" in text


@pytest.mark.parametrize(
    "more, message",
    [
        (["--process", "4/4"], "--process 4/4: expected I/N with 0 <= I < N, such as 0/4"),
        (["--process", "one"], "--process one: expected I/N"),
        (["--batch", "0"], "--batch 0, --shard_windows 256, --copies 0: expected at least 1"),
        (["--stride", "0"], "--stride 0: expected at least 1"),
        (["--config.data.latents_stride=-2"], "data.latents_stride = -2: expected at least 0"),
        (["--copies", "2"], "--copies 2: all copies would be alike; expected data.augment"),
        (
            ["--config.data.augment.hue=0.1", "--config.data.goal=uniform"],
            "data.augment.hue = 0.1, data.goal = 'uniform' with --copies 0: windows that were "
            "encoded once cannot change any more; expected --copies K",
        ),
        (["--config.seed=-1"], "seed = -1: expected 0 <= seed < 2**32"),
        (["--config.seed=5000000000"], "seed = 5000000000: expected 0 <= seed < 2**32"),
        (["--config.train.task=vae"], "train.task = vae: expected one that reads latents"),
        (["--config.data.frames=10"], "data.frames = 10: a window has 4n + 1 frames, n >= 1"),
        (["--config.data.latent=x"], "no such key; did you mean --config.data.latents?"),
        (["--dtype", "float8"], "invalid choice: 'float8'"),
    ],
)
def test_wrong_arguments_are_one_message(options, tmp_path, capsys, more, message):
    assert command(encode.main, *options, "--out", tmp_path / "latents", *more) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "latents").exists()


def test_a_disk_that_is_too_small(options, tmp_path, capsys, monkeypatch):
    full = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    assert command(encode.main, *options, "--out", tmp_path / "latents") == 2
    message = capsys.readouterr().err
    assert f"--out {tmp_path / 'latents'}: " in message
    assert (
        "are needed, 1.00 kB are free; a larger --stride or --dtype float16 needs less" in message
    )
    assert not (tmp_path / "latents").exists()


def test_another_command_on_the_folder(options, folder, capsys):
    line = [*options, "--out", folder, "--stride", "2", "--config.data.goal=last"]
    assert command(encode.main, *line) == 2
    message = capsys.readouterr().err
    assert "was begun otherwise: " in message
    for part in ("data.goal: none there, last here", "--stride: 1 there, 2 here"):
        assert part in message
    assert f"python -m roam_jax encode --config {TINY}" in message


def test_training_on_what_is_not_complete_or_other(options, folder, tmp_path, capsys):
    half = tmp_path / "half"
    shutil.copytree(folder, half)
    (half / "complete.json").unlink()
    (half / "latents-00001-of-00003.array_record").unlink()
    line = [*options, "--workdir", tmp_path / "run", f"--config.data.latents={half}"]
    assert command(train_command.main, *line) == 2
    message = capsys.readouterr().err
    assert "1 of 3 shards are missing; this goes on with it: python -m roam_jax encode" in message
    assert f"--shard_windows 3 --out {half}" in message
    other = [f"--config.data.latents={folder}", "--config.data.goal=last"]
    assert command(train_command.main, *line, *other) == 2
    message = capsys.readouterr().err
    assert "was made with other weights or preprocessing: " in message
    assert "data.goal: none there, last here" in message
    assert command(train_command.main, *line[:-1], "--config.data.latents_stride=2") == 2
    message = capsys.readouterr().err
    assert "data.latents_stride = 2 without data.latents: training on frames reads every" in message
    assert not (tmp_path / "run").exists()
