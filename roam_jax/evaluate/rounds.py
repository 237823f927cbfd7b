"""The round measures of the looped blocks, for a report.

The gated step says how far a round moved the state; the ungated residual and the cosine compare
the block's output with its input whatever the gate does with it. Only the residual is called
convergence: under the gate `identity` the step is 0 by construction at the start.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from roam_jax.model.looped import check_rounds

Measures = dict[str, dict[str, Float[np.ndarray, "windows depth rounds"]]]


def choose_rounds(
    wanted: tuple[int, ...] | None, *, trained: int, extrapolate: str | None
) -> tuple[int, ...]:
    """The numbers of rounds to measure, in order.

    Args:
        wanted: numbers that were asked for; None = 1 to the trained number.
        trained: `loop.rounds`.
        extrapolate: "last" allows more.

    Raises:
        ValueError: a number that the weights were not trained for, without `extrapolate`; or no
            such extrapolation.
    """
    wanted = wanted or tuple(range(1, trained + 1))
    for number in wanted:
        check_rounds(number, trained=trained, extrapolate=extrapolate)
    return tuple(sorted(set(wanted)))


def round_title(number: str, figures: Mapping[str, Any], *, mark: str = " (extrapolated)") -> str:
    """ "rounds = 4", marked where the weights were trained with fewer.

    Args:
        number: the number of rounds, as a report's key.
        figures: a report's figures with that number of rounds.
        mark: what is appended.
    """
    return f"rounds = {number}{mark if figures['extrapolated'] else ''}"


def round_figures(measures: Measures) -> dict[str, Any]:
    """Means over windows: measure -> stream -> one list a round with a number for each block."""
    return {
        measure: {
            stream: values.mean(axis=0, dtype=np.float64).T.tolist()
            for stream, values in streams.items()
        }
        for measure, streams in measures.items()
    }
