"""Which region reads which, and when: a graph, a table, and the edges with offsets along time.

Everything is placed by hand, in inches, from the measured sizes of the texts, so that nothing is
cut off or overlaps whatever the names and numbers of regions.
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from roam_jax.canvas.layout import CanvasLayout
from roam_jax.canvas.topology import CanvasTopology, segment_sizes
from roam_jax.viz.edge_graph import graph_panel
from roam_jax.viz.edge_times import time_panel
from roam_jax.viz.edges import GAP, TITLE, TITLE_POINTS, DrawnEdge, Panel, drawn_edges, is_plain
from roam_jax.viz.figure import (
    FAINT,
    INK,
    add_axes,
    add_legend,
    legend_shape,
    picture,
    text_size,
)

# Inches: the smallest cell of the table, the smallest table, and the largest whose names above may
# lie.
CELL, SMALL_TABLE, LARGE_TABLE = 0.45, 2.4, 4.0
CELL_POINTS = 6.0
SHARE_COLOURS = LinearSegmentedColormap.from_list("share", ["white", "#a8c8e4"])


def draw_topology(path: pathlib.Path, layout: CanvasLayout, topology: CanvasTopology) -> None:
    """Arrows lead from the region that reads to the one that is read; disabled edges are dashed.

    Left a graph, its nodes sized by cells; right the same as a table, shaded by the share of
    query-key pairs that is allowed; below, where edges have offsets, what one frame of each region
    reads, along real time.

    Args:
        path: the PNG.
        layout: the canvas.
        topology: its edges.
    """
    edges = drawn_edges(layout, topology)
    row = [graph_panel(layout, edges), _table_panel(layout, topology, edges)]
    width = sum(panel.width for panel in row)
    rows = [row]
    if timed := [drawn for drawn in edges if not is_plain(drawn.edge)]:
        rows.append([time_panel(layout, timed, width=width)])
    ways = {drawn.label: drawn for drawn in edges}
    columns, legend_height = legend_shape(list(ways), width=width) if ways else (1, GAP)
    heights = [TITLE + max(panel.height for panel in row) for row in rows]
    with picture(path, width=width, height=sum(heights) + legend_height, layout="none") as figure:
        for row, top in zip(rows, _tops(heights, legend_height), strict=True):
            for panel, left in zip(row, (0.0, row[0].width), strict=False):
                middle = left + panel.width / 2
                figure.text(
                    middle, top - TITLE / 2, panel.title, ha="center", va="center",
                    fontsize=TITLE_POINTS, transform=figure.dpi_scale_trans,
                )  # fmt: skip
                spare = max(other.height for other in row) - panel.height
                panel.draw(figure, left, top - TITLE - spare / 2 - panel.height)
        handles = [
            Line2D([], [], color=drawn.colour, linestyle=drawn.look["linestyle"], label=label)
            for label, drawn in ways.items()
        ]
        add_legend(figure, handles, columns=columns)


def _tops(heights: Sequence[float], foot: float) -> list[float]:
    """Upper edges of rows that stand on a foot."""
    return [foot + sum(heights[number:]) for number in range(len(heights))]


def _table_panel(
    layout: CanvasLayout, topology: CanvasTopology, edges: Sequence[DrawnEdge]
) -> Panel:
    """Cells that hold their texts; names above stand upright where they take too much room."""
    names = list(layout.regions)
    lines: dict[tuple[int, int], list[str]] = {}
    for drawn in edges:
        cell = names.index(drawn.edge.src), names.index(drawn.edge.dst)
        lines.setdefault(cell, []).append(drawn.short)
    texts = {cell: "\n".join(dict.fromkeys(some)) for cell, some in lines.items()}
    held = [max(text_size(text, points=CELL_POINTS)) for text in texts.values()]
    longest = max(text_size(name)[0] for name in names)
    lying = longest + 0.1
    turned = lying * len(names) > LARGE_TABLE
    cell = max(
        CELL,
        SMALL_TABLE / len(names),
        0.0 if turned else lying,
        *(size + 0.1 for size in held),
    )
    side, above = cell * len(names), (longest if turned else text_size("X")[1]) + 0.1
    title = "row reads column; shade: share of the pairs that is allowed"
    width = longest + 0.1 + side
    panel_width = max(width, text_size(title, points=TITLE_POINTS)[0]) + 2 * GAP

    def draw(figure: Figure, left: float, bottom: float) -> None:
        left += (panel_width - width) / 2 + longest + 0.1
        axes = add_axes(figure, left, bottom + GAP, side, side)
        _draw_table(axes, _shares(layout, topology), texts)
        axes.set_xticks(np.arange(len(names)) + 0.5, names, rotation=90 if turned else 0)
        axes.set_yticks(np.arange(len(names)) + 0.5, names)

    return Panel(title, panel_width, side + above + GAP, draw)


def _shares(layout: CanvasLayout, topology: CanvasTopology) -> np.ndarray:
    """(regions, regions) share of the pairs of a reader's and a read region's cells."""
    owner = [i for i, spec in enumerate(layout.regions.values()) for _ in spec.frames]
    member = np.eye(len(layout.regions))[owner] * segment_sizes(layout)[:, None]
    cells = member.sum(axis=0)
    return member.T @ topology.reads(layout) @ member / np.outer(cells, cells)


def _draw_table(axes: Axes, shares: np.ndarray, texts: dict[tuple[int, int], str]) -> None:
    axes.pcolormesh(
        shares,
        cmap=SHARE_COLOURS,
        vmin=0,
        vmax=1,
        edgecolor=FAINT,
        linewidth=0.4,
        clip_on=False,
    )
    for (row, column), text in texts.items():
        axes.text(
            column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=CELL_POINTS,
            color=INK,
        )  # fmt: skip
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.invert_yaxis()
