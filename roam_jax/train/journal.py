"""When a run began, went on, stopped and ended: WORKDIR/journal.jsonl.

A run that a scheduler requeues has many starts; the metrics, in which each step stands once, do not
show them.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
from absl import logging

from roam_jax.files import named_errors


class Journal:
    """Adds lines to the journal of one run.

    Args:
        path: the file; None = nothing is written, in the other processes of a cluster.
    """

    def __init__(self, path: pathlib.Path | None):
        self._path = path

    def note(self, event: str, step: int, facts: Mapping[str, Any] | None = None) -> None:
        """Add a line; it is in the file when this returns.

        Args:
            event: such as "started", "resumed", "stopped", "finished".
            step: finished updates.
            facts: what else is to be known, for JSON, such as {"signal": "SIGTERM"}.
        """
        if self._path is None:
            return
        devices = jax.devices()
        line = {
            "time": time.time(),
            "event": event,
            "step": step,
            "host": socket.gethostname(),
            "processes": jax.process_count(),
            "devices": f"{len(devices)} x {devices[0].device_kind}",
            **(facts or {}),
        }
        append_line(self._path, line)

    @contextlib.contextmanager
    def running(self, start: int, *, done: Callable[[], int]) -> Iterator[None]:
        """A context of a run: "started" or "resumed", then how it ended.

        It ends as "finished", "stopped" (with the exit code, by which a scheduler knows to start it
        again) or "failed" (with the error).

        Args:
            start: finished updates at its begin.
            done: tells the finished updates, or those that are saved, at its end.
        """
        self.note("resumed" if start else "started", start)
        try:
            yield
        except SystemExit as stop:
            self._note_end("stopped", done(), {"exit_code": stop.code})
            raise
        except BaseException as error:
            self._note_end("failed", done(), {"error": f"{type(error).__name__}: {error}"[:500]})
            raise
        self._note_end("finished", done(), {})

    def _note_end(self, event: str, step: int, facts: Mapping[str, Any]) -> None:
        """A full disk does not hide how the run ended: its error or its exit code."""
        try:
            self.note(event, step, facts)
        except OSError as error:
            logging.error("%s: not noted that the run has %s (%s)", self._path, event, error)


def append_line(path: pathlib.Path, facts: Mapping[str, Any]) -> None:
    """Adds a JSON object as a line of a file; it is in the file when this returns.

    Raises:
        OSError: the disk is full; names the file.
    """
    with named_errors(path), path.open("ab+") as file:
        # A line that a kill has cut off would take this one with it.
        cut_off = file.tell() and file.seek(-1, os.SEEK_END) and file.read() != b"\n"
        file.write(b"\n" * bool(cut_off) + json.dumps(facts).encode() + b"\n")


def read_lines(path: pathlib.Path) -> list[dict[str, Any]]:
    """Whole lines of a file with one JSON object a line, in order; none where there is no file.

    What a killed run left half-written is skipped wherever it stands, as later starts add to it.
    """
    if not path.exists():
        return []
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            read = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(read, dict):
            found.append(read)
    return found
