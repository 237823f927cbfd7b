"""What a topology costs when it runs: the plan beside dense attention, and what a slice leaves."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from roam_jax.canvas.layout import CanvasLayout
from roam_jax.canvas.live_blocks import live_blocks
from roam_jax.canvas.plan import EdgePlan, compile_plan
from roam_jax.canvas.slicing import slice_canvas
from roam_jax.canvas.topology import CanvasTopology

FLOAT32 = 4


def describe_plan(
    layout: CanvasLayout, topology: CanvasTopology, *, heads: int, width: int
) -> dict:
    """What the attention of one block computes for one window, ready for JSON.

    Args:
        layout, topology: of the canvas.
        heads: number of heads.
        width: of a head.

    Returns:
        {"heads", "width", "dense", "loops", "tiles", "pairs", "scores", "flops", "score_bytes",
        "live_blocks", "edges"}: loops are stacks of equal tiles, pairs those of softmax edges.
        "scores" (of a head), "flops" (of both products, forward) and "score_bytes" (of all heads'
        float32 scores at once) each have "all", for N x N pairs, and "planned". "edges" are those
        of other kinds. Where no plan can be made, {"refused": why} alone.
    """
    try:
        plan = compile_plan(layout, topology)
    except ValueError as error:
        return {"refused": str(error)}
    scores = plan.query_cells * plan.key_cells
    stacks = plan.stacks or ()
    blocks = live_blocks(plan.table, orders=plan.orders)
    return {
        "heads": heads,
        "width": width,
        "dense": plan.is_dense,
        "loops": len(stacks),
        "tiles": sum(stack.tiles for stack in stacks),
        "pairs": plan.pairs,
        "scores": {"all": scores, "planned": plan.scores},
        "flops": {
            "all": 4 * heads * width * scores,
            "planned": plan.flops(heads=heads, width=width),
        },
        "score_bytes": {
            "all": FLOAT32 * heads * scores,
            "planned": plan.score_bytes(heads=heads),
        },
        "live_blocks": {
            "size": [blocks.block_q, blocks.block_k],
            "all": blocks.blocks,
            "live": blocks.live,
            "partial": blocks.partial,
        },
        "edges": [_edge(edge) for edge in plan.edges],
    }


def _edge(edge: EdgePlan) -> dict:
    """What an edge of another kind reads."""
    return {
        "index": edge.index,
        "src": edge.src,
        "dst": edge.dst,
        "kind": edge.kind,
        "groups": sum(len(stack.query_cells) for stack in edge.stacks),
        "pairs": sum(stack.query_cells.size * stack.key_cells.shape[1] for stack in edge.stacks),
    }


def describe_slices(
    layout: CanvasLayout,
    topology: CanvasTopology,
    wanted: Mapping[str, Collection[str]],
    *,
    applications: int,
) -> dict:
    """What remains to be computed where some regions' cells are wanted alone, ready for JSON.

    Args:
        layout, topology: of the canvas.
        wanted: a name for the report -> regions.
        applications: of a block, blocks x rounds.

    Returns:
        {"applications", "wanted": [{"name", "regions", "cell_share", "pair_share"}]}: shares of the
        cells and of the pairs over all applications.
    """
    rows = []
    for name, regions in wanted.items():
        sliced = slice_canvas(topology, layout, tuple(regions), applications=applications)
        rows.append(
            {
                "name": name,
                "regions": list(regions),
                "cell_share": sliced.computed_share,
                "pair_share": sliced.pair_share,
            }
        )
    return {"applications": applications, "wanted": rows}
