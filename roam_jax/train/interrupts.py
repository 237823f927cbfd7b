"""SIGTERM and SIGINT as a wish that the loop grants between two steps."""

from __future__ import annotations

import signal
import threading
from types import FrameType

from absl import logging


class Interrupts:
    """Context in which the first SIGTERM or SIGINT is only noted; a second one acts at once.

    Python takes signals in its main thread only; elsewhere this does nothing.
    """

    def __init__(self):
        self.signal: signal.Signals | None = None
        self._previous: dict[signal.Signals, object] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    @property
    def exit_code(self) -> int:
        """What a shell reports of a process that the signal ended: 143 or 130."""
        return 128 + self.signal if self.signal else 0

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = signal.Signals(number)
        logging.info("%s: saving after this step", self.signal.name)
        self.__exit__()
