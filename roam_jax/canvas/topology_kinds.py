"""Kinds of topology that a config may name, on any layout whose regions are grouped in streams.

A kind says how the streams of a canvas meet: each region alone, all with all, through time, or in
thought cells. What a layout is for stays outside: a graft keeps its backbone's own edges apart
(`cogvideox/graft_topology.py`), a canvas model from scratch takes a kind as it is.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Collection

from roam_jax.canvas import topologies
from roam_jax.canvas.layout import CanvasLayout
from roam_jax.canvas.schema import CanvasSchema
from roam_jax.canvas.topology import CanvasTopology, TemporalFill
from roam_jax.morphology import Morphology
from roam_jax.spelling import check_choice

# Kinds that random_matched cannot match: itself, and what has no rule of its own.
_UNMATCHED = ("random_matched", "schema")


@dataclasses.dataclass(frozen=True)
class KindOptions:
    """What kinds need beside a layout; leaves of the config's section `topology`.

    Args:
        kind: one of `KINDS`.
        window: canvas frames that `causal` looks back (0 = all), and that `local_window` and
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
    window: int = 1
    links: int = 2
    matches: str = "central_thought"
    temporal_fill: str = "hold"
    schema: str = ""
    seed: int = 0

    def __post_init__(self):
        check_choice("topology.kind", self.kind, KINDS)
        check_choice("topology.temporal_fill", self.temporal_fill, [f.value for f in TemporalFill])
        check_choice("topology.matches", self.matches, [k for k in KINDS if k not in _UNMATCHED])
        for name in ("window", "links"):
            if getattr(self, name) < 0:
                raise ValueError(f"topology.{name} = {getattr(self, name)}: expected at least 0")
        if (self.kind == "schema") != bool(self.schema):
            raise ValueError(
                f"topology.schema = {self.schema!r} with topology.kind = {self.kind!r}: expected a "
                "file with the kind schema, and with no other"
            )


@dataclasses.dataclass(frozen=True)
class StreamedLayout:
    """A layout whose regions are grouped.

    Args:
        layout: the canvas.
        streams: its regions but `thought`, those that belong together in one group.
        body: regions of an agent's own numbers, such as actions and its state; the others are seen
            or read.
        thought: the region that streams meet in.
        more_thought: what gives a layout that region, for the message where it lacks it.
        morphology: whose joints have regions; None = of no body.
    """

    layout: CanvasLayout
    streams: tuple[tuple[str, ...], ...]
    body: frozenset[str]
    thought: str
    more_thought: str
    morphology: Morphology | None = None

    def require_thought(self, kind: str) -> str:
        """The region of thought cells.

        Raises:
            ValueError: the layout has none.
        """
        if self.thought not in self.layout.regions:
            raise ValueError(
                f"topology.kind = {kind!r} needs thought cells: expected {self.more_thought}"
            )
        return self.thought


def declared_topology(
    canvas: StreamedLayout,
    options: KindOptions,
    *,
    governed: Collection[tuple[str, str]] | None = None,
) -> CanvasTopology:
    """The edges of a kind.

    Args:
        canvas: the layout.
        options: the kind, and what it needs.
        governed: (src, dst) pairs of regions in which `random_matched` draws; None = all.

    Raises:
        ValueError: the layout lacks a region that the kind needs, or the schema file has no edges.
    """
    if options.kind == "random_matched":
        matched = KINDS[options.matches](canvas, options)
        pairs = list(itertools.product(canvas.layout.regions, repeat=2))
        return topologies.random_matched(
            matched,
            canvas.layout,
            seed=options.seed,
            governed=pairs if governed is None else list(governed),
        )
    return KINDS[options.kind](canvas, options)


def _dense(canvas: StreamedLayout, options: KindOptions) -> CanvasTopology:
    return CanvasTopology.dense(list(canvas.layout.regions))


def _isolated(canvas: StreamedLayout, options: KindOptions) -> CanvasTopology:
    return CanvasTopology.isolated(list(canvas.layout.regions))


def _hub_spoke(canvas: StreamedLayout, options: KindOptions) -> CanvasTopology:
    hub = canvas.require_thought("hub_spoke")
    return CanvasTopology.hub_spoke(hub, [name for name in canvas.layout.regions if name != hub])


def _causal_chain(canvas: StreamedLayout, options: KindOptions) -> CanvasTopology:
    return CanvasTopology.causal_chain(list(canvas.layout.regions))


def _causal_temporal(canvas: StreamedLayout, options: KindOptions) -> CanvasTopology:
    fill, names = TemporalFill(options.temporal_fill), list(canvas.layout.regions)
    return CanvasTopology.causal_temporal(names, temporal_fill=fill).matching(canvas.layout)


def _causal(canvas: StreamedLayout, options: KindOptions) -> CanvasTopology:
    fill = TemporalFill(options.temporal_fill)
    return topologies.causal(canvas.layout, window=options.window or None, temporal_fill=fill)


def _central_thought(canvas: StreamedLayout, options: KindOptions) -> CanvasTopology:
    thought = canvas.require_thought("central_thought")
    return topologies.central_thought(canvas.layout, streams=list(canvas.streams), thought=thought)


def _cortical_hierarchy(canvas: StreamedLayout, options: KindOptions) -> CanvasTopology:
    """What is seen and read below; the body's numbers; thought above.

    So what is learned reads the level below and the one above, though the backbone of a graft reads
    neither.
    """
    thought = canvas.require_thought("cortical_hierarchy")
    seen, body = [], []
    for stream in canvas.streams:
        (body if stream[0] in canvas.body else seen).extend(stream)
    levels = [level for level in (tuple(seen), tuple(body)) if level]
    return topologies.cortical_hierarchy(canvas.layout, levels=[*levels, (thought,)])


def _thalamic_relay(canvas: StreamedLayout, options: KindOptions) -> CanvasTopology:
    relay = canvas.require_thought("thalamic_relay")
    return topologies.thalamic_relay(canvas.layout, streams=list(canvas.streams), relay=relay)


def _multi_agent(canvas: StreamedLayout, options: KindOptions) -> CanvasTopology:
    """Each stream that is seen or read is an agent; all other regions are one that reads them."""
    views = {stream[0]: stream for stream in canvas.streams if stream[0] not in canvas.body}
    seen = {name for regions in views.values() for name in regions}
    body = tuple(name for name in canvas.layout.regions if name not in seen)
    if not body:
        raise ValueError(
            "topology.kind = 'multi_agent' needs a body beside text and views: expected actions, "
            "robot state, reward or thought cells on the canvas"
        )
    channels = [
        (mine, theirs) for mine in body for theirs in canvas.layout.regions if theirs in seen
    ]
    return topologies.multi_agent(canvas.layout, agents={"body": body, **views}, channels=channels)


def _kinematic_tree(canvas: StreamedLayout, options: KindOptions) -> CanvasTopology:
    if canvas.morphology is None:
        raise ValueError(
            "topology.kind = 'kinematic_tree' needs a body, whose joints have cells: expected "
            "train.task = 'clone'"
        )
    return topologies.kinematic_tree(canvas.layout, morphology=canvas.morphology)


def _local_window(canvas: StreamedLayout, options: KindOptions) -> CanvasTopology:
    return topologies.local_window(canvas.layout, frames=options.window)


def _local_plus_sparse_global(canvas: StreamedLayout, options: KindOptions) -> CanvasTopology:
    return topologies.local_plus_sparse_global(
        canvas.layout, frames=options.window, links=options.links, seed=options.seed
    )


def _schema(canvas: StreamedLayout, options: KindOptions) -> CanvasTopology:
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
KINDS: dict[str, Callable[[StreamedLayout, KindOptions], CanvasTopology]] = {
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
    "kinematic_tree": _kinematic_tree,
    "local_window": _local_window,
    "local_plus_sparse_global": _local_plus_sparse_global,
    "random_matched": declared_topology,
    "schema": _schema,
}
