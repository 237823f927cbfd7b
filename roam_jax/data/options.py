"""What the windows of a run hold, whatever dataset they come from."""

from __future__ import annotations

import dataclasses
import math
import os
from typing import NamedTuple

from roam_jax.contracts import TimeSpec, VectorSpec
from roam_jax.spelling import check_choice

LANGUAGE_EMBEDDING = "language_embedding"
GOALS = ("none", "last", "uniform")


@dataclasses.dataclass(frozen=True)
class WindowOptions:
    """What a window holds, the same for every member of a mixture.

    Args:
        time: frames of a window and what of it is observed.
        image_size: height and width of the frames that come out; another aspect is squeezed.
        rate: frames a second; 0 = every stored step.
        goal: none; last, the end of the episode; uniform, any step after the observed frames.
        text: "language_embedding" for the dataset's own (1, D), a file of `TextEmbeddings`, or ""
            for none (0, 0).
        skip_empty_instructions: whether episodes without an instruction are left out.

    Raises:
        ValueError: a value out of range, or no such goal.
    """

    time: TimeSpec
    image_size: tuple[int, ...]
    rate: float = 0.0
    goal: str = "none"
    text: str | os.PathLike = LANGUAGE_EMBEDDING
    skip_empty_instructions: bool = False

    def __post_init__(self):
        check_choice("data.goal", self.goal, GOALS)
        if len(self.image_size) != 2 or min(self.image_size) < 1:
            raise ValueError(
                f"data.image_size = {self.image_size}: expected (height, width), such as (256, 256)"
            )

    def stride(self, stored: float) -> int:
        """Stored steps between two frames of a window, for a dataset of `stored` steps a second.

        Raises:
            ValueError: the rate does not divide the stored one.
        """
        if not self.rate:
            return 1
        stride = max(1, round(stored / self.rate)) if 0 < self.rate < math.inf else 0
        if not stride or abs(stored / stride - self.rate) > 1e-3 * self.rate:
            near = ", ".join(f"{stored / n:g}" for n in range(1, 5))
            raise ValueError(
                f"data.rate = {self.rate:g}: the dataset has {stored:g} steps a second; expected "
                f"that divided by a whole number ({near}, ...), or 0 for its own"
            )
        return stride


class Spaces(NamedTuple):
    """Dimensions of actions and states that all members of a mixture are brought to."""

    actions: VectorSpec
    proprio: VectorSpec
