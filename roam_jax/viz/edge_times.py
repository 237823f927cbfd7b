"""What one frame of each region reads through edges with offsets, along real time."""

from __future__ import annotations

import collections
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from roam_jax.canvas.layout import CanvasLayout
from roam_jax.canvas.topology import Connection, frame_weights
from roam_jax.viz.canvas import region_colours
from roam_jax.viz.edges import GAP, DrawnEdge, Panel
from roam_jax.viz.figure import FAINT, INK, add_axes, text_size

# Inches: a region's row, the height of an arrow within it, and the axis below all rows.
ROW, ARC, AXIS = 0.34, 0.25, 0.42


def time_panel(layout: CanvasLayout, edges: Sequence[DrawnEdge], *, width: float) -> Panel:
    """Rows of frames, one a region, and arrows from one ringed frame of each reader."""
    title = (
        "edges with offsets: what one frame (ringed) of each reader reads, in the reader's colour"
    )
    names = max(text_size(name)[0] for name in layout.regions) + 0.15
    height = ROW * (len(layout.regions) + 0.9)

    def draw(figure: Figure, left: float, bottom: float) -> None:
        axes = add_axes(figure, left + GAP + names, bottom + AXIS, width - names - 2 * GAP, height)
        _draw_time(axes, layout, edges)

    return Panel(title, width, height + AXIS, draw)


def _draw_time(axes: Axes, layout: CanvasLayout, edges: Sequence[DrawnEdge]) -> None:
    rows = {name: row for row, name in enumerate(layout.regions)}
    colours = region_colours(layout)
    for name, spec in layout.regions.items():
        frames = [t * spec.period for t in spec.frames]
        axes.plot(frames, [rows[name]] * len(frames), "o", markersize=6, color=colours[name])
    inches = axes.get_window_extent().width / axes.figure.dpi / np.ptp(axes.get_xlim())  # a frame
    shown = shown_frames([drawn.edge for drawn in edges], layout)
    for name, t in shown.items():
        real = t * layout.regions[name].period
        axes.plot(real, rows[name], "o", markersize=10, markerfacecolor="none", color=INK)
    for drawn in edges:
        src, dst = layout.regions[drawn.edge.src], layout.regions[drawn.edge.dst]
        for reader, read in _frame_pairs(drawn.edge, layout):
            start = reader * src.period, rows[drawn.edge.src]
            end = read * dst.period, rows[drawn.edge.dst]
            if reader != shown[drawn.edge.src] or start == end:
                continue
            same_row = drawn.edge.src == drawn.edge.dst
            bend = min(0.5, 2 * ARC / (inches * abs(end[0] - start[0]))) if same_row else 0.1
            arrow = {
                **drawn.look,
                "arrowstyle": "-|>",
                "color": colours[drawn.edge.src],
                "connectionstyle": f"arc3,rad={bend}",
                "shrinkA": 6,
                "shrinkB": 4,
            }
            axes.annotate("", end, start, arrowprops=arrow)
    axes.set_yticks(list(rows.values()), list(rows))
    axes.set_ylim(len(rows) - 0.4, -1.2)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(axis="x", color=FAINT, linewidth=0.3)
    axes.set_xlabel("real frame")


def shown_frames(edges: Sequence[Connection], layout: CanvasLayout) -> dict[str, int]:
    """Canvas frame of each reader to show: of those that most of its edges read from, the middle.

    Args:
        edges: any number for each reader; those that read nothing do not count.
        layout: the canvas.
    """
    readers: dict[str, collections.Counter[int]] = {}
    for edge in edges:
        frames = {reader for reader, _ in _frame_pairs(edge, layout)}
        readers.setdefault(edge.src, collections.Counter()).update(frames)
    shown = {}
    for name, counts in readers.items():
        best = sorted(t for t, count in counts.items() if count == max(counts.values()))
        if best:
            shown[name] = best[(len(best) - 1) // 2]
    return shown


def _frame_pairs(edge: Connection, layout: CanvasLayout) -> list[tuple[int, int]]:
    """(canvas frame of the reader, canvas frame that it reads), whether the edge runs or not."""
    frames = [t for spec in layout.regions.values() for t in spec.frames]
    return [(frames[i], frames[j]) for i, j in np.argwhere(frame_weights((edge,), layout))]
