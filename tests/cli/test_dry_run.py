"""`train.py --dry_run`: parameters, data and batch of a run, and a picture; nothing is trained."""

import train as train_command
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
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["first_batch.png"]
