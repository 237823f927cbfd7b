"""Exporting what a run trained: only where a diffusers form exists."""

import json

from convert.__main__ import main


def test_a_graft_is_refused(tmp_path, robot_config, capsys):
    workdir = tmp_path / "run"
    workdir.mkdir()
    saved = {"config": robot_config.to_dict(), "provenance": {}}
    (workdir / "config.json").write_text(json.dumps(saved))
    assert main(["export", "--workdir", str(workdir), "--dst", str(tmp_path / "out")]) != 0
    assert "train.task = 'graft' has no diffusers form" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_no_run_is_refused(tmp_path, capsys):
    assert main(["export", "--workdir", str(tmp_path), "--dst", str(tmp_path / "out")]) != 0
    assert str(tmp_path) in capsys.readouterr().err
