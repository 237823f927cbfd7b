"""train.py and eval.py as a user types them: a run, a resume, an evaluation, and bad input."""

import json
import pathlib
import shutil
import sys

import jax
import pytest

import eval as eval_command
import train as train_command
from roam_jax.cli.arguments import load_config, override, run_command
from roam_jax.tasks.scene_build import scene_experiment
from roam_jax.train.metrics import read_metrics, reproducible
from roam_jax.train.optim import make_optimizer
from roam_jax.train.seeds_program import Programs
from roam_jax.train.step import make_update

ROOT = pathlib.Path(__file__).resolve().parent.parent
TINY = str(ROOT / "configs/bridge_3loop.py:tiny")
TOY = str(ROOT / "configs/canvas_toy.py:tiny")
SMALLER = ["--config.model.depth=1", "--config.canvas.predict=('answer','future_proprio')"]


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
    assert len(saved["provenance"]["statistics"][""]["proprio"]["q99"]) == 7


def rows_of(workdir, seed=None):
    """Numbers of a run, or of one seed of several, without times."""
    rows = read_metrics(workdir / "metrics.jsonl")
    untimed = list(map(reproducible, rows))
    return [row for row in untimed if row.pop("seed", None) == seed]


def assert_close(rows, others):
    assert [row["step"] for row in rows] == [row["step"] for row in others] != []
    for row, other in zip(rows, others, strict=True):
        assert row == pytest.approx(other, rel=1e-5, abs=1e-6), row["step"]


def test_seeds_of_a_graft_are_runs_of_their_own(workdir, options, tmp_path):
    """Trained together on shared frozen weights."""
    line = ["--config", TINY, "--workdir", tmp_path, *options, "--seeds", "0:2"]
    assert command(train_command.main, *line) == 0
    assert_close(rows_of(tmp_path, 0), rows_of(workdir))
    assert rows_of(tmp_path, 1)[0]["loss"] != rows_of(tmp_path, 0)[0]["loss"]
    for seed in range(2):
        folder = tmp_path / "seeds" / str(seed)
        saved = json.loads((folder / "config.json").read_text())
        assert saved["config"]["seed"] == seed
        assert set(saved["provenance"]["fingerprints"]) >= {"data", "transformer", "vae"}
        assert {p.name for p in (folder / "checkpoints").iterdir()} == {"2", "4"}


def test_seeds_of_a_canvas_model_are_runs_of_their_own(tmp_path, caplog):
    caplog.set_level("INFO")
    line = ["--config", TOY, "--workdir", tmp_path, "--seeds", "2,5", *SMALLER]
    assert command(train_command.main, *line) == 0
    assert "4 steps of 2 seeds in" in caplog.messages[-1]
    assert "% of this machine's matrix-product rate" in caplog.messages[-1]
    saved = json.loads((tmp_path / "seeds" / "5" / "config.json").read_text())
    assert saved["provenance"]["data"]["train"] == {"scene": "multimodal", "seed": 5}
    for row, metrics in zip(rows_of(tmp_path, 5), steps_alone(seed=5, steps=4), strict=True):
        found = {name: row[name] for name in metrics}
        assert found == pytest.approx(metrics, rel=1e-5, abs=1e-6), row["step"]


def steps_alone(*, seed, steps):
    """Metrics of the first steps of a canvas model, without the trainer's loop."""
    config = load_config(TOY)
    override(config, SMALLER)
    config.seed = seed
    experiment = scene_experiment(config)
    task, curriculum = experiment.task, experiment.rounds
    programs = Programs(task, config=config, curriculum=curriculum, rules=experiment.rules)
    optimizer = make_optimizer(config.optim, steps=config.train.steps, no_decay=task.no_decay)
    update = jax.jit(make_update(task, *optimizer), static_argnames="rounds")
    state, batches = programs.create(seed), experiment.batches()
    for _ in range(steps):
        state, metrics = update(state, {}, next(batches), seed, rounds=config.loop.rounds)
        yield {name: float(value) for name, value in metrics.items()}


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--seeds", "8:0"], "'8:0': expected seeds such as 0:8 (0 to 7) or 0,3,5; 8:0 has none"),
        (["--seeds", "a"], "'a': expected seeds such as"),
        (["--seeds", "1,1"], "seed 1 is there twice"),
        (["--seeds=-1"], "'-1': expected seeds such as"),
        (["--seeds", "0:2", "--config.seed=1"], "--config.seed=1 with --seeds"),
        (["--seeds_at_once", "2"], "--seeds_at_once 2: expected --seeds with it"),
        (["--seeds", "0:2", "--seeds_at_once", "0"], "--seeds_at_once 0: expected 1 or more"),
        (["--seeds", "0:2", "--config.mesh.fsdp=8"], "mesh.fsdp = 8 with --seeds"),
        (["--seeds", "4294967295"], "seed = 4294967295"),
    ],
)
def test_seeds_that_cannot_be_trained(arguments, message, tmp_path, capsys):
    folder = tmp_path / "run"
    assert command(train_command.main, "--config", TOY, "--workdir", folder, *arguments) == 2
    printed = capsys.readouterr().err
    assert printed.count("error:") == 1 and message in printed
    assert not folder.exists()


def test_evaluation_from_the_workdir_alone(workdir, capsys):
    assert command(eval_command.main, "--workdir", workdir, "--step", 4) == 0
    report = json.loads((workdir / "eval" / "4.json").read_text())
    assert report["step"] == 4 and report["rounds"] == [1, 2]
    assert list((workdir / "eval").glob("4_*.png"))
    assert "report:" in capsys.readouterr().out


DECLARATION = """
from roam_jax.data.declaration import DatasetDeclaration, Stored

STATE = "steps/observation/state"
DATASET = DatasetDeclaration(
    name="two axes and a gripper",
    cameras={f"image_{i}": f"steps/observation/image_{i}" for i in range(2)},
    state=(Stored(("x", "y"), STATE, unit="m", columns=(0, 1)),),
    action=(
        Stored(("x", "y"), "steps/action", unit="m", columns=(0, 1)),
        Stored(("lift",), "steps/action", unit="m", columns=(2,)),
    ),
    rate=5.0,
    embedding="steps/language_embedding",
)
"""


def test_a_mixture_of_robots_with_everything_on(options, robot_root, tmp_path):
    """Two robots, two cameras, a goal, augmentation and a worker: trained, resumed, evaluated."""
    declaration = tmp_path / "two_axes.py"
    declaration.write_text(DECLARATION)
    mixture = (("bridge", 0.5, str(robot_root)), ("axes", 0.5, "embedded", str(declaration)))
    line = [
        *("--config", TINY, "--workdir", tmp_path / "run", *options),
        f"--config.data.mixture={mixture}",
        "--config.data.mixture_actions=pad",
        "--config.data.cameras=('image_0','image_1')",
        "--config.data.image_size=(32,48)",
        "--config.data.goal=uniform",
        "--config.data.encode_once=0",
        "--config.data.augment.crop_area=0.8",
        "--config.data.augment.brightness=0.1",
        "--config.canvas.camera_weight=0.5",
        "--config.canvas.proprio=True",
        "--config.canvas.proprio_weight=0.5",
        "--config.eval.windows=4",
    ]
    assert command(train_command.main, *line, "--config.data.workers=1") == 0
    first = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert {"loss/camera", "loss/proprio", "loss/action", "seconds_waiting"} <= set(first[0])
    # Back to step 2, and on without workers: the same numbers, bit for bit.
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "4")
    assert command(train_command.main, *line) == 0
    again = read_metrics(tmp_path / "run" / "metrics.jsonl")
    untimed = list(map(reproducible, (*first, *again)))
    assert untimed[:4] == untimed[4:]
    assert command(eval_command.main, "--workdir", tmp_path / "run", "--rounds", "2") == 0
    report = json.loads((tmp_path / "run" / "eval" / "4.json").read_text())
    assert list(report["splits"]) == ["train/bridge", "train/axes", "val/bridge", "val/axes"]
    moved = ["--workdir", tmp_path / "run", "--config.data.root=elsewhere"]
    assert command(eval_command.main, *moved) == 2
    errors = {
        split: list(found["rounds"]["2"]["actions"]["chunk"]["absolute_error"])
        for split, found in report["splits"].items()
    }
    assert errors["val/axes"] == ["x", "y", "lift"]
    assert errors["val/bridge"] == ["x", "y", "z", "roll", "pitch", "yaw"]


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
        (["--config.data.cameras=('image_8',)"], "image_8"),
        (["--config.data.mixture=(('one',0.5,'embedded'),)"], "sum to 0.5"),
        (["--config.data.image_size=64"], "data.image_size = (64,): expected (height, width)"),
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
