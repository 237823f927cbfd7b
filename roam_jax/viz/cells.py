"""An axis of a picture along the sequence of cells, in at most so many pixels.

A cell belongs to the pixel in which its middle lies, so that counts over pixels are counts over
cells, and a picture of N x N pairs needs no array of that size.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools

import numpy as np
from jaxtyping import Float, Int, Shaped
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from roam_jax.canvas.layout import CanvasLayout
from roam_jax.canvas.topology import segment_keys
from roam_jax.viz.figure import FAINT, INK, add_axes, text_size

PIXELS = 512
# Inches: the plane's side, what a name needs along an axis, the lines from names to regions; around
# all, and the line of the title.
SIDE, LINE, LEADER = 4.2, 0.15, 0.16
GAP, TITLE = 0.2, 0.32


@dataclasses.dataclass(frozen=True, eq=False)
class CellAxis:
    """Cells of a sequence along one side of a picture.

    Args:
        layout: the canvas.
        segments: of each cell, in layout order.
    """

    layout: CanvasLayout
    segments: Int[np.ndarray, " N"]

    @property
    def cells(self) -> int:
        """Length of the sequence."""
        return len(self.segments)

    @functools.cached_property
    def pixel(self) -> Int[np.ndarray, " N"]:
        """Of each cell."""
        pixels = min(self.cells, PIXELS)
        return (2 * np.arange(self.cells) + 1) * pixels // (2 * self.cells)

    @functools.cached_property
    def sizes(self) -> Int[np.ndarray, " P"]:
        """Cells of each pixel."""
        return np.bincount(self.pixel)

    @functools.cached_property
    def by_segment(self) -> Float[np.ndarray, "P S"]:
        """Share of each pixel's cells that are of a segment."""
        count = len(segment_keys(self.layout))
        places = np.bincount(self.pixel * count + self.segments, minlength=len(self.sizes) * count)
        return places.reshape(len(self.sizes), count) / self.sizes[:, None]

    def shares(self, cells: Int[np.ndarray, " n"]) -> Float[np.ndarray, " P"]:
        """Share of each pixel's cells that are among the given ones, which may repeat."""
        marked = np.zeros(self.cells, bool)
        marked[cells] = True
        return np.bincount(self.pixel, marked, len(self.sizes)) / self.sizes

    @functools.cached_property
    def regions(self) -> dict[str, tuple[int, int]]:
        """Region -> first cell and the one after its last, of the regions that have some."""
        names = list(self.layout.regions)
        owner = np.array([names.index(name) for name, _ in segment_keys(self.layout)])
        present, starts = np.unique(owner[self.segments], return_index=True)
        bounds = itertools.pairwise([*starts.tolist(), self.cells])
        return {names[i]: pair for i, pair in zip(present, bounds, strict=True)}

    @property
    def name_width(self) -> float:
        """Of the longest region's name with the line to it, in inches."""
        names = [text_size(name)[0] for name in self.regions]
        return max(names, default=0.0) + LEADER + 0.1

    @property
    def side(self) -> float:
        """Inches that the plane needs along this axis."""
        return max(SIDE, LINE * len(self.regions))


def pair_shares(
    rows: CellAxis, columns: CellAxis, pairs: Shaped[np.ndarray, "S S"]
) -> Float[np.ndarray, "P Q"]:
    """Share of each pixel's pairs of cells whose segments are among the given pairs."""
    return rows.by_segment @ pairs @ columns.by_segment.T


def add_rows(figure: Figure, rows: CellAxis, *, left: float, bottom: float, width: float) -> Axes:
    """Axes with a sequence from top to bottom: regions' borders, and their names at the left.

    Args:
        figure: to draw on.
        rows: the sequence.
        left, bottom: corner of the axes, in inches; names lie outside.
        width: of the axes, in inches.
    """
    axes = add_axes(figure, left, bottom, width, rows.side)
    axes.set_ylim(rows.cells, 0)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(True)
    for start, _ in rows.regions.values():
        axes.axhline(start, color=FAINT, linewidth=0.5)
    for name, place, end in _names(rows):
        _name(axes, name, (-LEADER / width, 1 - place), (0.0, 1 - end), turned=False)
    return axes


def add_columns(axes: Axes, columns: CellAxis, *, height: float) -> None:
    """A sequence from left to right: regions' borders, and their names above.

    Args:
        axes: from `add_rows`.
        columns: the sequence.
        height: of the axes, in inches.
    """
    axes.set_xlim(0, columns.cells)
    for start, _ in columns.regions.values():
        axes.axvline(start, color=FAINT, linewidth=0.5)
    for name, place, end in _names(columns):
        _name(axes, name, (place, 1 + LEADER / height), (end, 1.0), turned=True)


def _names(axis: CellAxis) -> list[tuple[str, float, float]]:
    """(name, where it is written, middle of its region), in shares of the side."""
    middles = [(start + end) / 2 / axis.cells for start, end in axis.regions.values()]
    places = spread(middles, gap=LINE / axis.side)
    return list(zip(axis.regions, places, middles, strict=True))


def _name(
    axes: Axes, name: str, place: tuple[float, float], end: tuple[float, float], *, turned: bool
) -> None:
    """A region's name beside the plane and a thin line from it."""
    axes.add_artist(
        Line2D(
            *zip(place, end, strict=True), transform=axes.transAxes, color=FAINT, linewidth=0.5,
            clip_on=False,
        )
    )  # fmt: skip
    axes.annotate(
        name, place, (0, 2) if turned else (-2, 0), xycoords="axes fraction",
        textcoords="offset points", rotation=90 if turned else 0, color=INK,
        ha="center" if turned else "right", va="bottom" if turned else "center",
    )  # fmt: skip


def spread(places: list[float], *, gap: float) -> list[float]:
    """Rising places moved apart, each as little as may be, all within a gap's half of 0 and 1.

    Args:
        places: of 0 to 1.
        gap: the smallest distance; as many gaps as places fit into 1.
    """
    # Places less their number's gaps may be equal but not fall: blocks that fall share their mean.
    blocks: list[tuple[float, int]] = []
    for number, place in enumerate(places):
        mean, count = place - number * gap, 1
        while blocks and blocks[-1][0] > mean:
            before, members = blocks.pop()
            mean, count = (mean * count + before * members) / (count + members), count + members
        blocks.append((mean, count))
    highest = 1 - gap / 2 - (len(places) - 1) * gap
    level = [min(max(mean, gap / 2), highest) for mean, count in blocks for _ in range(count)]
    return [base + number * gap for number, base in enumerate(level)]
