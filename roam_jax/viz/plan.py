"""What a compiled plan computes of all pairs of queries and keys."""

from __future__ import annotations

import pathlib

import numpy as np
from jaxtyping import Float

from roam_jax.canvas.layout import CanvasLayout
from roam_jax.canvas.plan import AttentionPlan, EdgePlan
from roam_jax.canvas.tiles import TileStack
from roam_jax.viz.canvas import palette
from roam_jax.viz.cells import CellAxis, pair_shares
from roam_jax.viz.figure import FAINT, SERIES
from roam_jax.viz.mask import draw_plane, mixed

HIDDEN = "computed, but not allowed"
Shares = Float[np.ndarray, "P Q"]


def draw_plan(path: pathlib.Path, layout: CanvasLayout, plan: AttentionPlan) -> None:
    """Queries down, keys across: a colour for each stack of tiles, and for each other kind.

    Grey is what a tile computes and hides again; white is never computed.

    Args:
        path: the PNG.
        layout: the canvas.
        plan: compiled for it.
    """
    rows = CellAxis(layout, plan.table.query_segments)
    columns = CellAxis(layout, plan.table.segments)
    found: dict[str, Shares] = {}
    if plan.stacks is None:
        used = pair_shares(rows, columns, np.isfinite(plan.table.log_weight))
        found["all scores, under a mask"], hidden = used, 1 - used
    else:
        hidden = np.zeros((len(rows.sizes), len(columns.sizes)))
        for number, stack in enumerate(plan.stacks, start=1):
            used, computed = _stack_shares(stack, rows, columns)
            found[f"{number}: {_tiles(stack)}"] = used
            hidden += computed - used
    for edge in plan.edges:
        found[edge.kind] = found.get(edge.kind, 0) + _edge_shares(edge, rows, columns)
    colours = dict(zip(found, _colours(len(found)), strict=True))
    layers = [(shares, colours[label]) for label, shares in found.items()]
    # What another kind reads is shown as read.
    hidden = np.clip(hidden, 0, np.maximum(1 - sum(found.values()), 0))
    if hidden.max(initial=0) > 1e-9:
        layers, colours = [*layers, (hidden, FAINT)], {**colours, HIDDEN: FAINT}
    share = plan.scores / (plan.query_cells * plan.key_cells)
    loops = 1 if plan.stacks is None else len(plan.stacks)
    title = (
        f"{share:.1%} of the scores are computed, in {loops} {'loop' if loops == 1 else 'loops'}"
    )
    image = mixed(rows, columns, layers)
    draw_plane(path, rows, columns, image, title=title, legend=colours)


def _colours(count: int) -> tuple[str, ...]:
    """Without the grey of `SERIES`, which stands for what is hidden."""
    return tuple(c for c in palette(count + 1) if c.lower() != SERIES[-1].lower())[:count]


def _tiles(stack: TileStack) -> str:
    tiles = "1 tile" if stack.tiles == 1 else f"{stack.tiles:,} tiles"
    return f"{tiles} of {stack.rows:,} x {stack.keys:,}"


def _stack_shares(stack: TileStack, rows: CellAxis, columns: CellAxis) -> tuple[Shares, Shares]:
    """Shares of each pixel's pairs that are used, and that are computed."""
    queries, used, computed = [], [], []
    for group, (cells, keys) in enumerate(zip(stack.query_cells, stack.key_cells, strict=True)):
        classes = np.zeros(len(cells), int)
        if stack.classes is not None:
            classes = stack.classes[group].ravel()
        for number in np.unique(classes):
            queries.append(rows.shares(cells[classes == number]))
            computed.append(columns.shares(keys))
            read = keys
            if stack.log_weight is not None:
                read = keys[np.isfinite(stack.log_weight[group, number])]
            used.append(columns.shares(read))
    return tuple(np.stack(queries, axis=1) @ np.stack(found) for found in (used, computed))


def _edge_shares(edge: EdgePlan, rows: CellAxis, columns: CellAxis) -> Shares:
    shares = np.zeros((len(rows.sizes), len(columns.sizes)))
    for stack in edge.stacks:
        queries = np.stack([rows.shares(cells) for cells in stack.query_cells], axis=1)
        shares += queries @ np.stack([columns.shares(cells) for cells in stack.key_cells])
    return shares
