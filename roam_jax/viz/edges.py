"""Edges of a topology as pictures show them: in words, colours and lines."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable

from matplotlib.figure import Figure

from roam_jax.canvas.kinds import NONE_KIND
from roam_jax.canvas.layout import CanvasLayout
from roam_jax.canvas.topology import CanvasTopology, Connection
from roam_jax.viz.figure import FAINT, SERIES

PLAIN = "all frames"
# Inches: around a panel, and its title's line.
GAP, TITLE = 0.2, 0.34
TITLE_POINTS = 8.5


@dataclasses.dataclass(frozen=True)
class Panel:
    """A part of the picture: its title, its size in inches, how to draw it from a corner on."""

    title: str
    width: float
    height: float
    draw: Callable[[Figure, float, float], None]


@dataclasses.dataclass(frozen=True)
class DrawnEdge:
    """An edge as it is drawn: disabled ones are dashed."""

    edge: Connection
    runs: bool
    label: str
    colour: str = FAINT

    @property
    def look(self) -> dict:
        """Of its arrow."""
        style = "-" if self.runs else "--"
        return {"color": self.colour, "linestyle": style, "mutation_scale": 8}


def offset_label(t_src: int | None, t_dst: int | None) -> str:
    """When an edge reads, in words: "t reads t-1", or "all frames"."""
    if t_src is None and t_dst is None:
        return PLAIN
    reader, read = ("all" if t is None else f"t{t:+}" if t else "t" for t in (t_src, t_dst))
    return f"{reader} reads {read}"


def edge_label(edge: Connection, *, runs: bool = True) -> str:
    """Offsets, fill and weight, as far as there is something to say; "none" for a disabled edge."""
    parts = [offset_label(edge.t_src, edge.t_dst)]
    if edge.t_dst is not None:
        parts.append(edge.temporal_fill.value)
    if edge.weight != 1:
        parts.append(f"weight {edge.weight:g}")
    return ", ".join(parts if runs else [NONE_KIND, *parts])


def is_plain(edge: Connection) -> bool:
    """Whether it reads all frames at all times."""
    return edge.t_src is None and edge.t_dst is None


def drawn_edges(layout: CanvasLayout, topology: CanvasTopology) -> list[DrawnEdge]:
    """A colour for each way of reading; faint for the plain one and for disabled edges."""
    edges = []
    for edge in topology.connections:
        runs = topology.resolve_fn(edge, layout) != NONE_KIND
        edges.append(DrawnEdge(edge, runs, edge_label(edge, runs=runs)))
    ways = dict.fromkeys(drawn.label for drawn in edges if drawn.runs and drawn.label != PLAIN)
    colours = dict(zip(ways, itertools.cycle(SERIES), strict=False))
    return [dataclasses.replace(d, colour=colours.get(d.label, FAINT)) for d in edges]
