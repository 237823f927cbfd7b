"""Histograms of the dimensions of a vector, as stored and as a model sees them."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.gridspec import GridSpecFromSubplotSpec
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from roam_jax.viz.figure import INK, PREDICTED, SERIES, picture

COLUMNS = 7
# Inches of a panel, and between a dimension's two panels.
PANEL, ROW = 1.75, 3.1
TRAIN, VAL, QUANTILE, NOTE = SERIES[0], SERIES[1], PREDICTED, "#5f6368"
# Above it a share of the numbers that lies outside of a panel is told.
TOLD = 0.0005


def draw_distributions(
    path: pathlib.Path, dimensions: Sequence[Mapping[str, Any]], *, title: str
) -> None:
    """Two panels a dimension: stored numbers above, what a model is given below.

    Args:
        path: the PNG.
        dimensions: each with "name", "unit", "kind", "q01", "q99", "clipped" (split -> share) and
            the histograms "stored" and "normalised": {"edges", "shares" (split -> share in each
            bin), "outside"}. The first split is filled, the others are lines.
        title: of the picture.
    """
    columns = min(COLUMNS, len(dimensions))
    rows = -(-len(dimensions) // columns)
    width, height = max(PANEL * columns + 0.5, 5.5), ROW * rows + 0.75
    with picture(path, width=width, height=height, layout="none") as figure:
        figure.suptitle(title, x=0.15 / width, y=1 - 0.1 / height, ha="left", va="top", fontsize=9)
        grid = figure.add_gridspec(
            rows,
            columns,
            left=0.35 / width,
            right=1 - 0.15 / width,
            top=1 - 0.62 / height,
            bottom=0.62 / height,
            hspace=0.42,
            wspace=0.12,
        )
        for number, dimension in enumerate(dimensions):
            cell = GridSpecFromSubplotSpec(2, 1, grid[divmod(number, columns)], hspace=0.42)
            panels = [figure.add_subplot(half) for half in cell]
            _draw_dimension(panels, dimension)
            if number % columns == 0:
                for panel, label in zip(panels, ("stored", "normalised"), strict=True):
                    panel.set_ylabel(label)
        first, *others = dimensions[0]["clipped"]
        handles = [
            Patch(color=TRAIN, alpha=0.75, label=first),
            *(Line2D([], [], color=VAL, label=split) for split in others),
            Line2D([], [], color=QUANTILE, linestyle="--", label=f"q01 and q99 of {first}"),
        ]
        figure.legend(handles=handles, loc="lower center", ncols=3)


def _draw_dimension(panels: Sequence[Axes], dimension: Mapping[str, Any]) -> None:
    stored, normalised = panels
    unit = f" [{dimension['unit']}]" if dimension["unit"] else ""
    stored.set_title(f"{dimension['name']}{unit}", fontweight="bold")
    _draw_histogram(stored, dimension["stored"])
    _draw_histogram(normalised, dimension["normalised"])
    ends = dimension["q01"], dimension["q99"]
    if dimension["kind"] == "gripper":
        normalised.set_title("not scaled", color=NOTE)
    elif ends[0] == ends[1]:
        normalised.set_title("never changes: 0", color=QUANTILE)
    else:
        for panel, places in ((stored, ends), (normalised, (-1, 1))):
            for place in places:
                panel.axvline(place, color=QUANTILE, linestyle="--", linewidth=0.9)
        share = next(iter(dimension["clipped"].values()))
        normalised.set_title(f"in [-1, 1], {share:.1%} clipped", color=NOTE)
    stored.set_xticks(*_ticks(dimension))
    normalised.set_xticks([0, 1] if dimension["kind"] == "gripper" else [-1, 0, 1])


def _draw_histogram(panel: Axes, histogram: Mapping[str, Any]) -> None:
    edges = np.array(histogram["edges"])
    first, *others = histogram["shares"].values()
    panel.stairs(first, edges, fill=True, color=TRAIN, alpha=0.75)
    for shares in others:
        panel.stairs(shares, edges, color=VAL, linewidth=1)
    margin = 0.06 * (edges[-1] - edges[0])
    panel.set_xlim(edges[0] - margin, edges[-1] + margin)
    panel.set_ylim(0, 1.08 * max(1e-9, *(max(shares) for shares in histogram["shares"].values())))
    panel.set_yticks([])
    panel.spines["left"].set_visible(False)
    panel.tick_params(labelsize=6.5, length=2)
    outside = next(iter(histogram["outside"].values()))
    if outside > TOLD:
        panel.text(
            0.99,
            0.97,
            f"{outside:.1%}\nfarther out",
            transform=panel.transAxes,
            ha="right",
            va="top",
            fontsize=6,
            color=INK,
        )


def _ticks(dimension: Mapping[str, Any]) -> tuple[list[float], list[str]]:
    """Both quantiles, and zero where it lies well between them."""
    low, high = dimension["q01"], dimension["q99"]
    if dimension["kind"] == "gripper":
        return [0.0, 1.0], ["0", "1"]
    if low == high:
        return [low], [f"{low:.3g}"]
    places = [low, high]
    if low + 0.3 * (high - low) < 0 < high - 0.3 * (high - low):
        places.insert(1, 0.0)
    return places, [f"{place:.2g}" for place in places]
