"""Topologies of the study on a graft's canvas.

A kind of topology says how the streams of the canvas meet. Text and video are one stream; actions,
robot state, reward, each further camera and the goal are one each; thought cells are what streams
meet in. Two things stand apart from the kind. Text and video attend to each other as the backbone
was trained, unless the kind is to govern them as well. And what the backbone reads of the new
regions has a weight of its own, 0 by default, with which the grafted model starts as its backbone.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable

from roam_jax.canvas import topologies
from roam_jax.canvas.kinds import SOFTMAX_KINDS
from roam_jax.canvas.layout import CanvasLayout
from roam_jax.canvas.schema import CanvasSchema
from roam_jax.canvas.topology import CanvasTopology, Connection, TemporalFill
from roam_jax.cogvideox.graft_canvas import (
    BACKBONE_REGIONS,
    GOAL,
    THOUGHT,
    camera_regions,
    graft_topology,
)
from roam_jax.spelling import check_choice

# Who governs the pairs of text and video.
BACKBONES = ("own", "declared")
_STREAMS = (
    BACKBONE_REGIONS,
    ("past_action", "future_action"),
    ("observed_proprio", "future_proprio"),
    ("observed_reward", "future_reward"),
)
_VECTORS = {name for stream in _STREAMS[1:] for name in stream}


@dataclasses.dataclass(frozen=True)
class TopologyOptions:
    """The config's section `topology`.

    Args:
        kind: one of `KINDS`.
        backbone: own: text and visual attend to each other densely, as the backbone was trained;
            declared: as the kind has it.
        backbone_reads_new: weight of the kind's edges by which text and visual read new regions.
        window: latent frames that `causal` looks back (0 = all), and that `local_window` and
            `local_plus_sparse_global` look both ways.
        links: far segments of each segment, for `local_plus_sparse_global`.
        matches: kind whose number of pairs `random_matched` takes; neither itself nor `schema`.
        temporal_fill: what a slower region gives between its frames, in `causal` and
            `causal_temporal`.
        schema: path of a schema file with the topology, for the kind `schema`.
        seed: of what is drawn.

    Raises:
        ValueError: a value is out of range or unknown.
    """

    kind: str = "dense"
    backbone: str = "own"
    backbone_reads_new: float = 0.0
    window: int = 1
    links: int = 2
    matches: str = "central_thought"
    temporal_fill: str = "hold"
    schema: str = ""
    seed: int = 0

    def __post_init__(self):
        check_choice("topology.kind", self.kind, KINDS)
        check_choice("topology.backbone", self.backbone, BACKBONES)
        check_choice("topology.temporal_fill", self.temporal_fill, [f.value for f in TemporalFill])
        matched = [kind for kind in KINDS if kind not in ("random_matched", "schema")]
        check_choice("topology.matches", self.matches, matched)
        if not 0 <= self.backbone_reads_new < math.inf:
            raise ValueError(
                f"topology.backbone_reads_new = {self.backbone_reads_new}: expected a finite "
                "number of at least 0"
            )
        for name in ("window", "links"):
            if getattr(self, name) < 0:
                raise ValueError(f"topology.{name} = {getattr(self, name)}: expected at least 0")
        if (self.kind == "schema") != bool(self.schema):
            raise ValueError(
                f"topology.schema = {self.schema!r} with topology.kind = {self.kind!r}: expected a "
                "file with the kind schema, and with no other"
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
    edges = []
    for edge in _declared(layout, options.kind, options).connections:
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


def _streams(layout: CanvasLayout) -> list[tuple[str, ...]]:
    """Streams of the layout, the backbone's first, each of the regions that are there."""
    goal = [(GOAL,)] if GOAL in layout.regions else []
    found = [*_STREAMS, *camera_regions(layout).values(), *goal]
    found = [tuple(name for name in stream if name in layout.regions) for stream in found]
    return [stream for stream in found if stream]


def _declared(layout: CanvasLayout, kind: str, options: TopologyOptions) -> CanvasTopology:
    """A kind on all regions, whatever a backbone makes of it."""
    return KINDS[kind](layout, options)


def _thought(layout: CanvasLayout, kind: str) -> str:
    if THOUGHT not in layout.regions:
        raise ValueError(
            f"topology.kind = {kind!r} needs thought cells: expected canvas.thought_cells > 0"
        )
    return THOUGHT


def _dense(layout: CanvasLayout, options: TopologyOptions) -> CanvasTopology:
    return CanvasTopology.dense(list(layout.regions))


def _isolated(layout: CanvasLayout, options: TopologyOptions) -> CanvasTopology:
    return CanvasTopology.isolated(list(layout.regions))


def _hub_spoke(layout: CanvasLayout, options: TopologyOptions) -> CanvasTopology:
    hub = _thought(layout, "hub_spoke")
    return CanvasTopology.hub_spoke(hub, [name for name in layout.regions if name != hub])


def _causal_chain(layout: CanvasLayout, options: TopologyOptions) -> CanvasTopology:
    return CanvasTopology.causal_chain(list(layout.regions))


def _causal_temporal(layout: CanvasLayout, options: TopologyOptions) -> CanvasTopology:
    fill = TemporalFill(options.temporal_fill)
    names = list(layout.regions)
    return CanvasTopology.causal_temporal(names, temporal_fill=fill).matching(layout)


def _causal(layout: CanvasLayout, options: TopologyOptions) -> CanvasTopology:
    fill = TemporalFill(options.temporal_fill)
    return topologies.causal(layout, window=options.window or None, temporal_fill=fill)


def _central_thought(layout: CanvasLayout, options: TopologyOptions) -> CanvasTopology:
    thought = _thought(layout, "central_thought")
    return topologies.central_thought(layout, streams=_streams(layout), thought=thought)


def _cortical_hierarchy(layout: CanvasLayout, options: TopologyOptions) -> CanvasTopology:
    """Text, video, cameras and goal below; actions, state and reward; thought above.

    So what is learned reads the level below and the one above, though the backbone reads neither.
    """
    thought = _thought(layout, "cortical_hierarchy")
    seen, vectors = [], []
    for stream in _streams(layout):
        (vectors if stream[0] in _VECTORS else seen).extend(stream)
    levels = [level for level in (tuple(seen), tuple(vectors)) if level]
    return topologies.cortical_hierarchy(layout, levels=[*levels, (thought,)])


def _thalamic_relay(layout: CanvasLayout, options: TopologyOptions) -> CanvasTopology:
    relay = _thought(layout, "thalamic_relay")
    return topologies.thalamic_relay(layout, streams=_streams(layout), relay=relay)


def _multi_agent(layout: CanvasLayout, options: TopologyOptions) -> CanvasTopology:
    """Each view is an agent, text with the first; all other regions are one that reads them all."""
    views = {stream[0]: stream for stream in _streams(layout) if stream[0] not in _VECTORS}
    seen = {name for regions in views.values() for name in regions}
    body = tuple(name for name in layout.regions if name not in seen)
    if not body:
        raise ValueError(
            "topology.kind = 'multi_agent' needs a body beside text and views: expected actions, "
            "robot state, reward or thought cells on the canvas"
        )
    channels = [(mine, theirs) for mine in body for theirs in layout.regions if theirs in seen]
    return topologies.multi_agent(layout, agents={"body": body, **views}, channels=channels)


def _local_window(layout: CanvasLayout, options: TopologyOptions) -> CanvasTopology:
    return topologies.local_window(layout, frames=options.window)


def _local_plus_sparse_global(layout: CanvasLayout, options: TopologyOptions) -> CanvasTopology:
    return topologies.local_plus_sparse_global(
        layout, frames=options.window, links=options.links, seed=options.seed
    )


def _random_matched(layout: CanvasLayout, options: TopologyOptions) -> CanvasTopology:
    """Matched in what the kind governs, so that what runs has as many pairs."""
    matched = _declared(layout, options.matches, options)
    pairs = itertools.product(layout.regions, repeat=2)
    governed = [pair for pair in pairs if _governed(*pair, options)]
    return topologies.random_matched(matched, layout, seed=options.seed, governed=governed)


def _schema(layout: CanvasLayout, options: TopologyOptions) -> CanvasTopology:
    """Edges of a file, each with the kind that it has there."""
    schema = CanvasSchema.from_json(options.schema)
    topology = schema.topology
    if topology is None:
        raise ValueError(f"topology.schema = {options.schema!r}: the file has no topology")
    edges = topology.connections
    kinds = [topology.resolve_fn(edge, schema.layout) for edge in edges]
    return CanvasTopology(
        tuple(dataclasses.replace(e, fn=kind) for e, kind in zip(edges, kinds, strict=True))
    )


# Every kind that `topology.kind` may name; `schema` takes the edges of a file.
KINDS: dict[str, Callable[[CanvasLayout, TopologyOptions], CanvasTopology]] = {
    "dense": _dense,
    "isolated": _isolated,
    "hub_spoke": _hub_spoke,
    "causal_chain": _causal_chain,
    "causal_temporal": _causal_temporal,
    "causal": _causal,
    "central_thought": _central_thought,
    "cortical_hierarchy": _cortical_hierarchy,
    "thalamic_relay": _thalamic_relay,
    "multi_agent": _multi_agent,
    "local_window": _local_window,
    "local_plus_sparse_global": _local_plus_sparse_global,
    "random_matched": _random_matched,
    "schema": _schema,
}
