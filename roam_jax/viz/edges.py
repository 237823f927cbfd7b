"""Edges of a topology as reports and pictures show them: in words, colours and lines."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable

import numpy as np
from matplotlib.figure import Figure

from roam_jax.canvas.kinds import NONE_KIND, SOFTMAX_KINDS
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
    """An edge as it is drawn: disabled ones are dashed.

    Args:
        edge: the connection.
        kind: its kind, or its region's.
        label: for the legend.
        short: for a cell of the table.
        colour: of its arrow.
    """

    edge: Connection
    kind: str
    label: str
    short: str
    colour: str = FAINT

    @property
    def look(self) -> dict:
        """Of its arrow."""
        style = "--" if self.kind == NONE_KIND else "-"
        return {"color": self.colour, "linestyle": style, "mutation_scale": 8}


def time_label(edge: Connection, layout: CanvasLayout) -> str:
    """When an edge reads, in words.

    "all frames"; with offsets such as "t reads t-1"; with pairs of frames "t reads t-2..t",
    "t reads up to t", "t reads from t-1 on", "t reads the latest" (in real frames), or, where they
    are none of these, how many pairs.
    """
    if edge.pairs is not None:
        return _pairs_label(edge, layout)
    if is_plain(edge):
        return PLAIN
    return " reads ".join("all" if t is None else _at(t) for t in (edge.t_src, edge.t_dst))


def _at(shift: int) -> str:
    return f"t{shift:+}" if shift else "t"


def _pairs_label(edge: Connection, layout: CanvasLayout) -> str:
    """Which window of ages the pairs are, if they are one."""
    src, dst = layout.regions[edge.src], layout.regions[edge.dst]
    readers, reads = (np.array(spec.frames) for spec in (src, dst))
    age = readers[:, None] * src.period - reads[None, :] * dst.period
    joined = np.zeros(age.shape, bool)
    rows, columns = np.array(edge.pairs).T
    joined[rows - readers[0], columns - reads[0]] = True
    newest, oldest = int(age[joined].min()), int(age[joined].max())
    if (joined == ((age >= newest) & (age <= oldest))).all():
        first, last = _at(-oldest), _at(-newest)
        if joined.all():
            return PLAIN
        if oldest == age.max() and oldest > newest:
            return f"t reads up to {last}"
        if newest == age.min() and oldest > newest:
            return f"t reads from {first} on"
        return f"t reads {last}" if first == last else f"t reads {first}..{last}"
    since = np.where(age >= 0, age, np.iinfo(age.dtype).max)
    if (joined == ((age >= 0) & (since == since.min(axis=1, keepdims=True)))).all():
        return "t reads the latest"
    count = len(edge.pairs)
    return f"{count} {'pair' if count == 1 else 'pairs'} of frames"


def kind_label(kind: str) -> str | None:
    """A kind as far as there is something to say; None for softmax attention."""
    return None if kind in SOFTMAX_KINDS else kind


def edge_label(edge: Connection, layout: CanvasLayout, kind: str) -> str:
    """Kind, times, fill and weight, as far as there is something to say."""
    parts = [time_label(edge, layout)]
    if edge.t_dst is not None:
        parts.append(edge.temporal_fill.value)
    if edge.weight != 1:
        parts.append(f"weight {edge.weight:g}")
    return ", ".join(filter(None, [kind_label(kind), *parts]))


def _short_label(edge: Connection, layout: CanvasLayout, kind: str) -> str:
    """Such as "all", "t-1", "t-2..t", "all: gated"; a weight stands on a second line."""
    if is_plain(edge):
        when = "all"
    elif edge.pairs is not None:
        when = time_label(edge, layout).removeprefix("t reads ").removesuffix(" of frames")
        when = "all" if when == PLAIN else when
    else:
        when = "t, all" if edge.t_dst is None else _at(edge.t_dst - (edge.t_src or 0))
    if kind_label(kind):
        when = f"{when}: {kind}"
    return when if edge.weight == 1 or kind == NONE_KIND else f"{when}\nx {edge.weight:g}"


def is_plain(edge: Connection) -> bool:
    """Whether it reads all frames at all times."""
    return (edge.t_src, edge.t_dst, edge.pairs) == (None, None, None)


def drawn_edges(layout: CanvasLayout, topology: CanvasTopology) -> list[DrawnEdge]:
    """A colour for each way of reading; faint for the plain one and for disabled edges."""
    edges = []
    for edge in topology.connections:
        kind = topology.resolve_fn(edge, layout)
        labels = (label(edge, layout, kind) for label in (edge_label, _short_label))
        edges.append(DrawnEdge(edge, kind, *labels))
    ways = dict.fromkeys(d.label for d in edges if d.kind != NONE_KIND and d.label != PLAIN)
    colours = dict(zip(ways, itertools.cycle(SERIES), strict=False))
    return [dataclasses.replace(d, colour=colours.get(d.label, FAINT)) for d in edges]
