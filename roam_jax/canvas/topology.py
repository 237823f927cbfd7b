"""Which region reads which, and when: attention topology as declared data.

A `Connection` lets the queries of region `src` read the keys and values of region `dst`, at all
times or at relative frame offsets. A topology is the union of its connections; where several give
the same pair of cells, the largest weight counts. Semantics of offsets, periods and fills are those
of canvas-engineering 0.5.0 (`connectivity.py`).
"""

from __future__ import annotations

import dataclasses
import enum
import itertools
import math

import numpy as np

from roam_jax.canvas.layout import CanvasLayout, whole_number
from roam_jax.canvas.segments import SegmentTable
from roam_jax.spelling import check_choice

# Edge kinds by canvas-engineering's names. Attention is softmax attention, and inside a CogVideoX
# its own is nothing else; edges of kind `none` are declared but disabled.
SOFTMAX_KINDS = ("cross_attention", "cogvideox")
NONE_KIND = "none"
# Interpolation beyond order 1 reads nothing where all shares together are below this: as far away
# as that, canvas-engineering's edge is gone too.
NEGLIGIBLE_SHARE = 1e-12


class TemporalFill(enum.StrEnum):
    """What a query with an offset reads where `dst` has no cell at the wanted real frame."""

    DROP = "drop"  # nothing
    HOLD = "hold"  # the most recent earlier frame
    INTERPOLATE = "interpolate"  # frames around it, weighted by inverse distance


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

    Raises:
        ValueError: a value is of a wrong type, out of range, or no such fill.
    """

    src: str
    dst: str
    weight: float = 1.0
    t_src: int | None = None
    t_dst: int | None = None
    temporal_fill: TemporalFill = TemporalFill.HOLD
    interpolation_order: int = 1
    fn: str | None = None

    def __post_init__(self):
        edge = f"connection {self.src} -> {self.dst}"
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
        cls, regions: list[str], *, temporal_fill: TemporalFill = TemporalFill.HOLD
    ) -> CanvasTopology:
        """Every region reads itself at the same frame and all regions at the frame before."""
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

    def segment_table(self, layout: CanvasLayout) -> tuple[SegmentTable, np.ndarray]:
        """The topology on one layout, for the layout's tokens in region order.

        Edges of kind `none` are dropped first.

        Returns:
            The table over all tokens, and their flat canvas indices (N,), both in the order
            region by region as the layout declares them.

        Raises:
            ValueError: a connection names an unknown region, or a kind that is not softmax
                attention.
        """
        for name in sorted(self.regions):
            layout.region_spec(name)
        return _segment_table(tuple(e for e in self.connections if self._runs(e, layout)), layout)

    def to_attention_mask(self, layout: CanvasLayout) -> np.ndarray:
        """(N, N) float32 edge weights in flat canvas order, 0 where no edge allows the pair.

        The oracle, and what canvas-engineering calls the mask: kinds are ignored, so that an edge
        of kind `none` shows. Attention itself runs on the segment table and never builds it.
        """
        table, cells = _segment_table(self.connections, layout)
        weights = np.exp(table.log_weight)
        mask = np.zeros((layout.num_positions,) * 2, np.float32)
        mask[np.ix_(cells, cells)] = weights[table.segments[:, None], table.segments[None, :]]
        return mask

    def _runs(self, edge: Connection, layout: CanvasLayout) -> bool:
        kind = self.resolve_fn(edge, layout)
        if kind not in (*SOFTMAX_KINDS, NONE_KIND):
            raise ValueError(
                f"connection {edge.src} -> {edge.dst}: kind {kind!r} cannot be run, expected one "
                f"of {', '.join((*SOFTMAX_KINDS, NONE_KIND))}"
            )
        return kind != NONE_KIND


def frame_weights(edges: tuple[Connection, ...], layout: CanvasLayout) -> np.ndarray:
    """(segments, segments) float64 edge weights, row = query segment, 0 = no edge.

    A segment is one (region, canvas frame) with tokens, in the layout's order of regions. Kinds are
    ignored.

    Raises:
        ValueError: a connection names an unknown region.
    """
    segment_of = _segment_numbers(layout)
    weight = np.zeros((len(segment_of), len(segment_of)), np.float64)
    for edge in edges:
        for src_t, dst_t, value in _frame_pairs(edge, layout):
            pair = segment_of[edge.src, src_t], segment_of[edge.dst, dst_t]
            weight[pair] = max(weight[pair], value)
    return weight


def _segment_numbers(layout: CanvasLayout) -> dict[tuple[str, int], int]:
    keys = [(name, t) for name, spec in layout.regions.items() for t in spec.frames]
    return {key: number for number, key in enumerate(keys)}


def _segment_table(
    edges: tuple[Connection, ...], layout: CanvasLayout
) -> tuple[SegmentTable, np.ndarray]:
    segment_of = _segment_numbers(layout)
    indices = [layout.region_indices(name) for name in layout.regions]
    area = layout.H * layout.W
    segments = [
        np.array([segment_of[name, t] for t in cells // area], np.int32)
        for name, cells in zip(layout.regions, indices, strict=True)
    ]
    with np.errstate(divide="ignore"):
        log_weight = np.log(frame_weights(edges, layout)).astype(np.float32)
    empty = np.zeros(0, np.int64)
    table = SegmentTable(np.concatenate([*segments, empty]).astype(np.int32), log_weight)
    return table, np.concatenate([*indices, empty])


def _frame_pairs(edge: Connection, layout: CanvasLayout):
    """(canvas frame of src, canvas frame of dst, weight) of one connection."""
    src, dst = layout.region_spec(edge.src), layout.region_spec(edge.dst)
    if edge.t_dst is None:
        # Each reference frame is in 0..T-1, so an offset of src may put frames out of reach.
        offset = edge.t_src or 0
        sources = [t for t in src.frames if edge.t_src is None or 0 <= t - offset < layout.T]
        yield from ((s, d, edge.weight) for s in sources for d in dst.frames)
        return
    for reference in range(layout.T):
        if edge.t_src is None:
            sources, period = list(src.frames), 1
        else:
            sources = [t for t in (reference + edge.t_src,) if t in src.frames]
            period = src.period
        wanted = (reference + edge.t_dst) * period
        for d, share in _resolve_fill(edge, dst, wanted):
            yield from ((s, d, share * edge.weight) for s in sources)


def _resolve_fill(edge: Connection, dst, wanted: int) -> list[tuple[int, float]]:
    """Canvas frames of `dst` read for the real frame `wanted`, with their shares."""
    frames = np.array(dst.frames)
    real = frames * dst.period
    if wanted in real:
        return [(wanted // dst.period, 1.0)]
    if edge.temporal_fill == TemporalFill.DROP:
        return []
    past, future = frames[real < wanted], frames[real > wanted]
    if edge.temporal_fill == TemporalFill.HOLD:
        return [(int(past[-1]), 1.0)] if len(past) else []
    if edge.interpolation_order == 1:
        if len(past) and len(future):
            before, after = int(past[-1]), int(future[0])
            to_before, to_after = wanted - before * dst.period, after * dst.period - wanted
            span = to_before + to_after
            return [(before, to_after / span), (after, to_before / span)]
        nearest = past[-1:] if len(past) else future[:1]
        return [(int(t), 1.0) for t in nearest]
    distance = np.abs(real - wanted).astype(np.float64)
    order = np.argsort(distance, kind="stable")[: edge.interpolation_order + 1]
    share = 1.0 / distance[order] ** edge.interpolation_order
    if share.sum() < NEGLIGIBLE_SHARE:
        return []
    return [(int(frames[i]), float(s)) for i, s in zip(order, share / share.sum(), strict=True)]
