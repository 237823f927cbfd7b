"""The part of a report on rounds that loops of every kind have."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

MEASURES = {
    "residual": "residual",
    "cosine": "cosine",
    "gated_step": "gated step",
    "running": "running",
}


def measure_lines(title: str, measures: Mapping[str, Any]) -> Iterator[str]:
    """Lines of the round measures by region; in files of earlier versions by stream."""
    yield f"  round measures with {title}, mean over blocks, by round"
    found = {MEASURES[name]: measures[name] for name in MEASURES if name in measures}
    widths = [len(region) for regions in found.values() for region in regions]
    width = max(5, *widths) + 1 if widths else 0
    for measure, regions in found.items():
        for region, values in regions.items():
            means = "".join(f"{mean:>10.4f}" for mean in np.mean(values, axis=1))
            yield f"    {measure:<11}{region:<{width}}{means}"


def rounds_used_lines(rows: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
    """Rounds that cells run, a column for each region; all rows have the same."""
    widths = {region: max(9, len(region) + 2) for region in next(iter(rows.values()))}
    yield "  rounds used, mean over cells and blocks"
    yield f"    {'':<17}" + "".join(f"{name:>{width}}" for name, width in widths.items())
    for title, used in rows.items():
        values = "".join(f"{used[name]:>{width}.2f}" for name, width in widths.items())
        yield f"    {title:<17}{values}"
