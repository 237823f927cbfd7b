"""How many rounds a training step runs: one more from each declared step on.

Early training with fewer rounds is cheaper, and gives later rounds a state worth refining. Source:
canvas-engineering (`curriculum.py`), whose equal phases are the steps ceil(k steps / rounds) for
k = 1..rounds - 1.
"""

from __future__ import annotations

import bisect
import dataclasses
import itertools


@dataclasses.dataclass(frozen=True)
class Curriculum:
    """Rounds of every training step.

    Args:
        rounds: number of rounds in the end.
        starts: steps from which one more round runs; () = all rounds from the start.
        steps: number of training steps.

    Raises:
        ValueError: `starts` are not rising whole numbers in 1..steps - 1, or not fewer than
            `rounds`.
    """

    rounds: int
    starts: tuple
    steps: int

    def __post_init__(self):
        if not self.starts:
            return
        if len(self.starts) >= self.rounds:
            raise self._error(f"fewer steps than loop.rounds = {self.rounds}")
        if not all(type(step) is int for step in self.starts):
            raise self._error("whole numbers of steps")
        if any(a >= b for a, b in itertools.pairwise((0, *self.starts, self.steps))):
            raise self._error(f"rising steps above 0 and below train.steps = {self.steps}")

    def _error(self, expected: str) -> ValueError:
        return ValueError(f"loop.curriculum = {self.starts}: expected {expected}")

    def rounds_at(self, step: int) -> int:
        """Rounds of the update that takes the model from `step` to `step` + 1 finished updates."""
        return self.rounds - len(self.starts) + bisect.bisect_right(self.starts, step)

    def remaining(self, step: int) -> tuple[int, ...]:
        """The different numbers of rounds from `step` on, the largest first."""
        return tuple(range(self.rounds, self.rounds_at(step) - 1, -1))
