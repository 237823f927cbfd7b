"""Signals that ask a run to end, as a wish that the loop grants between two steps."""

from __future__ import annotations

import signal
import threading
from types import FrameType

from absl import logging

# EX_TEMPFAIL of sysexits.h: "saved, start me again"; schedulers are told to requeue on it.
REQUEUE = 75
# SLURM sends SIGUSR1 some time before a job's limit, if asked to, and SIGTERM at the limit.
WARNING = signal.SIGUSR1
ENDING = (signal.SIGTERM, signal.SIGINT)


class Interrupts:
    """Context in which SIGTERM, SIGINT and SIGUSR1 are only noted.

    After a SIGTERM or SIGINT was noted, each further signal acts at once. SIGUSR1 is a warning:
    a SIGTERM or SIGINT that comes after it is noted as well, and SIGUSR1 again changes nothing.
    Python takes signals in its main thread only; elsewhere this does nothing.
    """

    def __init__(self):
        self.signal: signal.Signals | None = None
        self._previous: dict[signal.Signals, object] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for number in (*ENDING, WARNING):
                # None: a handler that was not set by Python, which cannot be put back.
                self._previous[number] = signal.signal(number, self._note) or signal.SIG_DFL
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    @property
    def requested(self) -> int:
        """Number of the signal that asks for the end; 0 = none."""
        return int(self.signal or 0)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = signal.Signals(number)
        logging.info("%s: saving after this step", self.signal.name)
        if self.signal in ENDING:
            self.__exit__()
