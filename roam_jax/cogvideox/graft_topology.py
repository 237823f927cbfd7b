"""Topologies of the study on a graft's canvas.

A kind of topology says how the streams of the canvas meet (`canvas/topology_kinds.py`). Text and
video are one stream; actions, robot state, reward, each further camera and the goal are one each;
thought cells are what streams meet in. Two things stand apart from the kind. Text and video attend
to each other as the backbone was trained, unless the kind is to govern them as well. And what the
backbone reads of the new regions has a weight of its own, 0 by default, with which the grafted
model starts as its backbone.
"""

from __future__ import annotations

import dataclasses
import itertools
import math

from roam_jax.canvas.kinds import SOFTMAX_KINDS
from roam_jax.canvas.layout import CanvasLayout
from roam_jax.canvas.topology import CanvasTopology, Connection
from roam_jax.canvas.topology_kinds import KINDS, KindOptions, StreamedLayout, declared_topology
from roam_jax.cogvideox.graft_canvas import (
    BACKBONE_REGIONS,
    GOAL,
    THOUGHT,
    camera_regions,
    graft_topology,
)
from roam_jax.spelling import check_choice

__all__ = ["BACKBONES", "KINDS", "TopologyOptions", "make_topology"]

# Who governs the pairs of text and video.
BACKBONES = ("own", "declared")
_STREAMS = (
    BACKBONE_REGIONS,
    ("past_action", "future_action"),
    ("observed_proprio", "future_proprio"),
    ("observed_reward", "future_reward"),
)
_VECTORS = frozenset(name for stream in _STREAMS[1:] for name in stream)


@dataclasses.dataclass(frozen=True)
class TopologyOptions(KindOptions):
    """The config's section `topology`.

    Args:
        backbone: own: text and visual attend to each other densely, as the backbone was trained;
            declared: as the kind has it.
        backbone_reads_new: weight of the kind's edges by which text and visual read new regions.

    Raises:
        ValueError: a value is out of range or unknown.
    """

    backbone: str = "own"
    backbone_reads_new: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        check_choice("topology.backbone", self.backbone, BACKBONES)
        if not 0 <= self.backbone_reads_new < math.inf:
            raise ValueError(
                f"topology.backbone_reads_new = {self.backbone_reads_new}: expected a finite "
                "number of at least 0"
            )


def make_topology(layout: CanvasLayout, options: TopologyOptions) -> CanvasTopology:
    """The graft's edges under a kind of topology.

    Args:
        layout: from `graft_layout`.
        options: the kind, and what it needs.

    Raises:
        ValueError: the layout lacks a region that the kind needs, or an edge by which text or
            visual read is of a kind that frozen blocks cannot honour.
    """
    weight = options.backbone_reads_new
    if options.kind == "dense" and options.backbone == "own":
        return graft_topology(layout, backbone_reads_new=weight)
    # random_matched is matched in what the kind governs, so that what runs has as many pairs.
    pairs = itertools.product(layout.regions, repeat=2)
    governed = [pair for pair in pairs if _governed(*pair, options)]
    edges = []
    for edge in declared_topology(_canvas(layout), options, governed=governed).connections:
        if not _governed(edge.src, edge.dst, options):
            continue
        if edge.src in BACKBONE_REGIONS and edge.dst not in BACKBONE_REGIONS:
            edge = dataclasses.replace(edge, weight=edge.weight * weight)
        if edge.weight:
            edges.append(edge)
    if options.backbone == "own":
        edges = [*(Connection(s, d) for s in BACKBONE_REGIONS for d in BACKBONE_REGIONS), *edges]
    topology = CanvasTopology(tuple(edges))
    for edge in topology.connections:
        kind = topology.resolve_fn(edge, layout)
        if edge.src in BACKBONE_REGIONS and kind not in SOFTMAX_KINDS:
            raise ValueError(
                f"{edge}: kind {kind!r}, but the backbone's blocks "
                f"know softmax attention alone ({', '.join(SOFTMAX_KINDS)}); expected "
                "topology.backbone = own with topology.backbone_reads_new = 0, or another kind"
            )
    return topology


def _governed(src: str, dst: str, options: TopologyOptions) -> bool:
    """Whether the kind says what one region reads of another."""
    if src not in BACKBONE_REGIONS:
        return True
    if dst in BACKBONE_REGIONS:
        return options.backbone == "declared"
    return options.backbone_reads_new > 0


def _canvas(layout: CanvasLayout) -> StreamedLayout:
    """The layout with its streams, the backbone's first, each of the regions that are there."""
    goal = [(GOAL,)] if GOAL in layout.regions else []
    found = [*_STREAMS, *camera_regions(layout).values(), *goal]
    found = [tuple(name for name in stream if name in layout.regions) for stream in found]
    return StreamedLayout(
        layout,
        streams=tuple(stream for stream in found if stream),
        body=_VECTORS,
        thought=THOUGHT,
        more_thought="canvas.thought_cells > 0",
    )
