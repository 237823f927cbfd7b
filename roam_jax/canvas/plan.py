"""A topology compiled for one layout: what attention runs, known before any array is there.

Softmax edges become stacks of tiles over windows of keys (`canvas/tiles.py`); every edge of another
kind becomes groups of queries over the cells that it reads. The heart is the table of segments, one
(region, canvas frame) each, so that no array grows with the square of the number of cells.

By this rule kinds mix: the softmax edges of a query act as one joint masked softmax; every other
edge gives one output; these outputs are averaged, each weighted by its edge's weight, the joint
softmax by the sum of the weights of the softmax edges that give the query a key. Where all edges
are softmax this is masked softmax. (canvas-engineering averages over all edges, softmax or not.)
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence

import numpy as np

from roam_jax.canvas.groups import TILE_COST
from roam_jax.canvas.kinds import NONE_KIND, SOFTMAX_KINDS, check_kind
from roam_jax.canvas.layout import CanvasLayout
from roam_jax.canvas.segments import SegmentTable
from roam_jax.canvas.temporal_topologies import real_frames
from roam_jax.canvas.tiles import KEY_CHUNK, TileStack, tile_stacks
from roam_jax.canvas.topology import CanvasTopology, Connection, empty_edges, frame_weights

# Time of a score under a gathered mask, in scores without one, and the rows of its tiles.
MASKED_COST, DENSE_ROWS = 5, 256


@dataclasses.dataclass(frozen=True, eq=False)
class CellStack:
    """G groups of Q queries that read the same M keys each.

    Args:
        query_cells: (G, Q) int32, places in the sequence of queries.
        key_cells: (G, M) int32, places in the sequence of keys, rising.
        places: (G, Q) int32, of each query in its group; a slice may lack some of the group.
        size: queries of a whole group.
    """

    query_cells: np.ndarray
    key_cells: np.ndarray
    places: np.ndarray
    size: int


@dataclasses.dataclass(frozen=True, eq=False)
class EdgePlan:
    """One edge of a kind other than softmax.

    Args:
        kind: from `kinds.OTHER_KINDS`.
        index: of the connection in its topology.
        src, dst: the regions.
        stacks: its groups, by shape.
    """

    kind: str
    index: int
    src: str
    dst: str
    stacks: tuple[CellStack, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class AttentionPlan:
    """What attention runs for a topology on a layout; static, equal and hashed by content.

    Args:
        table: segments of all cells and the log weights of the softmax edges.
        stacks: tiles of the softmax edges; none where dense attention under a mask is cheaper.
        edges: the edges of other kinds.
        weights: (1 + edges, segments) float64, what each output counts for a query of a segment
            before they are made to sum to 1: the joint softmax, then each of `edges`.
        orders: of the segments beside their own, for kernels that walk blocks of tokens: by real
            time.
    """

    table: SegmentTable
    stacks: tuple[TileStack, ...] | None
    edges: tuple[EdgePlan, ...]
    weights: np.ndarray
    orders: tuple[tuple[int, ...], ...] = ()

    @property
    def is_dense(self) -> bool:
        """Whether all scores are computed, under a mask."""
        return self.stacks is None

    @property
    def is_free(self) -> bool:
        """Whether every query reads every key alike, by softmax."""
        rows, columns = np.unique(self.table.query_segments), np.unique(self.table.segments)
        return not self.edges and not self.table.log_weight[np.ix_(rows, columns)].any()

    @property
    def query_cells(self) -> int:
        """Length of the sequence of queries."""
        return len(self.table.query_segments)

    @property
    def key_cells(self) -> int:
        """Length of the sequence of keys."""
        return self.table.cells

    @property
    def pairs(self) -> int:
        """Pairs of cells that a softmax edge allows."""
        return self.table.pairs

    @property
    def scores(self) -> int:
        """Scores that one head computes for the softmax edges."""
        if self.stacks is None:
            return self.query_cells * self.key_cells
        return sum(stack.scores for stack in self.stacks)

    @functools.cached_property
    def shares(self) -> np.ndarray:
        """(1 + edges, N) float32 by which outputs are averaged; 0 where a query has no key."""
        total = self.weights.sum(axis=0)
        shares = self.weights / np.where(total > 0, total, 1)
        return shares[:, self.table.query_segments].astype(np.float32)

    def flops(self, *, heads: int, width: int, batch: int = 1) -> int:
        """Of the softmax edges' matrix products in one forward pass; a multiply-add is 2.

        Args:
            heads: number of heads.
            width: of a head.
            batch: batch size.
        """
        return 4 * batch * heads * width * self.scores

    def score_bytes(self, *, heads: int, batch: int = 1) -> int:
        """Of the float32 scores that one step of the loops computes, at most.

        Args:
            heads: number of heads.
            batch: batch size.
        """
        heads *= batch
        if self.stacks is None:
            return 4 * heads * min(self.query_cells, DENSE_ROWS) * self.key_cells
        steps = [
            math.prod(stack.together(heads)) * stack.rows * min(stack.keys, KEY_CHUNK)
            for stack in self.stacks
        ]
        return 4 * max(steps, default=0)

    @functools.cached_property
    def _content(self) -> tuple:
        edges = tuple(
            (edge.kind, edge.index, *(x for s in edge.stacks for x in (s.size, *_bytes(s))))
            for edge in self.edges
        )
        return self.table, self.is_dense, edges, self.weights.tobytes(), self.orders

    def __eq__(self, other: object) -> bool:
        return isinstance(other, AttentionPlan) and self._content == other._content

    def __hash__(self) -> int:
        return hash(self._content)


def _bytes(stack: CellStack) -> tuple[bytes, ...]:
    return tuple(x.tobytes() for x in (stack.query_cells, stack.key_cells, stack.places))


def compile_plan(
    layout: CanvasLayout,
    topology: CanvasTopology,
    *,
    queries: Sequence[int] | None = None,
    keys: Sequence[int] | None = None,
) -> AttentionPlan:
    """Compiles a topology for the tokens of a layout, or for some of its segments.

    Sequences are in the layout's order: region by region as declared, each region row by row.

    Args:
        layout: the canvas.
        topology: its edges; those of kind `none` and of weight 0 are dropped first.
        queries, keys: numbers of the segments whose cells are queries and keys, rising; None = all.

    Raises:
        ValueError: an edge names an unknown region, is of a kind that cannot run, or has offsets
            that match no frame of this layout (`CanvasTopology.matching` leaves such edges out), or
            there is no segment of a number.
    """
    for name in sorted(topology.regions):
        layout.region_spec(name)
    for edge in empty_edges(topology, layout):
        raise ValueError(
            f"{edge}: offsets t_src = {edge.t_src}, t_dst = "
            f"{edge.t_dst} match no frame of the layout; topology.matching(layout) leaves such "
            "edges out"
        )
    softmax, others = _by_kind(layout, topology)
    whole, _ = CanvasTopology(tuple(softmax)).segment_table(layout)
    cells = [_kept("queries", whole, queries), _kept("keys", whole, keys)]
    same = queries is None and keys is None
    table = SegmentTable(cells[1], whole.log_weight, None if same else cells[0])
    weights = np.zeros((1 + len(others), len(whole.log_weight)))
    if others:
        for edge in softmax:
            weights[0] += edge.weight * _readers(edge, layout)
    else:
        weights[0] = np.isfinite(whole.log_weight).any(axis=1)
    edges = []
    for row, (index, edge) in enumerate(others, start=1):
        read = frame_weights((edge,), layout) > 0
        weights[row] = edge.weight * read.any(axis=1)
        kind = topology.resolve_fn(edge, layout)
        edges.append(
            EdgePlan(kind, index, edge.src, edge.dst, _cell_stacks(read, whole.segments, *cells))
        )
    by_time = np.argsort(real_frames(layout), kind="stable")
    stacks = chosen_stacks(table)
    return AttentionPlan(table, stacks, tuple(edges), weights, (tuple(by_time.tolist()),))


def _by_kind(
    layout: CanvasLayout, topology: CanvasTopology
) -> tuple[list[Connection], list[tuple[int, Connection]]]:
    """The softmax edges, and the others with their numbers; disabled ones are left out."""
    softmax, others = [], []
    for index, edge in enumerate(topology.connections):
        kind = topology.resolve_fn(edge, layout)
        check_kind(str(edge), kind)
        if kind == NONE_KIND or edge.weight == 0:
            continue
        if kind in SOFTMAX_KINDS:
            softmax.append(edge)
        else:
            others.append((index, edge))
    return softmax, others


def _kept(name: str, whole: SegmentTable, chosen: Sequence[int] | None) -> np.ndarray:
    """Segments of the cells that are kept; a number that no segment has is refused."""
    if chosen is None:
        return whole.segments
    count = len(whole.log_weight)
    for number in chosen:
        if not 0 <= number < count:
            raise ValueError(f"{name}: no segment {number}: the layout has {count} segments")
    return whole.segments[np.isin(whole.segments, list(chosen))]


def _readers(edge: Connection, layout: CanvasLayout) -> np.ndarray:
    """(segments,) bool, which queries an edge gives a key."""
    return (frame_weights((edge,), layout) > 0).any(axis=1)


def _cell_stacks(
    read: np.ndarray, whole: np.ndarray, queries: np.ndarray, keys: np.ndarray
) -> tuple[CellStack, ...]:
    """Queries that read the same cells together, groups of equal shape in one stack.

    Args:
        read: (segments, segments) bool, row = query segment.
        whole: segments of all cells of the layout.
        queries, keys: segments of the cells that are kept.
    """
    groups: dict[bytes, list[int]] = {}
    for segment in np.flatnonzero(read.any(axis=1)).tolist():
        groups.setdefault(read[segment].tobytes(), []).append(segment)
    shapes: dict[tuple[int, int, int], list[tuple[np.ndarray, ...]]] = {}
    for members in groups.values():
        group = whole[np.isin(whole, members)]
        rows = np.flatnonzero(np.isin(queries, members))
        columns = np.flatnonzero(read[members[0]][keys])
        if rows.size and columns.size:
            places = np.flatnonzero(np.isin(group, queries))
            shape = rows.size, columns.size, group.size
            shapes.setdefault(shape, []).append((rows, columns, places))
    return tuple(
        CellStack(*(np.stack(x).astype(np.int32) for x in zip(*stack, strict=True)), size)
        for (_, _, size), stack in shapes.items()
    )


def chosen_stacks(table: SegmentTable) -> tuple[TileStack, ...] | None:
    """The cheaper of tiles and of dense attention under a mask, which is None.

    Args:
        table: of the softmax edges.
    """
    stacks = tile_stacks(table)
    if stacks is None:
        return None
    rows, keys = len(table.query_segments), table.cells
    tiles = -(-rows // DENSE_ROWS)
    dense = rows * keys * MASKED_COST + tiles * TILE_COST
    return stacks if sum(stack.cost for stack in stacks) < dense else None
