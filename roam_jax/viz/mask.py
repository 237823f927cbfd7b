"""The mask of a topology at any number of cells, from pairs of segments alone."""

from __future__ import annotations

import itertools
import pathlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float
from matplotlib.colors import to_rgb
from matplotlib.patches import Patch

from roam_jax.canvas.kinds import NONE_KIND, SOFTMAX_KINDS
from roam_jax.canvas.layout import CanvasLayout
from roam_jax.canvas.topology import CanvasTopology, Connection, segment_sizes
from roam_jax.viz.cells import GAP, TITLE, CellAxis, add_columns, add_rows, pair_shares
from roam_jax.viz.figure import SERIES, add_legend, legend_shape, picture

SOFTMAX = "softmax attention"


def draw_mask(path: pathlib.Path, layout: CanvasLayout, topology: CanvasTopology) -> None:
    """Queries down, keys across, in the layout's order; the shade is the share that is allowed.

    Pairs that an edge of another kind joins have that kind's colour. At most 512 x 512 pixels, each
    a count over segments.

    Args:
        path: the PNG.
        layout: the canvas.
        topology: its edges, of any kind.

    Raises:
        ValueError: a connection names an unknown region or kind.
    """
    sizes = segment_sizes(layout)
    axis = CellAxis(layout, np.repeat(np.arange(len(sizes)), sizes))
    kinds = pairs_by_kind(layout, topology)
    colours = kind_colours(kinds)
    layers = [(pair_shares(axis, axis, kinds[kind]), colours[kind]) for kind in kinds]
    pairs = int(sizes @ topology.reads(layout) @ sizes)
    title = f"{axis.cells:,} cells; {pairs / axis.cells**2:.1%} of the pairs are allowed"
    image = mixed(axis, axis, layers)
    draw_plane(path, axis, axis, image, title=title, legend=colours)


def pairs_by_kind(
    layout: CanvasLayout, topology: CanvasTopology
) -> dict[str, Bool[np.ndarray, "S S"]]:
    """Kind -> pairs of segments that its edges join, softmax kinds as one, each pair once.

    Of several kinds the last that is not softmax has the pair.
    """
    edges: dict[str, list[Connection]] = {}
    for edge in topology.connections:
        kind = topology.resolve_fn(edge, layout)
        if kind != NONE_KIND:
            edges.setdefault(SOFTMAX if kind in SOFTMAX_KINDS else kind, []).append(edge)
    edges = {name: edges[name] for name in sorted(edges, key=lambda name: name != SOFTMAX)}
    pairs = {kind: CanvasTopology(tuple(some)).reads(layout) for kind, some in edges.items()}
    for before, after in itertools.combinations(pairs, 2):
        pairs[before] &= ~pairs[after]
    return pairs


def kind_colours(kinds: dict[str, np.ndarray]) -> dict[str, str]:
    """A colour for each kind; softmax has the first."""
    others = dict(zip((k for k in kinds if k != SOFTMAX), itertools.cycle(SERIES[1:])))
    return {kind: others.get(kind, SERIES[0]) for kind in kinds}


def mixed(
    rows: CellAxis, columns: CellAxis, layers: Sequence[tuple[Float[np.ndarray, "P Q"], str]]
) -> Float[np.ndarray, "P Q 3"]:
    """Colours of a plane's pixels by their shares of each, the rest white.

    Args:
        rows, columns: of the plane.
        layers: (shares, colour).
    """
    image = np.ones((len(rows.sizes), len(columns.sizes), 3))
    most = np.maximum(sum(shares for shares, _ in layers), 1)
    for shares, colour in layers:
        image -= (shares / most)[..., None] * (1 - np.array(to_rgb(colour)))
    return np.clip(image, 0, 1)


def draw_plane(
    path: pathlib.Path,
    rows: CellAxis,
    columns: CellAxis,
    image: Float[np.ndarray, "P Q 3"],
    *,
    title: str,
    legend: dict[str, str],
) -> None:
    """A picture of the pairs of two sequences.

    Args:
        path: the PNG.
        rows, columns: queries and keys.
        image: colours of the pixels.
        title: a line above all.
        legend: text -> colour.
    """
    left, above = GAP + rows.name_width, TITLE + columns.name_width
    width = left + columns.side + GAP
    legend_columns, below = legend_shape(list(legend), width=width) if legend else (1, GAP)
    height = above + rows.side + below + 0.05
    with picture(path, width=width, height=height, layout="none") as figure:
        figure.text(
            width / 2, height - TITLE / 2, title, ha="center", va="center",
            transform=figure.dpi_scale_trans,
        )  # fmt: skip
        axes = add_rows(figure, rows, left=left, bottom=below + 0.05, width=columns.side)
        add_columns(axes, columns, height=rows.side)
        axes.imshow(
            image, extent=(0, columns.cells, rows.cells, 0), aspect="auto",
            interpolation="nearest",
        )  # fmt: skip
        if legend:
            handles = [Patch(color=colour, label=label) for label, colour in legend.items()]
            add_legend(figure, handles, columns=legend_columns)
