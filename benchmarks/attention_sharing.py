"""How attention's time follows the pairs that a topology allows, for `attention.py`."""

from __future__ import annotations

import dataclasses
import pathlib
import time
from collections.abc import Callable, Sequence

import numpy as np
from against_torch import Timing, alternate
from attention_cases import Case, Figure, milliseconds, stacked_layout
from attention_sides import BOTH, FORWARD, OurAttention, TorchAttention, draw_heads
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, LogLocator, NullLocator

from roam_jax.canvas.plan import compile_plan
from roam_jax.canvas.random_topologies import random_matched
from roam_jax.canvas.temporal_topologies import local_window
from roam_jax.viz.figure import FAINT, SERIES, picture

COLUMNS = 16
CELLS = 8192
# One region; few cells a frame make small shares, more of them fewer pieces.
SHARE_ROWS, SIZE_ROWS = 4, 8
# Real frames to either side, of 128 in all.
WINDOWS = (0, 1, 3, 6, 12, 20, 32, 64, 127)
# Random pairs have many windows of keys, which take long to compile.
RANDOM_WINDOWS = (1, 6, 32)
# The same for all sizes: a cell in the middle reads 5 frames of 128 cells.
FIXED_WINDOW = 2
SIZES = tuple(512 * 2**i for i in range(7))
# Above it torch's dense attention takes too long to be repeated.
TORCH_CELLS = 8192
SHARE_CHART, SIZE_CHART = "attention_share.png", "attention_size.png"


@dataclasses.dataclass(frozen=True)
class Point:
    """Timings of one case.

    Args:
        place: on the chart's first axis: share of pairs, or cells.
        taken: pass -> timing.
    """

    place: float
    taken: dict[str, Timing]


def measure_shares(*, repeats: int, charts: pathlib.Path | None) -> list[Figure]:
    """Times, their slopes, and charts where there is a folder for them; nothing is asked."""
    [dense] = measure_torch([CELLS], repeats=repeats)
    shares = {
        name: measure([make(frames) for frames in windows], by_share, repeats=repeats)
        for name, make, windows in (
            ("local windows", window_case, WINDOWS),
            ("random pairs", random_case, RANDOM_WINDOWS),
        )
    }
    sizes = measure([size_case(cells) for cells in SIZES], by_cells, repeats=repeats)
    torch_sizes = measure_torch([n for n in SIZES if n <= TORCH_CELLS], repeats=repeats)
    if charts is not None:
        draw_shares(charts / SHARE_CHART, shares, dense)
        draw_sizes(charts / SIZE_CHART, sizes, torch_sizes)
    return []


def window_case(frames: int) -> Case:
    """Every cell reads so many frames to either side."""
    layout = stacked_layout({"visual": SHARE_ROWS}, CELLS // (SHARE_ROWS * COLUMNS))
    return Case(f"{frames} frames to either side", layout, local_window(layout, frames=frames))


def random_case(frames: int) -> Case:
    """As many pairs as the window has, at random but for each frame's own."""
    case = window_case(frames)
    topology = random_matched(case.topology, case.layout, seed=0)
    return dataclasses.replace(case, name=f"random, as many as {case.name}", topology=topology)


def size_case(cells: int) -> Case:
    """A window that stays as it is while the canvas grows."""
    layout = stacked_layout({"visual": SIZE_ROWS}, cells // (SIZE_ROWS * COLUMNS))
    return Case(f"{cells:,} cells", layout, local_window(layout, frames=FIXED_WINDOW))


def by_share(pairs: int, cells: int) -> float:
    """Share of pairs that is allowed."""
    return pairs / cells**2


def by_cells(pairs: int, cells: int) -> float:
    """Number of cells."""
    return cells


def measure(
    cases: Sequence[Case], place: Callable[[int, int], float], *, repeats: int
) -> list[Point]:
    """Times of planned attention, case by case; prints the slopes of their logarithms."""
    points = []
    for case in cases:
        plan = compile_plan(case.layout, case.topology)
        began = time.perf_counter()
        ours = OurAttention(plan, draw_heads(plan.query_cells))
        compiling = time.perf_counter() - began
        taken = timed(ours, repeats=repeats)
        cells = plan.query_cells
        print(
            f"  {case.name}: {plan.pairs / cells**2:.2%} of pairs, {plan.scores / cells**2:.2%} "
            f"computed: {', '.join(milliseconds(timing) for timing in taken.values())}, "
            f"{ours.temporaries():.0f} MiB; compiled in {compiling:.0f} s",
            flush=True,
        )
        points.append(Point(place(plan.pairs, cells), taken))
    for name in (FORWARD, BOTH):
        print(f"  slope, {name}: {slope(points, name):.2f}")
    return points


def measure_torch(sizes: Sequence[int], *, repeats: int) -> list[Point]:
    """Times of torch's dense attention."""
    return [
        Point(cells, timed(TorchAttention(draw_heads(cells)), repeats=repeats)) for cells in sizes
    ]


def timed(side: OurAttention | TorchAttention, *, repeats: int) -> dict[str, Timing]:
    """Pass -> timing, after a run that does not count."""
    runs = [side.forward, side.both]
    for run in runs:
        run()
    timings, _ = alternate(runs, repeats=repeats)
    return dict(zip((FORWARD, BOTH), timings, strict=True))


def slope(points: Sequence[Point], name: str) -> float:
    """Of log time over log place by least squares: 1 is proportional."""
    places, seconds = (
        [p.place for p in points],
        [p.taken[name].median for p in points],
    )
    return float(np.polyfit(np.log(places), np.log(seconds), 1)[0])


def draw_shares(path: pathlib.Path, shares: dict[str, list[Point]], dense: Point) -> None:
    """Time over the share of allowed pairs; torch's dense attention takes the same for all."""
    with picture(path, width=6.4, height=3.4) as figure:
        panels = figure.subplots(1, 2)
        for panel, name in zip(panels, (FORWARD, BOTH), strict=True):
            panel.axhline(1e3 * dense.taken[name].median, color=FAINT, linestyle="--", linewidth=1)
            panel.annotate(
                "torch, dense",
                (0.02, 1e3 * dense.taken[name].median),
                (0, 3),
                xycoords=("axes fraction", "data"),
                textcoords="offset points",
                fontsize=7,
            )
            for color, (title, points) in zip(SERIES, shares.items(), strict=False):
                label = f"{title}, slope {slope(points, name):.2f}"
                draw_points(panel, points, name, color=color, label=label, scale=100)
            finish(panel, name, "pairs that are allowed [%]")
            panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        figure.suptitle(f"{CELLS:,} cells, 8 heads of 64, float32", fontsize=9)


def draw_sizes(path: pathlib.Path, sizes: list[Point], dense: list[Point]) -> None:
    """Time over the number of cells, with as many pairs a cell, beside torch's dense attention."""
    pairs = (2 * FIXED_WINDOW + 1) * SIZE_ROWS * COLUMNS
    with picture(path, width=6.4, height=3.4) as figure:
        panels = figure.subplots(1, 2)
        for panel, name in zip(panels, (FORWARD, BOTH), strict=True):
            for points, title, color in (
                (dense, "torch, dense", FAINT),
                (sizes, "planned", SERIES[0]),
            ):
                label = f"{title}, slope {slope(points, name):.2f}"
                draw_points(panel, points, name, color=color, label=label, scale=1)
            finish(panel, name, "cells")
            panel.xaxis.set_major_locator(FixedLocator(SIZES[::2]))
        figure.suptitle(f"Up to {pairs} keys a cell, 8 heads of 64, float32", fontsize=9)


def draw_points(
    panel: Axes, points: Sequence[Point], name: str, *, color: str, label: str, scale: float
) -> None:
    """Medians as a line, minimum to maximum as bars."""
    places = [scale * point.place for point in points]
    timings = [point.taken[name] for point in points]
    middle = 1e3 * np.array([timing.median for timing in timings])
    low, high = (1e3 * np.array([pick(t.seconds) for t in timings]) for pick in (min, max))
    spread = np.stack([middle - low, high - middle])
    panel.errorbar(
        places, middle, spread, color=color, label=label, marker="o", markersize=3, linewidth=1.1
    )


def finish(panel: Axes, title: str, label: str) -> None:
    """Logarithmic axes with plain numbers, texts, legend."""
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    for axis in (panel.xaxis, panel.yaxis):
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(lambda value, _: f"{value:,g}")
    panel.set_title(title, loc="left", fontweight="bold")
    panel.set_xlabel(label)
    panel.set_ylabel("milliseconds")
    panel.legend(loc="lower right", fontsize=7)
