"""`train.py --dry_run`: parameters, data and batch of a run, and a picture; nothing is trained."""

import train as train_command
from roam_jax.cli import dry_run
from roam_jax.tasks.build import build
from tests.test_commands import TINY, command


def test_a_dry_run_says_what_a_run_will_do(weights, robot_root, tmp_path, capsys):
    options = [f"--config.backbone.path={weights}", f"--config.data.root={robot_root}"]
    line = ["--dry_run", "--config", TINY, "--workdir", tmp_path / "run", *options]
    assert command(train_command.main, *line, "--config.train.batch_size=4") == 0
    printed = capsys.readouterr().out
    rows = [line.split() for line in printed.splitlines()]
    loop = 2 * 3 * (2 * 32 + 1)  # blocks x rounds x (two embeddings, a gate)
    assert ["loop", "trained", str(loop), f"{loop * 16 / 2**20:.1f}"] in rows
    assert ["text", "float32", "(4,", "1,", "512)"] in rows
    assert {"train", "val"} <= {row[0] for row in rows if row}
    assert "frames; no episode left out" in printed
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["first_batch.png"]


def test_the_first_batch_of_a_mixture_is_told_apart(robot_config, tmp_path, monkeypatch):
    """Two copies of one dataset, two cameras; some windows of either are drawn."""
    root = robot_config.data.root
    robot_config.data.mixture = (("one", 0.5, root), ("two", 0.5, root))
    robot_config.data.cameras = ("image_0", "image_1")
    robot_config.data.frames, robot_config.canvas.t_current = 5, 1
    experiment = build(robot_config)
    lines = list(dry_run.describe_run(experiment))
    shown = [line.split()[0] for line in lines if "windows of 5 frames" in line]
    assert shown == ["train/one", "train/two", "val/one", "val/two"]
    drawn = {}
    draw = dry_run.draw_windows
    monkeypatch.setattr(
        dry_run, "draw_windows", lambda path, **given: (drawn.update(given), draw(path, **given))
    )
    dry_run.draw_first_batch(experiment, tmp_path / "b.png")
    assert (tmp_path / "b.png").exists()
    assert list(drawn["frames"]) == ["image_0", "image_1"]
    assert {title.split()[0] for title in drawn["titles"]} == {"train/one", "train/two"}
    assert [len(rows) for rows in drawn["actions"]] == [4] * 3
