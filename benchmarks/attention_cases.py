"""Canvases and topologies that `attention.py` measures, and figures beside what was asked."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping

from against_torch import Timing

from roam_jax.canvas.layout import CanvasLayout
from roam_jax.canvas.topologies import central_thought
from roam_jax.canvas.topology import CanvasTopology

HEADS, HEAD_WIDTH = 8, 64
WIDTH = HEADS * HEAD_WIDTH
COLUMNS = 16
# Rows of 16 cells in every frame; 512 cells a frame.
ROBOT = {"visual": 20, "proprio": 4, "action": 4, "reward": 4}
HUB = {"visual": 20, "proprio": 4, "action": 4, "thought": 4}
SENSES = {"front": 10, "wrist": 7, "depth": 5, "touch": 4, "proprio": 3, "action": 2, "thought": 1}
CELLS_A_FRAME = COLUMNS * sum(ROBOT.values())


@dataclasses.dataclass(frozen=True)
class Case:
    """A topology on a layout, under a name that is printed."""

    name: str
    layout: CanvasLayout
    topology: CanvasTopology


@dataclasses.dataclass(frozen=True)
class Figure:
    """A measured value beside what was asked.

    Args:
        name: what was measured.
        value: the median, or the only one.
        asked: the bound.
        at_least: whether more is better.
        unit: "x" is times faster, or slower, than the other side.
    """

    name: str
    value: float
    asked: float
    at_least: bool
    unit: str

    @property
    def met(self) -> bool:
        """Whether the value keeps the bound."""
        return self.value >= self.asked if self.at_least else self.value <= self.asked

    def __str__(self):
        bound = "at least" if self.at_least else "at most"
        verdict = "met" if self.met else "MISSED"
        value = f"{_short(self.value)} {self.unit}"
        return f"{self.name:<60} {value:>9} (asked: {bound} {self.asked:,g}): {verdict}"


def stacked_layout(rows: Mapping[str, int], frames: int, *, columns: int = COLUMNS) -> CanvasLayout:
    """Regions one below the other, in every frame.

    Args:
        rows: of each region.
        frames: T of the canvas.
        columns: W of the canvas.
    """
    regions, row = {}, 0
    for name, count in rows.items():
        regions[name] = (0, frames, row, row + count, 0, columns)
        row += count
    return CanvasLayout(frames, row, columns, WIDTH, regions)


def dense_case(cells: int) -> Case:
    """Every region reads every region."""
    layout = stacked_layout(ROBOT, cells // CELLS_A_FRAME)
    return Case("dense", layout, CanvasTopology.dense(list(layout.regions)))


def causal_case(cells: int) -> Case:
    """`causal_temporal`: 8.6 % of the pairs of 8,192 cells, 16.4 % of those of 4,096."""
    layout = stacked_layout(ROBOT, cells // CELLS_A_FRAME)
    topology = CanvasTopology.causal_temporal(list(layout.regions))
    return Case("causal_temporal", layout, topology)


def thought_case(cells: int) -> Case:
    """`central_thought` of six streams: 26.0 % of all pairs."""
    layout = stacked_layout(SENSES, cells // CELLS_A_FRAME)
    streams = [name for name in layout.regions if name != "thought"]
    topology = central_thought(layout, streams=streams, thought="thought")
    return Case("central_thought", layout, topology)


def hub_case(cells: int) -> Case:
    """`hub_spoke` around a small region, with one large spoke: 65.6 % of all pairs."""
    layout = stacked_layout(HUB, cells // CELLS_A_FRAME)
    spokes = [name for name in layout.regions if name != "thought"]
    return Case("hub_spoke", layout, CanvasTopology.hub_spoke("thought", spokes))


def ratio(slower: Timing, faster: Timing) -> float:
    """Median ratio of neighbouring runs."""
    pairs = zip(slower.seconds, faster.seconds, strict=True)
    return statistics.median(a / b for a, b in pairs)


def milliseconds(timing: Timing) -> str:
    """Median [minimum, maximum]."""
    middle, low, high = (
        _short(1e3 * seconds)
        for seconds in (timing.median, min(timing.seconds), max(timing.seconds))
    )
    return f"{middle} [{low}, {high}] ms"


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
