"""Which region reads which, and when: a graph, a table, and the edges with offsets along time."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.lines import Line2D
from matplotlib.transforms import offset_copy

from roam_jax.canvas.layout import CanvasLayout
from roam_jax.canvas.topology import CanvasTopology, Connection
from roam_jax.viz.canvas import region_colours
from roam_jax.viz.figure import FAINT, INK, SERIES, picture

PLAIN = "all frames"
# Points between two self edges of a node, and ways of reading in a row of the legend.
LOOP, WAYS_IN_A_ROW = 7, 5
SHARE_COLOURS = LinearSegmentedColormap.from_list("share", ["white", "#a8c8e4"])


def offset_label(t_src: int | None, t_dst: int | None) -> str:
    """When an edge reads, in words: "t reads t-1", or "all frames"."""
    if t_src is None and t_dst is None:
        return PLAIN
    reader, read = ("all" if t is None else f"t{t:+}" if t else "t" for t in (t_src, t_dst))
    return f"{reader} reads {read}"


def edge_label(edge: Connection) -> str:
    """Offsets, fill and weight, as far as there is something to say."""
    parts = [offset_label(edge.t_src, edge.t_dst)]
    if edge.t_dst is not None:
        parts.append(edge.temporal_fill.value)
    if edge.weight != 1:
        parts.append(f"weight {edge.weight:g}")
    return ", ".join(parts)


def draw_topology(path: pathlib.Path, layout: CanvasLayout, topology: CanvasTopology) -> None:
    """Arrows lead from the region that reads to the one that is read.

    Left a graph, its nodes sized by cells; right the same as a table, shaded by the share of
    query-key pairs that is allowed; below, where edges have offsets, what one frame of each region
    reads, along real time.

    Args:
        path: the PNG.
        layout: the canvas.
        topology: its edges.
    """
    colours = _way_colours(topology)
    count = len(layout.regions)
    timed = [edge for edge in topology.connections if not _is_plain(edge)]
    areas, heights = [["graph", "table"]], [max(5.0, 0.45 * count + 2.2)]
    if timed:
        areas, heights = [*areas, ["time", "time"]], [*heights, 0.34 * count + 0.9]
    widths = [6.0, max(4.0, 0.45 * count + 1.6)]
    legend_height = 0.18 * -(-len(colours) // WAYS_IN_A_ROW) + 0.2
    with picture(path, width=sum(widths), height=sum(heights) + legend_height) as figure:
        axes = figure.subplot_mosaic(areas, width_ratios=widths, height_ratios=heights)
        _draw_graph(axes["graph"], layout, topology, colours)
        _draw_table(axes["table"], layout, topology)
        if timed:
            _draw_time(axes["time"], layout, timed)
        legend = [Line2D([], [], color=colour, label=way) for way, colour in colours.items()]
        figure.legend(handles=legend, loc="outside lower center", ncols=WAYS_IN_A_ROW)


def _is_plain(edge: Connection) -> bool:
    return edge.t_src is None and edge.t_dst is None


def _way_colours(topology: CanvasTopology) -> dict[str, str]:
    """A colour for each way of reading; faint for the plain one."""
    ways = list(dict.fromkeys(edge_label(edge) for edge in topology.connections))
    special = [way for way in ways if way != PLAIN]
    colours = {way: SERIES[i % len(SERIES)] for i, way in enumerate(special)}
    return {way: colours.get(way, FAINT) for way in ways}


def _draw_graph(axes: Axes, layout: CanvasLayout, topology: CanvasTopology, colours) -> None:
    names = list(layout.regions)
    angles = np.pi / 2 - 2 * np.pi * np.arange(len(names)) / len(names)
    places = dict(zip(names, np.c_[np.cos(angles), np.sin(angles)], strict=True))
    cells = {name: layout.region_numel(name) for name in names}
    largest = np.log1p(max(cells.values()))
    radius = {name: 5 + 13 * np.log1p(n) / largest for name, n in cells.items()}  # points
    loops = dict.fromkeys(names, 0)
    for edge, bend, style in _arrows(topology):
        look = {"arrowstyle": style, "color": colours[edge_label(edge)], "mutation_scale": 8}
        if edge.src == edge.dst:
            loops[edge.src] += 1
            _draw_loop(axes, places[edge.src], radius[edge.src], loops[edge.src], look)
            continue
        axes.annotate(
            "",
            xy=places[edge.dst],
            xytext=places[edge.src],
            zorder=1,
            arrowprops={
                **look,
                "connectionstyle": f"arc3,rad={bend}",
                "shrinkA": radius[edge.src] + 1,
                "shrinkB": radius[edge.dst] + 1,
            },
        )
    for name, colour in region_colours(layout).items():
        x, y = places[name]
        axes.plot(x, y, "o", markersize=2 * radius[name], color=colour, markeredgecolor="white")
        away = radius[name] + 6 + LOOP * loops[name]
        axes.annotate(
            f"{name}\n{cells[name]:,}",
            (x, y),
            (x * (away + 4), y * (away + 9)),
            textcoords="offset points",
            ha="center" if abs(x) < 0.2 else "left" if x > 0 else "right",
            va="center",
        )
    axes.set_xlim(-1.65, 1.65)
    axes.set_ylim(-1.5, 1.5)
    axes.set_aspect("equal")
    axes.set_axis_off()
    axes.set_title("arrows: from the reader to what it reads; numbers: cells")


def _arrows(topology: CanvasTopology) -> Iterator[tuple[Connection, float, str]]:
    """(edge, bend, arrow style): edges of one pair bend apart, plain mutual ones are drawn once."""
    drawn: dict[tuple[str, str], int] = {}
    plain = {(edge.src, edge.dst) for edge in topology.connections if edge_label(edge) == PLAIN}
    for edge in topology.connections:
        pair = edge.src, edge.dst
        mutual = edge_label(edge) == PLAIN and pair[::-1] in plain and edge.src != edge.dst
        if mutual and edge.src > edge.dst:
            continue
        number = drawn.get(pair, 0)
        drawn[pair] = number + 1
        yield edge, 0.0 if mutual else 0.14 * (number + 1), "<|-|>" if mutual else "-|>"


def _draw_loop(axes: Axes, place: np.ndarray, radius: float, number: int, look: dict) -> None:
    """A self edge: a loop on the outer side of its node, further out the higher its number."""
    outward = np.arctan2(place[1], place[0])
    ends = [
        offset_copy(
            axes.transData,
            axes.figure,
            x=(radius + 1) * np.cos(outward + turn),
            y=(radius + 1) * np.sin(outward + turn),
            units="points",
        )
        for turn in (-0.6, 0.6)
    ]
    reach = LOOP * (number + 0.5) / (radius * np.sin(0.6))
    axes.annotate(
        "",
        xy=place,
        xycoords=ends[1],
        xytext=place,
        textcoords=ends[0],
        arrowprops={
            **look,
            "connectionstyle": f"arc3,rad={reach}",
            "shrinkA": 0,
            "shrinkB": 0,
        },
    )


def _draw_table(axes: Axes, layout: CanvasLayout, topology: CanvasTopology) -> None:
    names = list(layout.regions)
    table, _ = topology.segment_table(layout)
    owner = [i for i, name in enumerate(names) for _ in layout.regions[name].frames]
    sizes = np.bincount(table.segments, minlength=len(table.log_weight))
    member = np.eye(len(names))[owner] * sizes[:, None]
    pairs = member.T @ np.isfinite(table.log_weight) @ member
    cells = member.sum(axis=0)
    axes.pcolormesh(
        pairs / np.outer(cells, cells),
        cmap=SHARE_COLOURS,
        vmin=0,
        vmax=1,
        edgecolor=FAINT,
        linewidth=0.4,
        clip_on=False,
    )
    labels: dict[tuple[int, int], list[str]] = {}
    for edge in topology.connections:
        cell = names.index(edge.src), names.index(edge.dst)
        labels.setdefault(cell, []).append(_short_label(edge))
    for (row, column), lines in labels.items():
        text = "\n".join(dict.fromkeys(lines))
        axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=6, color=INK)
    axes.set_xticks(np.arange(len(names)) + 0.5, names, rotation=40, ha="left")
    axes.set_yticks(np.arange(len(names)) + 0.5, names)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.invert_yaxis()
    axes.set_aspect("equal")
    axes.set_xlabel("row reads column; shade: share of the pairs that is allowed")


def _short_label(edge: Connection) -> str:
    """For a cell of the table: "all", "t-1", "all x 0.1"."""
    if _is_plain(edge):
        when = "all"
    else:
        shift = None if edge.t_dst is None else edge.t_dst - (edge.t_src or 0)
        when = "t, all" if shift is None else "t" if shift == 0 else f"t{shift:+}"
    return when if edge.weight == 1 else f"{when}\nx {edge.weight:g}"


def _draw_time(axes: Axes, layout: CanvasLayout, edges: list[Connection]) -> None:
    rows = {name: row for row, name in enumerate(layout.regions)}
    colours = region_colours(layout)
    for name, spec in layout.regions.items():
        frames = [t * spec.period for t in spec.frames]
        axes.plot(frames, [rows[name]] * len(frames), "o", markersize=6, color=colours[name])
    for edge in edges:
        for start, end in _reads(edge, layout):
            row = rows[edge.src]
            axes.plot(start, row, "o", markersize=10, markerfacecolor="none", color=INK)
            bend = 0.28 / max(1, abs(end - start)) if edge.src == edge.dst else 0.1
            arrow = {
                "arrowstyle": "-|>",
                "color": colours[edge.src],
                "connectionstyle": f"arc3,rad={bend}",
                "shrinkA": 6,
                "shrinkB": 4,
                "mutation_scale": 8,
            }
            if (edge.src, start) != (edge.dst, end):
                axes.annotate("", (end, rows[edge.dst]), (start, row), arrowprops=arrow)
    axes.set_yticks(list(rows.values()), list(rows))
    axes.set_ylim(len(rows) - 0.4, -1.2)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(axis="x", color=FAINT, linewidth=0.3)
    axes.set_xlabel("real frame")
    axes.set_title(
        "edges with offsets: what one frame (ringed) of each reader reads, in the reader's colour"
    )


def _reads(edge: Connection, layout: CanvasLayout) -> list[tuple[int, int]]:
    """(real frame of the reader, real frame that it reads), for the middle one of its readers."""
    segments = [(name, t) for name, spec in layout.regions.items() for t in spec.frames]
    allowed = np.isfinite(CanvasTopology((edge,)).segment_table(layout)[0].log_weight)
    pairs = [(segments[i][1], segments[j][1]) for i, j in np.argwhere(allowed)]
    readers = sorted({reader for reader, _ in pairs})
    src, dst = layout.regions[edge.src], layout.regions[edge.dst]
    return [
        (reader * src.period, read * dst.period)
        for reader, read in pairs
        if reader == readers[(len(readers) - 1) // 2]
    ]
