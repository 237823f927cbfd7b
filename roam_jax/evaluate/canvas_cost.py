"""What a layout and a topology amount to: cells, query-key pairs, the effect on a backbone."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from roam_jax.canvas.kinds import NONE_KIND, SOFTMAX_KINDS
from roam_jax.canvas.layout import CanvasLayout
from roam_jax.canvas.topology import CanvasTopology, frame_weights, segment_sizes
from roam_jax.model.cells import CellRegion
from roam_jax.viz.edges import time_label


def allowed_pairs(layout: CanvasLayout, topology: CanvasTopology) -> int:
    """Pairs of a query cell and a key cell that an edge of any kind joins; `none` joins none."""
    sizes = segment_sizes(layout)
    return int(sizes @ topology.reads(layout) @ sizes)


def describe_canvas(layout: CanvasLayout) -> dict:
    """The grid and its regions, ready for JSON."""
    regions = describe_regions(layout)
    return {
        "grid": [layout.T, layout.H, layout.W],
        "width": layout.d_model,
        "t_current": layout.t_current,
        "cells": sum(region["cells"] for region in regions),
        "regions": regions,
    }


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


def describe_cells(regions: Sequence[CellRegion]) -> list[dict]:
    """What each region of a canvas model holds and predicts, ready for JSON."""
    return [dataclasses.asdict(region) for region in regions]


def describe_topology(layout: CanvasLayout, topology: CanvasTopology) -> dict:
    """Every edge, and the pairs that all of them allow together, ready for JSON."""
    cells, pairs = int(segment_sizes(layout).sum()), allowed_pairs(layout, topology)
    return {
        "edges": describe_edges(layout, topology),
        "pairs": pairs,
        "share": pairs / cells**2,
    }


def describe_edges(layout: CanvasLayout, topology: CanvasTopology) -> list[dict]:
    """Declaration of each edge and the pairs that it alone allows, ready for JSON.

    `times` says in words when it reads; `frame_pairs` is how many pairs of frames are listed.
    """
    cells = int(segment_sizes(layout).sum())
    edges = []
    for edge in topology.connections:
        pairs = allowed_pairs(layout, CanvasTopology((edge,)))
        edges.append(
            {
                "src": edge.src,
                "dst": edge.dst,
                "kind": topology.resolve_fn(edge, layout),
                "weight": edge.weight,
                "times": time_label(edge, layout),
                "t_src": edge.t_src,
                "t_dst": edge.t_dst,
                "fill": None if edge.t_dst is None else edge.temporal_fill.value,
                "frame_pairs": None if edge.pairs is None else len(edge.pairs),
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
    kinds = {edge: topology.resolve_fn(edge, layout) for edge in topology.connections}
    running = [edge for edge, kind in kinds.items() if kind != NONE_KIND and edge.weight]
    softmax = tuple(edge for edge in running if kinds[edge] in SOFTMAX_KINDS)
    owner = np.array([name for name, spec in layout.regions.items() for _ in spec.frames])
    weights = frame_weights(softmax, layout)
    for src in backbone:
        blocks = {dst: weights[np.ix_(owner == src, owner == dst)] for dst in layout.regions}
        partly = [dst for dst in backbone if (blocks[dst] != 1).any()]
        if partly:
            reasons.append(f"{src} does not read all of {', '.join(partly)} with weight 1")
        read = [dst for dst in blocks if dst not in backbone and blocks[dst].any()]
        if read:
            weight = max(blocks[dst].max() for dst in read)
            reasons.append(f"{src} reads {', '.join(read)} (weight up to {weight:.3g})")
        for edge in running:
            if edge.src == src and kinds[edge] not in SOFTMAX_KINDS:
                reasons.append(f"{src} reads {edge.dst} by {kinds[edge]}")
    return reasons
