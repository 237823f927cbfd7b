"""What a canvas model is given of a batch, and what it is to predict of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from jaxtyping import Array, Bool, Float, Int, Num

from roam_jax.tasks.canvas_errors import mean_over


class Noised(NamedTuple):
    """What a model is given of a batch, and what it is to predict.

    Args:
        data: region -> values of its cells: inputs clean, diffused regions noised.
        timesteps: diffused region -> (B,) noise levels, `cells.CLEAN` where it is an input.
        targets: predicted region -> velocity or values (B, N, A), or tokens (B, N).
        counts: predicted region -> (B,) whether the row's error counts, or how much.
        masks: predicted region -> (B, N, A) which of its numbers are to be predicted; of a region
            that is not here, all are; None = of every region.
        totals: of one of several parts of a batch: predicted region -> what `counts` come to in the
            whole batch, divided by the number of parts; None = these rows are a batch.
    """

    data: dict[str, Array]
    timesteps: dict[str, Int[Array, " B"]]
    targets: dict[str, Array]
    counts: dict[str, Num[Array, " B"] | Bool[Array, " B"]]
    masks: Mapping[str, Bool[Array, "B N A"]] | None = None
    totals: Mapping[str, Float[Array, ""]] | None = None

    def mask(self, name: str) -> Bool[Array, "B N A"] | None:
        """Of a predicted region; None where all of its numbers are to be predicted."""
        return (self.masks or {}).get(name)

    def mean(self, name: str, errors: Float[Array, " B"]) -> Float[Array, ""]:
        """Mean of a predicted region's errors over the rows that count; 0 where none does."""
        total = None if self.totals is None else self.totals[name]
        return mean_over(errors, self.counts[name], total=total)
