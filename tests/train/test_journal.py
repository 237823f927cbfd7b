from __future__ import annotations

import json
import socket
import time

import jax
import pytest

from roam_jax.train.journal import Journal, read_lines


def test_a_line_says_when_where_and_what(tmp_path):
    path = tmp_path / "journal.jsonl"
    journal, began = Journal(path), time.time()
    journal.note("started", 0)
    journal.note("stopped", 7, {"signal": "SIGTERM"})
    first, second = read_lines(path)
    assert began <= first["time"] <= second["time"] <= time.time()
    assert (first["event"], first["step"], first["host"]) == ("started", 0, socket.gethostname())
    assert first["devices"] == f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    assert (second["event"], second["step"], second["signal"]) == ("stopped", 7, "SIGTERM")


def test_a_half_line_of_a_killed_run_does_not_hide_what_follows(tmp_path):
    path = tmp_path / "journal.jsonl"
    Journal(path).note("started", 0)
    with path.open("a") as file:
        file.write('{"time": 1.0, "ev')
    Journal(path).note("resumed", 4)
    Journal(path).note("finished", 9)
    assert [line["event"] for line in read_lines(path)] == ["started", "resumed", "finished"]


def test_lines_that_are_no_objects_are_skipped(tmp_path):
    path = tmp_path / "lines.jsonl"
    path.write_text('3\n{"step": 1}\n\n[]\n' + json.dumps({"step": 2}))
    assert read_lines(path) == [{"step": 1}, {"step": 2}]
    assert read_lines(tmp_path / "none.jsonl") == []


def test_a_full_disk_does_not_hide_how_a_run_ended(tmp_path, caplog):
    path = tmp_path / "journal.jsonl"
    with pytest.raises(SystemExit), Journal(path).running(0, done=lambda: 9):
        path.unlink()
        path.symlink_to("/dev/full")
        raise SystemExit(75)
    with pytest.raises(OSError, match=f"No space left on device: '{path}'"):
        Journal(path).note("started", 0)
    assert f"{path}: not noted that the run has stopped" in caplog.text


def test_other_processes_of_a_cluster_write_nothing(tmp_path):
    Journal(None).note("started", 0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("start", "error", "expected"),
    [
        (0, None, [("started", 0), ("finished", 9)]),
        (4, SystemExit(75), [("resumed", 4), ("stopped", 9)]),
        (4, OSError(28, "No space left"), [("resumed", 4), ("failed", 9)]),
    ],
)
def test_how_a_run_ends(tmp_path, start, error, expected):
    path = tmp_path / "journal.jsonl"

    def run():
        with Journal(path).running(start, done=lambda: 9):
            if error is not None:
                raise error

    if error is None:
        run()
    else:
        with pytest.raises(type(error)):
            run()
    lines = read_lines(path)
    assert [(line["event"], line["step"]) for line in lines] == expected
    facts = {
        "SystemExit": {"exit_code": 75},
        "OSError": {"error": "OSError: [Errno 28] No space left"},
    }
    for name, value in facts.get(type(error).__name__, {}).items():
        assert lines[-1][name] == value
