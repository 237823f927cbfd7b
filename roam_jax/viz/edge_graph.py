"""The graph of a topology: regions on a circle, arrows from readers to what they read."""

from __future__ import annotations

import collections
import dataclasses
import itertools
from collections.abc import Iterator, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import offset_copy

from roam_jax.canvas.layout import CanvasLayout
from roam_jax.viz.canvas import region_colours
from roam_jax.viz.edges import GAP, PLAIN, TITLE_POINTS, DrawnEdge, Panel
from roam_jax.viz.figure import add_axes, text_size

POINT = 1 / 72  # of an inch
# Points between two self edges of a node.
LOOP = 7


@dataclasses.dataclass(frozen=True)
class _Node:
    """A region in the graph.

    Args:
        text: below or beside it.
        place: inches from the middle.
        radius: points.
        shift: points from the place to the text.
        align: of the text at that point.
    """

    text: str
    place: np.ndarray
    radius: float
    shift: np.ndarray
    align: str

    def boxes(self) -> list[np.ndarray]:
        """(low, high) corners of the node and of its text, with a little air, in inches."""
        reach = self.radius * POINT + 0.03
        size = np.array(text_size(self.text)) + 0.06
        share = {"left": 0.0, "center": 0.5, "right": 1.0}[self.align], 0.5
        low = self.place + self.shift * POINT - size * share
        return [np.stack([self.place - reach, self.place + reach]), np.stack([low, low + size])]


def _place_nodes(
    layout: CanvasLayout, edges: Sequence[DrawnEdge], circle: float
) -> dict[str, _Node]:
    """Nodes on a circle of that radius, with their texts outside."""
    names = list(layout.regions)
    loops = collections.Counter(d.edge.src for d in edges if d.edge.src == d.edge.dst)
    largest = np.log1p(max(layout.region_numel(name) for name in names))
    nodes = {}
    for number, name in enumerate(names):
        angle = np.pi / 2 - 2 * np.pi * number / len(names)
        outward = np.array([np.cos(angle), np.sin(angle)])
        cells = layout.region_numel(name)
        radius = 5 + 13 * np.log1p(cells) / largest
        away = radius + 6 + LOOP * loops[name]
        align = "center" if abs(outward[0]) < 0.2 else "left" if outward[0] > 0 else "right"
        shift = outward * (away + 4, away + 9)
        nodes[name] = _Node(f"{name}\n{cells:,}", circle * outward, radius, shift, align)
    return nodes


def graph_panel(layout: CanvasLayout, edges: Sequence[DrawnEdge]) -> Panel:
    """The smallest circle on which nodes and texts stand clear of each other."""
    for circle in itertools.count(1.3, 0.1):
        nodes = _place_nodes(layout, edges, circle)
        boxes = [box for node in nodes.values() for box in node.boxes()]
        if not any(_overlap(a, b) for a, b in itertools.combinations(boxes, 2)):
            break
    low, high = np.min(boxes, axis=(0, 1)), np.max(boxes, axis=(0, 1))
    title = "arrows: from the reader to what it reads; numbers: cells"
    width, height = high - low
    panel_width = max(width, text_size(title, points=TITLE_POINTS)[0]) + 2 * GAP

    def draw(figure: Figure, left: float, bottom: float) -> None:
        axes = add_axes(figure, left + (panel_width - width) / 2, bottom + GAP / 2, width, height)
        axes.set_xlim(low[0], high[0])
        axes.set_ylim(low[1], high[1])
        axes.set_axis_off()
        _draw_graph(axes, nodes, edges, region_colours(layout))

    return Panel(title, panel_width, height + GAP, draw)


def _overlap(a: np.ndarray, b: np.ndarray) -> bool:
    return bool((np.maximum(a[0], b[0]) < np.minimum(a[1], b[1])).all())


def _draw_graph(axes: Axes, nodes: dict[str, _Node], edges: Sequence[DrawnEdge], colours) -> None:
    loops = collections.Counter()
    for drawn, bend, style in _arrows(edges):
        look = {"arrowstyle": style, **drawn.look}
        src, dst = nodes[drawn.edge.src], nodes[drawn.edge.dst]
        if src is dst:
            loops[drawn.edge.src] += 1
            _draw_loop(axes, src, loops[drawn.edge.src], look)
            continue
        axes.annotate(
            "",
            xy=dst.place,
            xytext=src.place,
            zorder=1,
            arrowprops={
                **look,
                "connectionstyle": f"arc3,rad={bend}",
                "shrinkA": src.radius + 1,
                "shrinkB": dst.radius + 1,
            },
        )
    for name, node in nodes.items():
        size = 2 * node.radius
        axes.plot(*node.place, "o", markersize=size, color=colours[name], markeredgecolor="white")
        axes.annotate(
            node.text, node.place, node.shift, textcoords="offset points", ha=node.align,
            va="center",
        )  # fmt: skip


def _arrows(edges: Sequence[DrawnEdge]) -> Iterator[tuple[DrawnEdge, float, str]]:
    """(edge, bend, arrow style): edges of one pair bend apart, plain mutual ones are drawn once."""
    drawn_before = collections.Counter()
    plain = {(d.edge.src, d.edge.dst) for d in edges if d.label == PLAIN}
    for drawn in edges:
        pair = drawn.edge.src, drawn.edge.dst
        mutual = drawn.label == PLAIN and pair[::-1] in plain and pair[0] != pair[1]
        if mutual and pair[0] > pair[1]:
            continue
        drawn_before[pair] += 1
        yield drawn, 0.0 if mutual else 0.14 * drawn_before[pair], "<|-|>" if mutual else "-|>"


def _draw_loop(axes: Axes, node: _Node, number: int, look: dict) -> None:
    """A self edge: a loop on the outer side of its node, further out the higher its number."""
    outward = np.arctan2(node.place[1], node.place[0])
    ends = [
        offset_copy(
            axes.transData,
            axes.figure,
            x=(node.radius + 1) * np.cos(outward + turn),
            y=(node.radius + 1) * np.sin(outward + turn),
            units="points",
        )
        for turn in (-0.6, 0.6)
    ]
    reach = LOOP * (number + 0.5) / (node.radius * np.sin(0.6))
    axes.annotate(
        "",
        xy=node.place,
        xycoords=ends[1],
        xytext=node.place,
        textcoords=ends[0],
        arrowprops={
            **look,
            "connectionstyle": f"arc3,rad={reach}",
            "shrinkA": 0,
            "shrinkB": 0,
        },
    )
