"""Which blocks of an attention matrix a topology uses: what GPU and TPU kernels walk.

Queries and keys are cut into blocks of equal size; a block of pairs is live when the topology
allows one of them. The order of the tokens decides how many are live, so orders are tried and the
live blocks counted, from the segment table alone: arrays of blocks x segments and of blocks x
blocks, never of cells x cells.

Source: the block lists of FlashAttention's block-sparse form (Dao et al. 2022, arXiv:2205.14135,
section 3.3).
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Sequence

import numpy as np

from roam_jax.canvas.segments import SegmentTable


@dataclasses.dataclass(frozen=True, eq=False)
class BlockLists:
    """For each block of one side, the blocks of the other side that it meets.

    Args:
        live: (blocks, most) int32, numbers of the other side's blocks: the full ones, then the
            partial ones, then zeros that mean nothing.
        full: (blocks,) int32, how many of a row are full: every pair is allowed with weight 1.
        count: (blocks,) int32, how many of a row are live, full ones included.
    """

    live: np.ndarray
    full: np.ndarray
    count: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class LiveBlocks:
    """The live blocks of a table in the best order of tokens; equal and hashed by content.

    Args:
        block_q, block_k: queries and keys of a block.
        query_order, key_order: (N,) and (M,) int32, the place in the given sequence of every cell
            of the ordered one; None = as given.
        query_segments: (query blocks x block_q,) int32 in that order; cells that fill the last
            block are of the segment of the last cell.
        key_segments: (key blocks x block_k,) int32 in that order; cells that fill the last block
            are of a segment of their own, the last, which nothing reads.
        log_weight: (segments + 1, segments + 1) float32.
        keys_of: of each query block.
        queries_of: of each key block.
    """

    block_q: int
    block_k: int
    query_order: np.ndarray | None
    key_order: np.ndarray | None
    query_segments: np.ndarray
    key_segments: np.ndarray
    log_weight: np.ndarray
    keys_of: BlockLists
    queries_of: BlockLists

    @property
    def blocks(self) -> int:
        """Number of blocks of pairs, live or not."""
        return len(self.keys_of.count) * len(self.queries_of.count)

    @property
    def live(self) -> int:
        """Number of live blocks."""
        return int(self.keys_of.count.sum())

    @property
    def partial(self) -> int:
        """Number of live blocks that are not full."""
        return self.live - int(self.keys_of.full.sum())

    @functools.cached_property
    def _content(self) -> tuple:
        orders = (None if x is None else x.tobytes() for x in (self.query_order, self.key_order))
        arrays = (self.query_segments, self.key_segments, self.log_weight)
        # The lists follow from these.
        return self.block_q, self.block_k, *orders, *(x.tobytes() for x in arrays)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LiveBlocks) and self._content == other._content

    def __hash__(self) -> int:
        return hash(self._content)


def live_blocks(
    table: SegmentTable,
    *,
    block_q: int = 128,
    block_k: int = 128,
    orders: Sequence[Sequence[int]] = (),
) -> LiveBlocks:
    """Lists the live blocks of a table, in the order of tokens that has fewest.

    Tried for queries and for keys, each with each: the sequence as it is; segments that read (or
    are read by) the same segments next to each other; and `orders`. Cells of one segment stay in
    their order. Of equals the one with most full blocks, then the first.

    Args:
        table: which cells attend to which.
        block_q, block_k: queries and keys of a block.
        orders: more orders to try, each a permutation of the segments.

    Raises:
        ValueError: a block size is below 1, or an order is no permutation of the segments.
    """
    for name, size in (("block_q", block_q), ("block_k", block_k)):
        if size < 1:
            raise ValueError(f"{name} = {size}: expected at least 1")
    count = len(table.log_weight)
    ranks = [_ranks(order, count) for order in orders]
    allowed = np.isfinite(table.log_weight)
    # What is neither 0 nor absent is no part of a full block, as little as what is absent.
    changed = table.log_weight != 0
    queries, keys = (
        [_in_order(cells, rank, block=block, count=count) for rank in (None, _alike(reads), *ranks)]
        for cells, reads, block in (
            (table.query_segments, allowed, block_q),
            (table.segments, allowed.T, block_k),
        )
    )
    best = None
    for rows, columns in itertools.product(queries, keys):
        live = _meet(rows.present, allowed, columns.present)
        full = ~_meet(rows.present, changed, columns.present) & ~columns.padded
        full &= live
        cost = live.sum(), -full.sum()
        if best is None or cost < best[0]:
            best = cost, rows, columns, live, full
    _, rows, columns, live, full = best
    return LiveBlocks(
        block_q=block_q,
        block_k=block_k,
        query_order=rows.order,
        key_order=columns.order,
        query_segments=_filled(rows.segments, block_q, with_last=True, segment=count),
        key_segments=_filled(columns.segments, block_k, with_last=False, segment=count),
        log_weight=np.pad(
            table.log_weight.astype(np.float32), ((0, 1), (0, 1)), constant_values=-np.inf
        ),
        keys_of=_lists(live, full),
        queries_of=_lists(live.T, full.T),
    )


@dataclasses.dataclass(frozen=True, eq=False)
class _Side:
    """Queries or keys in one order."""

    order: np.ndarray | None
    segments: np.ndarray
    present: np.ndarray  # (blocks, segments) float32, 1 where a block has a cell of the segment
    padded: np.ndarray  # (blocks,) bool, whether the block has fewer cells than it takes


def _ranks(order: Sequence[int], count: int) -> np.ndarray:
    """The place of every segment in an order of the segments."""
    if sorted(order) != list(range(count)):
        raise ValueError(f"order {list(order)}: expected a permutation of {count} segments")
    ranks = np.empty(count, np.int32)
    ranks[np.asarray(order, np.int32)] = np.arange(count, dtype=np.int32)
    return ranks


def _alike(reads: np.ndarray) -> np.ndarray:
    """Places of the segments sorted by their rows of a boolean matrix, equal rows as one."""
    if not len(reads):
        return np.zeros(0, np.int32)
    packed = np.ascontiguousarray(np.packbits(reads, axis=1))
    rows = packed.view(np.dtype((np.void, packed.shape[1]))).ravel()
    return np.unique(rows, return_inverse=True)[1].astype(np.int32)


def _in_order(segments: np.ndarray, rank: np.ndarray | None, *, block: int, count: int) -> _Side:
    """Cells sorted by the rank of their segment, or as they are."""
    order = None
    if rank is not None:
        order = np.argsort(rank[segments], kind="stable").astype(np.int32)
        segments = segments[order]
    blocks = -(-len(segments) // block)
    present = np.zeros((blocks, count), np.float32)
    present[np.arange(len(segments)) // block, segments] = 1
    padded = np.zeros(blocks, bool)
    padded[-1:] = len(segments) % block != 0
    return _Side(order, segments, present, padded)


def _meet(rows: np.ndarray, pairs: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """(query blocks, key blocks) bool, whether a block holds one of the pairs of segments."""
    return np.minimum(rows @ pairs.astype(np.float32), 1) @ columns.T > 0


def _filled(segments: np.ndarray, block: int, *, with_last: bool, segment: int) -> np.ndarray:
    """Segments up to a multiple of the block."""
    missing = -len(segments) % block
    if missing and with_last:
        segment = segments[-1]
    return np.pad(segments, (0, missing), constant_values=segment).astype(np.int32)


def _lists(live: np.ndarray, full: np.ndarray) -> BlockLists:
    """Rows of a boolean matrix as lists, full blocks first."""
    count = live.sum(axis=1, dtype=np.int32)
    # 0 for full, 1 for partial, 2 for the rest; a stable sort keeps each of them rising.
    order = np.argsort(2 - live.astype(np.int8) - full, axis=1, kind="stable").astype(np.int32)
    most = max(1, int(count.max(initial=0)))
    order = order[:, :most]
    listed = np.where(np.arange(order.shape[1]) < count[:, None], order, 0)
    return BlockLists(listed, full.sum(axis=1, dtype=np.int32), count)
