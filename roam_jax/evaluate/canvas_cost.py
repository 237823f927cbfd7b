"""What a layout and a topology amount to: cells, query-key pairs, the effect on a backbone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from roam_jax.canvas.layout import CanvasLayout
from roam_jax.canvas.segments import SegmentTable
from roam_jax.canvas.topology import CanvasTopology


def allowed_pairs(table: SegmentTable) -> int:
    """Pairs of a query cell and a key cell that may attend."""
    sizes = np.bincount(table.segments, minlength=len(table.log_weight))
    return int(sizes @ np.isfinite(table.log_weight) @ sizes)


def describe_regions(layout: CanvasLayout) -> list[dict]:
    """Name, cells and declaration of each region, ready for JSON."""
    return [
        {
            "name": name,
            "cells": layout.region_numel(name),
            "bounds": list(spec.bounds),
            "period": spec.period,
            "real_frames": [t * spec.period for t in spec.frames],
            "predicted_frames": [
                t for t in spec.frames if spec.is_output and t >= layout.t_current
            ],
            "loss_weight": spec.loss_weight if spec.is_output else 0.0,
        }
        for name, spec in layout.regions.items()
    ]


def describe_edges(layout: CanvasLayout, topology: CanvasTopology) -> list[dict]:
    """Declaration of each edge and the pairs that it alone allows, ready for JSON."""
    cells = sum(layout.region_numel(name) for name in layout.regions)
    edges = []
    for edge in topology.connections:
        table, _ = CanvasTopology((edge,)).segment_table(layout)
        pairs = allowed_pairs(table)
        edges.append(
            {
                "src": edge.src,
                "dst": edge.dst,
                "kind": topology.resolve_fn(edge, layout),
                "weight": edge.weight,
                "t_src": edge.t_src,
                "t_dst": edge.t_dst,
                "fill": None if edge.t_dst is None else edge.temporal_fill.value,
                "pairs": pairs,
                "share": pairs / cells**2,
            }
        )
    return edges


def changes_to_backbone(
    layout: CanvasLayout,
    topology: CanvasTopology,
    *,
    gate: str,
    rounds: int,
    backbone: Sequence[str],
) -> list[str]:
    """Why a grafted model differs from its backbone at initialisation; empty where it does not.

    Args:
        layout, topology: of the graft.
        gate: `loop.gate`.
        rounds: `loop.rounds`.
        backbone: the backbone's own regions, which attend to each other densely.
    """
    reasons = []
    # Without a gate, a single round is the block itself, whose round embedding starts at 0.
    if gate != "identity" and (gate, rounds) != ("off", 1):
        reasons.append(
            f"loop.gate = {gate} with loop.rounds = {rounds} does not start at the backbone"
        )
    owner = np.array([name for name, spec in layout.regions.items() for _ in spec.frames])
    log_weight = topology.segment_table(layout)[0].log_weight
    for src in backbone:
        blocks = {dst: log_weight[np.ix_(owner == src, owner == dst)] for dst in layout.regions}
        partly = [dst for dst in backbone if (blocks[dst] != 0).any()]
        if partly:
            reasons.append(f"{src} does not read all of {', '.join(partly)} with weight 1")
        read = [d for d in blocks if d not in backbone and np.isfinite(blocks[d]).any()]
        if read:
            weight = np.exp(max(blocks[dst].max() for dst in read))
            reasons.append(f"{src} reads {', '.join(read)} (weight up to {weight:.3g})")
    return reasons
