"""A trace of some training steps by JAX's profiler, as the config says or on a signal.

The trace shows what host and devices do at every moment: `tensorboard --logdir WORKDIR/profile`
(with tensorboard-plugin-profile), xprof, or Perfetto reads it.
"""

from __future__ import annotations

import contextlib
import pathlib
import re
import signal
import threading
from types import FrameType

import jax
from absl import logging

# Steps that are traced when a signal asks for a trace.
STEPS = 3
SIGNAL = signal.SIGUSR2


def parse_steps(spec: str) -> range:
    """Steps of `train.profile`: "100:103" is what is computed after 100, 101 and 102 updates.

    Raises:
        ValueError: anything else, or no step in it.
    """
    if not spec:
        return range(0)
    found = re.fullmatch(r"(\d+):(\d+)", spec)
    steps = range(int(found[1]), int(found[2])) if found else range(0)
    if not steps:
        raise ValueError(
            f"train.profile = {spec!r}: expected steps FROM:TO with FROM < TO, such as 100:103 for "
            "three of them, or '' for none"
        )
    return steps


class Profiler:
    """Starts and stops traces between steps; SIGUSR2 asks for one of the next three steps.

    Python takes signals in its main thread only; elsewhere the config alone is heeded.

    Args:
        spec: `train.profile`.
        folder: where traces are written, WORKDIR/profile; made with the first one.
        start: finished steps; those of `spec` before it are past.

    Raises:
        ValueError: as `parse_steps`.
    """

    def __init__(self, spec: str, folder: pathlib.Path, *, start: int):
        self._wanted, self._folder = parse_steps(spec), folder
        if self._wanted and start >= self._wanted.stop:
            logging.info("train.profile = %r: all of these steps are done", spec)
        self._asked = False
        self._last: int | None = None  # step at which the running trace ends
        self._step = contextlib.ExitStack()
        self._previous: object = None
        self._listens = threading.current_thread() is threading.main_thread()
        if self._listens:
            self._previous = signal.signal(SIGNAL, self._note) or signal.SIG_DFL

    def __enter__(self) -> Profiler:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def before_step(self, step: int) -> None:
        """Call ahead of every step, when the one before it is done on the devices.

        Args:
            step: finished updates.
        """
        self._step.close()
        if self._last is not None and step >= self._last:
            self._stop()
        if self._last is None:
            if step in self._wanted:
                self._start(step, self._wanted.stop)
            elif self._asked:
                self._start(step, step + STEPS)
            self._asked = False
        if self._last is not None:
            self._step.enter_context(jax.profiler.StepTraceAnnotation("train", step_num=step))

    def close(self) -> None:
        """End a trace that is running, and stop listening."""
        self._step.close()
        if self._last is not None:
            self._stop()
        if self._listens:
            signal.signal(SIGNAL, self._previous)
            self._listens = False

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._asked = True

    def _start(self, step: int, last: int) -> None:
        logging.info("tracing steps %d to %d", step, last - 1)
        self._folder.mkdir(parents=True, exist_ok=True)
        jax.profiler.start_trace(self._folder)
        self._last = last

    def _stop(self) -> None:
        jax.profiler.stop_trace()
        self._last = None
        logging.info("trace written to %s", self._folder)
