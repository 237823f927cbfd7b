"""One run at a time in a workdir.

A second start while the first still runs would take its half-written checkpoints for what a kill
has left. The lock is the operating system's: it ends with its process, however that ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pathlib
import socket
import time
from collections.abc import Iterator

from absl import logging

FILE = ".lock"
# A run that a scheduler moves may still be saving where it was.
WAIT_SECONDS = 60.0
POLL_SECONDS = 0.2


@contextlib.contextmanager
def only_run(folder: pathlib.Path, *, seconds: float = WAIT_SECONDS) -> Iterator[None]:
    """A context in which no other process trains in a folder.

    Args:
        folder: of the run, or of the runs of many seeds; made if needed, and removed again where
            nothing was written into it.
        seconds: how long to wait for a process that does.

    Raises:
        ValueError: another one still trains there; names its host and process.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / FILE).open("a+", encoding="utf-8") as file:
        if _locked(file.fileno(), folder, seconds):
            file.truncate(0)
            file.write(json.dumps({"host": socket.gethostname(), "pid": os.getpid()}) + "\n")
            file.flush()
        try:
            yield
        finally:
            if [path.name for path in folder.iterdir()] == [FILE]:
                (folder / FILE).unlink()
                folder.rmdir()


def _locked(descriptor: int, folder: pathlib.Path, seconds: float) -> bool:
    """Waits for the lock; False on a file system that has none."""
    deadline, told = time.monotonic() + seconds, False
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError as error:
            holder = (folder / FILE).read_text(encoding="utf-8").strip() or "unknown"
            if time.monotonic() >= deadline:
                raise ValueError(
                    f"--workdir {folder}: another process trains there ({holder}), and did not end "
                    f"within {seconds:g} s; expected another folder, or to wait for it"
                ) from error
            if not told:
                logging.warning(
                    "%s: waiting for the process that trains there (%s)", folder, holder
                )
                told = True
            time.sleep(POLL_SECONDS)
        except OSError as error:
            logging.warning("%s: this file system has no locks (%s)", folder, error)
            return False
