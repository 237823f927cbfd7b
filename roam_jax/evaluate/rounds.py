"""The round measures of the looped blocks, for a report.

The gated step says how far a round moved the state; the ungated residual and the cosine compare
the block's output with its input whatever the gate does with it. Only the residual is called
convergence: under the gate `identity` the step is 0 by construction at the start. Where cells may
stop, how much of them still runs when a round begins tells how many rounds they use.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from roam_jax.model.looped import check_rounds
from roam_jax.model.round_measures import RUNNING

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
    """Means over windows.

    Returns:
        {"measures": measure -> region -> one list a round with a number for each block} and, where
        cells may stop, {"rounds_used": region -> mean over windows and blocks of the number of
        rounds that a cell runs}.
    """
    means = {
        measure: {
            region: values.mean(axis=0, dtype=np.float64).T for region, values in regions.items()
        }
        for measure, regions in measures.items()
    }
    figures = {
        "measures": {
            measure: {region: values.tolist() for region, values in regions.items()}
            for measure, regions in means.items()
        }
    }
    if RUNNING in means:
        figures["rounds_used"] = {
            region: float(values.sum(axis=0).mean()) for region, values in means[RUNNING].items()
        }
    return figures
