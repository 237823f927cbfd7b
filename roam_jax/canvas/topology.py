"""Which region reads which, and when: attention topology as declared data.

A `Connection` lets the queries of region `src` read the keys and values of region `dst`, at all
times, at relative frame offsets, or in listed pairs of frames. A topology is the union of its
connections; where several give the same pair of cells, the largest weight counts. Semantics of
offsets, periods and fills are those of canvas-engineering 0.5.0 (`connectivity.py`).
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import numpy as np

from roam_jax.canvas.fills import FramePairs, TemporalFill, offset_pairs, require_causal_fill
from roam_jax.canvas.kinds import KINDS, NONE_KIND, SOFTMAX_KINDS, check_kind
from roam_jax.canvas.layout import CanvasLayout, whole_number
from roam_jax.canvas.segments import SegmentTable
from roam_jax.spelling import check_choice


@dataclasses.dataclass(frozen=True)
class Connection:
    """One edge: `src` queries read `dst` keys and values.

    Args:
        src, dst: region names.
        weight: edge weight, enters the softmax as log(weight); 0 is no edge.
        t_src, t_dst: frame offsets from a shared reference frame; None = all frames.
        temporal_fill: used where `t_dst` is given.
        interpolation_order: 1 = linear between neighbours; n = inverse distance to the power n
            over the n + 1 nearest frames.
        fn: edge kind; None = the `default_attn` of `src`.
        pairs: (canvas frame of src, canvas frame of dst), absolute, for all that the edge joins;
            without offsets then, and without fill. None = what the offsets say.

    Raises:
        ValueError: a value is of a wrong type, out of range, or no such fill; there are pairs
            beside offsets, none at all, or one twice.
    """

    src: str
    dst: str
    weight: float = 1.0
    t_src: int | None = None
    t_dst: int | None = None
    temporal_fill: TemporalFill = TemporalFill.HOLD
    interpolation_order: int = 1
    fn: str | None = None
    pairs: tuple[tuple[int, int], ...] | None = None

    def __post_init__(self):
        edge = str(self)
        if not 0 <= self.weight < math.inf:
            raise ValueError(f"{edge}: weight {self.weight}, expected a finite number, at least 0")
        for name in ("t_src", "t_dst", "interpolation_order"):
            value = getattr(self, name)
            if value is not None or name == "interpolation_order":
                object.__setattr__(self, name, whole_number(f"{edge}: {name}", value))
        if self.interpolation_order < 1:
            raise ValueError(
                f"{edge}: interpolation_order {self.interpolation_order}, expected at least 1"
            )
        check_choice(f"{edge}: temporal_fill", self.temporal_fill, [f.value for f in TemporalFill])
        object.__setattr__(self, "temporal_fill", TemporalFill(self.temporal_fill))
        if self.pairs is not None:
            if (self.t_src, self.t_dst) != (None, None):
                raise ValueError(
                    f"{edge}: pairs beside t_src = {self.t_src}, t_dst = {self.t_dst}: expected "
                    "one or the other"
                )
            object.__setattr__(self, "pairs", _checked_pairs(edge, self.pairs))

    def __str__(self) -> str:
        return f"connection {self.src} -> {self.dst}"


def _checked_pairs(edge: str, pairs: Any) -> tuple[tuple[int, int], ...]:
    """Pairs of frames in rising order, so that equal edges are equal."""
    checked = set()
    for pair in pairs:
        if len(pair) != 2:
            raise ValueError(f"{edge}: pairs: {pair}: expected (frame of src, frame of dst)")
        frames = tuple(whole_number(f"{edge}: pairs: {pair}: frame", frame) for frame in pair)
        if frames in checked:
            raise ValueError(f"{edge}: pairs: {frames} is given twice")
        checked.add(frames)
    if not checked:
        raise ValueError(f"{edge}: pairs {pairs}: expected at least one")
    return tuple(sorted(checked))


@dataclasses.dataclass(frozen=True)
class CanvasTopology:
    """The declared attention topology of a canvas."""

    connections: tuple[Connection, ...]

    def __post_init__(self):
        object.__setattr__(self, "connections", tuple(self.connections))

    @property
    def regions(self) -> set[str]:
        """All names that occur in a connection."""
        return {name for edge in self.connections for name in (edge.src, edge.dst)}

    @classmethod
    def dense(cls, regions: list[str]) -> CanvasTopology:
        """Every region reads every region."""
        return cls(tuple(Connection(s, d) for s in regions for d in regions))

    @classmethod
    def isolated(cls, regions: list[str]) -> CanvasTopology:
        """Every region reads itself alone."""
        return cls(tuple(Connection(r, r) for r in regions))

    @classmethod
    def hub_spoke(cls, hub: str, spokes: list[str], *, bidirectional: bool = True):
        """The hub reads all spokes; with `bidirectional`, spokes read the hub."""
        edges = [Connection(r, r) for r in [hub, *spokes]]
        edges += [Connection(hub, spoke) for spoke in spokes]
        edges += [Connection(spoke, hub) for spoke in spokes if bidirectional]
        return cls(tuple(edges))

    @classmethod
    def causal_chain(cls, regions: list[str]) -> CanvasTopology:
        """Every region reads itself and the one before it in the list."""
        edges = [Connection(r, r) for r in regions]
        edges += [Connection(later, earlier) for earlier, later in itertools.pairwise(regions)]
        return cls(tuple(edges))

    @classmethod
    def causal_temporal(
        cls, regions: list[str], *, temporal_fill: TemporalFill | str = TemporalFill.HOLD
    ) -> CanvasTopology:
        """Every region reads itself at the same frame and all regions at the frame before.

        Raises:
            ValueError: the fill is `interpolate`, which looks ahead, or there is no such fill.
        """
        require_causal_fill(temporal_fill)
        same = [Connection(r, r, t_src=0, t_dst=0, temporal_fill=temporal_fill) for r in regions]
        before = [
            Connection(s, d, t_src=0, t_dst=-1, temporal_fill=temporal_fill)
            for s in regions
            for d in regions
        ]
        return cls(tuple(same + before))

    def resolve_fn(self, edge: Connection, layout: CanvasLayout) -> str:
        """Kind of an edge: its own, or its query region's default."""
        return layout.region_spec(edge.src).default_attn if edge.fn is None else edge.fn

    def matching(self, layout: CanvasLayout) -> CanvasTopology:
        """The topology without edges whose offsets match no frame of the layout."""
        return CanvasTopology(tuple(e for e in self.connections if _matches(e, layout)))

    def reads(self, layout: CanvasLayout) -> np.ndarray:
        """(segments, segments) bool: whether the row's segment reads the column's.

        By edges of any kind; those of kind `none` and of weight 0 read nothing.

        Raises:
            ValueError: a connection names an unknown region or kind.
        """
        self._require_regions(layout)
        running = []
        for edge in self.connections:
            kind = self.resolve_fn(edge, layout)
            if kind not in KINDS:
                check_kind(str(edge), kind)
            if kind != NONE_KIND:
                running.append(edge)
        return frame_weights(tuple(running), layout) > 0

    def segment_table(self, layout: CanvasLayout) -> tuple[SegmentTable, np.ndarray]:
        """The topology on one layout, for the layout's tokens in region order.

        Edges of kind `none` are dropped first.

        Returns:
            The table over all tokens, and their flat canvas indices (N,), both in the order
            region by region as the layout declares them.

        Raises:
            ValueError: a connection names an unknown region, a kind that is not softmax
                attention, or a frame without tokens.
        """
        self._require_regions(layout)
        return _segment_table(tuple(e for e in self.connections if self._runs(e, layout)), layout)

    def to_attention_mask(self, layout: CanvasLayout) -> np.ndarray:
        """(N, N) float32 edge weights in flat canvas order, 0 where no edge allows the pair.

        The oracle, and what canvas-engineering calls the mask: kinds are ignored, so that an edge
        of kind `none` shows. Attention itself runs on the segment table and never builds it.
        """
        table, cells = _segment_table(self.connections, layout)
        # One more segment, of the cells that carry no token, which neither reads nor is read.
        weights = np.pad(np.exp(table.log_weight), (0, 1))
        segments = np.full(layout.num_positions, len(table.log_weight))
        segments[cells] = table.segments
        # Columns first: what is left is a copy of whole rows.
        return weights[:, segments][segments]

    def _require_regions(self, layout: CanvasLayout) -> None:
        for name in sorted(self.regions):
            layout.region_spec(name)

    def _runs(self, edge: Connection, layout: CanvasLayout) -> bool:
        kind = self.resolve_fn(edge, layout)
        check_kind(str(edge), kind)
        if kind not in (*SOFTMAX_KINDS, NONE_KIND):
            raise ValueError(
                f"{edge}: kind {kind!r} cannot be run as a mask, expected one of "
                f"{', '.join((*SOFTMAX_KINDS, NONE_KIND))}"
            )
        return kind != NONE_KIND


def empty_edges(topology: CanvasTopology, layout: CanvasLayout) -> tuple[Connection, ...]:
    """Connections that are meant to read something and match no frame of the layout.

    Those of weight 0 and of kind `none` are not meant to.
    """
    return tuple(
        edge
        for edge in topology.connections
        if edge.weight > 0
        and topology.resolve_fn(edge, layout) != NONE_KIND
        and not _matches(edge, layout)
    )


def _matches(edge: Connection, layout: CanvasLayout) -> bool:
    """Whether the edge joins any frames, whatever its weight."""
    src, dst = (layout.region_spec(name).frames for name in (edge.src, edge.dst))
    return len(_joined(edge, src, dst, layout)[0]) > 0


def segment_keys(layout: CanvasLayout) -> tuple[tuple[str, int], ...]:
    """(region, canvas frame) of each segment, in the order of their numbers."""
    return tuple((name, t) for name, spec in layout.regions.items() for t in spec.frames)


def segment_sizes(layout: CanvasLayout) -> np.ndarray:
    """(segments,) int64, tokens of each segment; together they are the sequence of tokens."""
    area = layout.H * layout.W
    counts = [
        np.bincount(layout.region_indices(name) // area - spec.bounds[0])
        for name, spec in layout.regions.items()
    ]
    return np.concatenate([*counts, np.zeros(0, np.int64)])


def frame_weights(edges: tuple[Connection, ...], layout: CanvasLayout) -> np.ndarray:
    """(segments, segments) float64 edge weights, row = query segment, 0 = no edge.

    A segment is one (region, canvas frame) with tokens, in the layout's order of regions. Kinds are
    ignored.

    Raises:
        ValueError: a connection names an unknown region, or a frame in which it has no tokens.
    """
    frames = {name: spec.frames for name, spec in layout.regions.items()}
    # Number of a region's canvas frame 0, whether it has one or not.
    zero, count = {}, 0
    for name, times in frames.items():
        zero[name] = count - times[0]
        count += len(times)
    places, values = [np.zeros(0, np.int64)], [np.zeros(0)]
    for edge in edges:
        for name in (edge.src, edge.dst):
            layout.region_spec(name)
        src_t, dst_t, share = _joined(edge, frames[edge.src], frames[edge.dst], layout)
        places.append((src_t + zero[edge.src]) * count + dst_t + zero[edge.dst])
        values.append(share * edge.weight)
    weight = np.zeros(count * count)
    np.maximum.at(weight, np.concatenate(places), np.concatenate(values))
    return weight.reshape(count, count)


def _segment_table(
    edges: tuple[Connection, ...], layout: CanvasLayout
) -> tuple[SegmentTable, np.ndarray]:
    sizes = segment_sizes(layout)
    segments = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
    indices = [layout.region_indices(name) for name in layout.regions]
    with np.errstate(divide="ignore"):
        log_weight = np.log(frame_weights(edges, layout)).astype(np.float32)
    return SegmentTable(segments, log_weight), np.concatenate([*indices, np.zeros(0, np.int64)])


def _joined(edge: Connection, src: range, dst: range, layout: CanvasLayout) -> FramePairs:
    """What an edge joins, given the canvas frames of its two regions; a pair may repeat."""
    if edge.pairs is None:
        periods = layout.regions[edge.src].period, layout.regions[edge.dst].period
        return offset_pairs(
            src, dst, periods, layout.T, (edge.t_src, edge.t_dst),
            (edge.temporal_fill, edge.interpolation_order),
        )  # fmt: skip
    src_t, dst_t = np.array(edge.pairs).T
    for name, frames, listed in ((edge.src, src, src_t), (edge.dst, dst, dst_t)):
        for frame in listed[~np.isin(listed, frames)]:
            raise ValueError(
                f"{edge}: pairs: region {name!r} has no tokens in canvas frame {frame}: expected "
                f"{frames[0]}..{frames[-1]}"
            )
    return src_t, dst_t, np.ones(len(src_t))
