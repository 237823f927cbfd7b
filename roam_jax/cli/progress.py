"""How far a long command is: a bar on a terminal, a line now and then in a log file."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import tqdm
from absl import logging

LINE_EVERY_S = 30.0


class Progress:
    """Counts what is done.

    Args:
        total: of all that is to be done.
        done: what a line begins with, such as "packed".
        unit: of the bar.
        shown: a count as text in a line.
        things: what is counted, at the end of that.
        scaled: whether the bar shows thousands, millions and so on.
    """

    def __init__(
        self,
        total: int,
        *,
        done: str,
        unit: str,
        shown: Callable[[int], str] = str,
        things: str = "",
        scaled: bool = False,
    ):
        self.done, self._total = 0, total
        self._line = f"{done} %s of %s{' ' * bool(things)}{things}, %s left"
        self._shown = shown
        self._began = self._last_line = time.monotonic()
        self._bar = tqdm.tqdm(
            total=total, unit=unit, unit_scale=scaled, disable=not sys.stderr.isatty()
        )

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def advance(self, count: int) -> None:
        """Counts what was done since."""
        self.done += count
        self._bar.update(count)
        now = time.monotonic()
        if self._bar.disable and now - self._last_line > LINE_EVERY_S:
            self._last_line = now
            left = (now - self._began) / self.done * (self._total - self.done)
            logging.info(
                self._line,
                self._shown(self.done),
                self._shown(self._total),
                tqdm.tqdm.format_interval(max(0.0, left)),
            )
