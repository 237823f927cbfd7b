"""When a run began, went on, stopped and ended: WORKDIR/journal.jsonl.

A run that a scheduler requeues has many starts; the metrics, in which each step stands once, do not
show them.
"""

from __future__ import annotations

import contextlib
import json
import pathlib
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax


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
        with self._path.open("a", encoding="utf-8") as file:
            # A line that a kill has cut off would take this one with it.
            file.write(("\n" if self._cut_off() else "") + json.dumps(line) + "\n")

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
            self.note("stopped", done(), {"exit_code": stop.code})
            raise
        except BaseException as error:
            self.note("failed", done(), {"error": f"{type(error).__name__}: {error}"[:500]})
            raise
        self.note("finished", done())

    def _cut_off(self) -> bool:
        whole = self._path.read_bytes()
        return bool(whole) and not whole.endswith(b"\n")


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
