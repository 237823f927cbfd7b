"""Steps are compiled ahead of the first batch, one for each number of rounds that is to come."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Mapping
from typing import Any

import jax
from absl import logging


@dataclasses.dataclass(frozen=True)
class Compiled:
    """Compiled steps, which refuse other shapes and never recompile.

    Args:
        steps: by number of rounds.
        seconds: that compiling them took.
    """

    steps: Mapping[int, jax.stages.Compiled]
    seconds: float


def compile_steps(
    step: Any, *args: Any, rounds: Iterable[int], what: str = "the training step"
) -> Compiled:
    """Compiles a jitted step for these numbers of rounds, in this order.

    Args:
        step: takes `args` and a static `rounds`.
        args: arrays or shapes with shardings.
        rounds: the largest first, so that what does not fit in memory fails before any step.
        what: for the log.
    """
    began, steps = time.perf_counter(), {}
    for number in rounds:
        logging.info("compiling %s (rounds = %d)", what, number)
        start = time.perf_counter()
        steps[number] = step.lower(*args, rounds=number).compile()
        logging.info("compiled in %.1f s", time.perf_counter() - start)
    return Compiled(steps, time.perf_counter() - began)
