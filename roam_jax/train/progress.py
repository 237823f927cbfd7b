"""Progress that one can read: a bar on a terminal, a line now and then in a log file."""

from __future__ import annotations

import sys
import time

import tqdm
from absl import logging

LINE_EVERY_S = 30.0


class Progress:
    """Shows step, loss, seconds a step and the time left on stderr.

    Args:
        start: finished steps.
        steps: steps of the whole run.
    """

    def __init__(self, start: int, steps: int):
        self._start, self._steps, self._step = start, steps, start
        self._loss = float("nan")
        self._began = self._last_line = time.monotonic()
        self._seconds = 0.0
        self.restart_lap()
        terminal = sys.stderr.isatty()
        self._bar = tqdm.tqdm(total=steps, initial=start, unit="step") if terminal else None

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def advance(self) -> None:
        """Count one finished step."""
        self._step += 1
        self._lap_steps += 1
        if self._bar is not None:
            self._bar.set_postfix_str(f"loss {self._loss:.4f}", refresh=False)
            self._bar.update()
        elif time.monotonic() - self._last_line > LINE_EVERY_S:
            self._last_line = time.monotonic()
            a_step = (self._last_line - self._began) / (self._step - self._start)
            left = tqdm.tqdm.format_interval((self._steps - self._step) * a_step)
            text = "step %d of %d, loss %.4f, %.3g s a step, %s left"
            logging.info(text, self._step, self._steps, self._loss, a_step, left)

    def go_back(self, step: int) -> None:
        """Count on from an earlier step, which the run repeats from a checkpoint."""
        # Speed and time left are of the steps that were computed, repeated ones among them.
        self._start -= self._step - step
        self._step = step
        self._seconds += time.monotonic() - self._lap_began
        self.restart_lap()
        if self._bar is not None:
            self._bar.n = step
            self._bar.refresh()

    @property
    def lap_steps(self) -> int:
        """Finished steps since the last lap began."""
        return self._lap_steps

    def lap(self, loss: float) -> float:
        """Seconds a step since the last lap began; `loss` is shown from now on."""
        self._loss = loss
        seconds = time.monotonic() - self._lap_began
        self._seconds += seconds
        return seconds / max(1, self._lap_steps)

    @property
    def seconds(self) -> float:
        """Seconds of all laps together."""
        return self._seconds

    def restart_lap(self) -> None:
        """Leave what was done since the last step (evaluation, saving) out of the next lap."""
        self._lap_began, self._lap_steps = time.monotonic(), 0
