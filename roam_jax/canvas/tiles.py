"""Which queries run against which keys: a segment table as a few stacks of equal tiles.

Queries that read the same keys form a group. A group's queries are cut into tiles of rows, its keys
are a few windows, that is slices of the sequence. Groups whose tiles and windows have equal shapes
are stacked, so that one loop runs all of them; a window may be longer than what is read of it,
which a log weight of -inf hides, where one loop less is worth more than the scores.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterable, Sequence

import numpy as np

from roam_jax.canvas.segments import SegmentTable

# Most rows of a tile, and most scores of it (one head): what is best on CPUs (docs/performance.md).
ROWS, TILE_SCORES = 1024, 1 << 22
# Shorter pieces of a group's queries share a tile.
SMALL_ROWS = 64
# What things cost beside scores, in scores of one head: a key that is copied, a window, a tile, and
# a loop of its own, which has to be compiled as well.
KEY_COST, WINDOW_COST, TILE_COST, STACK_COST = 24, 256, 4096, 1 << 16
# More windows of a group, shapes of windows for one shape of tiles, and loops in all, than anybody
# would compile.
MOST_WINDOWS, MOST_SHAPES, MOST_STACKS = 192, 8, 24

Run = tuple[int, int]  # start, length


@dataclasses.dataclass(frozen=True, eq=False)
class TileStack:
    """G groups of equal shape, each of T tiles of rows over keys of its own.

    Args:
        query_lengths: rows of each window of a tile.
        query_starts: (G, T, windows) int32, their places in the sequence of queries.
        skipped: (G, T) int32, leading rows of a tile that the tile before has as well.
        key_lengths: keys of each window of a group.
        key_starts: (G, windows) int32, their places in the sequence of keys.
        log_weight: (G, keys) float32 of the windows' keys, -inf for those that are not read; None
            where all are 0.
    """

    query_lengths: tuple[int, ...]
    query_starts: np.ndarray
    skipped: np.ndarray
    key_lengths: tuple[int, ...]
    key_starts: np.ndarray
    log_weight: np.ndarray | None

    @property
    def rows(self) -> int:
        """Queries of a tile."""
        return sum(self.query_lengths)

    @property
    def keys(self) -> int:
        """Keys of a group, those that are hidden included."""
        return sum(self.key_lengths)

    @property
    def query_cells(self) -> np.ndarray:
        """(G, T x rows) places of every tile's queries; those that are skipped are there twice."""
        return _cells(self.query_starts, self.query_lengths).reshape(len(self.query_starts), -1)

    @property
    def key_cells(self) -> np.ndarray:
        """(G, keys) places of every group's keys."""
        return _cells(self.key_starts, self.key_lengths)

    @property
    def tiles(self) -> int:
        """Tiles of all groups."""
        return self.skipped.size

    @property
    def scores(self) -> int:
        """Scores that one head computes."""
        return self.tiles * self.rows * self.keys

    @property
    def cost(self) -> int:
        """Time of one head, in scores."""
        windows = len(self.query_lengths) + len(self.key_lengths)
        each = KEY_COST * self.keys * len(self.key_starts)
        return self.scores + each + self.tiles * (TILE_COST + WINDOW_COST * windows) + STACK_COST


def _cells(starts: np.ndarray, lengths: tuple[int, ...]) -> np.ndarray:
    """(..., cells) places in windows (..., windows)."""
    within = np.concatenate([np.arange(length) for length in lengths])
    return np.repeat(starts, lengths, axis=-1) + within


@dataclasses.dataclass(frozen=True)
class _Group:
    """Queries and the keys that all of them read."""

    queries: tuple[Run, ...]
    keys: tuple[Run, ...]
    log_weight: tuple[float, ...]  # of each run of keys


@dataclasses.dataclass(frozen=True)
class _Series:
    """Tiles of one group that have equal shapes."""

    lengths: tuple[int, ...]
    starts: tuple[tuple[int, ...], ...]  # tile, window
    skipped: tuple[int, ...]
    group: _Group


@functools.cache
def whole(queries: int, keys: int) -> tuple[TileStack, ...]:
    """Stacks of queries that all read all keys."""
    group = _Group(((0, queries),), ((0, keys),), (0.0,))
    return tuple(_stack([series], (keys,), keys) for series in _series(group))


def tile_stacks(table: SegmentTable) -> tuple[TileStack, ...] | None:
    """The cheapest stacks for a table; None where it is too ragged for any.

    Queries without keys are in no stack.
    """
    made = [_stacked(_groups(table, joined=joined), table) for joined in (True, False)]
    made = [stacks for stacks in made if stacks is not None]
    return min(made, key=lambda stacks: sum(s.cost for s in stacks), default=None)


def _groups(table: SegmentTable, *, joined: bool) -> list[_Group]:
    """Query runs by what they read; `joined`: neighbouring runs of keys are one window."""
    rows, columns = _runs(table.query_segments), _runs(table.segments)
    weight = table.log_weight[np.ix_([s for _, _, s in rows], [s for _, _, s in columns])]
    keys = _equal_runs([run[:2] for run in columns], weight.T)
    weight = weight[:, [first for _, first in keys]]
    queries = _equal_runs([run[:2] for run in rows], weight)
    weight = weight[[first for _, first in queries]]
    members: dict[bytes, list[int]] = {}
    for number, row in enumerate(weight):
        if np.isfinite(row).any():
            members.setdefault(row.tobytes(), []).append(number)
    groups = []
    for numbers in members.values():
        row = weight[numbers[0]]
        read = [(*keys[i][0], float(row[i])) for i in np.flatnonzero(np.isfinite(row))]
        read = _joined(read) if joined else sorted(read, key=lambda run: -run[1])
        groups.append(
            _Group(
                tuple(queries[i][0] for i in numbers),
                tuple(run[:2] for run in read),
                tuple(run[2] for run in read),
            )
        )
    return groups


def _runs(segments: np.ndarray) -> list[tuple[int, int, int]]:
    """(start, length, segment) of maximal runs of cells of one segment."""
    edges = np.flatnonzero(np.diff(segments)) + 1
    bounds = [0, *edges.tolist(), len(segments)]
    return [(a, b - a, int(segments[a])) for a, b in itertools.pairwise(bounds) if b > a]


def _equal_runs(runs: Sequence[Run], weight: np.ndarray) -> list[tuple[Run, int]]:
    """Neighbouring runs of equal rows of `weight` as one, each with the number of its first."""
    found: list[tuple[Run, int]] = []
    for number, (start, length) in enumerate(runs):
        if found and np.array_equal(weight[found[-1][1]], weight[number]):
            (before, cells), first = found[-1]
            found[-1] = (before, cells + length), first
        else:
            found.append(((start, length), number))
    return found


def _joined(runs: Iterable[tuple[int, int, float]]) -> list[tuple[int, int, float]]:
    """Runs that touch and weigh the same as one."""
    found: list[tuple[int, int, float]] = []
    for start, length, weight in runs:
        if found and (sum(found[-1][:2]), found[-1][2]) == (start, weight):
            found[-1] = found[-1][0], found[-1][1] + length, weight
        else:
            found.append((start, length, weight))
    return found


def _series(group: _Group) -> list[_Series]:
    """A group's queries as tiles: long runs cut into equal parts, short ones together."""
    keys = sum(length for _, length in group.keys)
    most = min(ROWS, max(SMALL_ROWS, TILE_SCORES // keys))
    found, small = [], []
    for start, length in group.queries:
        if length < SMALL_ROWS:
            small.append((start, length))
            continue
        tiles = -(-length // most)
        rows = -(-length // tiles)
        offsets = [min(i * rows, length - rows) for i in range(tiles)]
        skipped = tuple(i * rows - offset for i, offset in enumerate(offsets))
        starts = tuple((start + offset,) for offset in offsets)
        found.append(_Series((rows,), starts, skipped, group))
    for tile in _bundles(small, most):
        lengths = tuple(length for _, length in tile)
        found.append(_Series(lengths, (tuple(start for start, _ in tile),), (0,), group))
    return found


def _bundles(runs: Sequence[Run], most: int) -> list[list[Run]]:
    """Runs together, up to so many rows and windows."""
    found: list[list[Run]] = []
    for run in runs:
        fits = found and sum(length for _, length in found[-1]) + run[1] <= most
        if fits and len(found[-1]) < MOST_WINDOWS:
            found[-1].append(run)
        else:
            found.append([run])
    return found


def _stacked(groups: list[_Group], table: SegmentTable) -> tuple[TileStack, ...] | None:
    """Series of equal tiles in one stack each; stacks are merged while that is cheaper."""
    if any(len(group.keys) > MOST_WINDOWS for group in groups):
        return None
    shapes: dict[tuple, dict[tuple[int, ...], list[_Series]]] = {}
    for series in itertools.chain.from_iterable(map(_series, groups)):
        windows = tuple(length for _, length in series.group.keys)
        shape = series.lengths, len(series.starts)
        shapes.setdefault(shape, {}).setdefault(windows, []).append(series)
    stacks = [
        _stack(members, windows, table.cells)
        for by_windows in shapes.values()
        for windows, members in _merged(by_windows).items()
    ]
    return tuple(stacks) if len(stacks) <= MOST_STACKS else None


def _merged(
    stacks: dict[tuple[int, ...], list[_Series]],
) -> dict[tuple[int, ...], list[_Series]]:
    """Key windows -> tiles, with windows widened to the longest of several while that pays."""
    stacks = dict(stacks)

    def cost(windows: tuple[int, ...], tiles: list[_Series]) -> int:
        rows = sum(tiles[0].lengths) * len(tiles[0].starts)
        return (rows + KEY_COST) * sum(windows) * len(tiles) + STACK_COST

    while len(stacks) > 1:
        # Neighbours by length alone: of all pairs these waste least, and there may be hundreds.
        order = sorted(stacks, key=lambda windows: (sum(windows), windows))
        pairs = [(*pair, _wide(*pair)) for pair in itertools.pairwise(order)]
        gains = [
            cost(a, stacks[a]) + cost(b, stacks[b]) - cost(wide, stacks[a] + stacks[b])
            for a, b, wide in pairs
        ]
        best = int(np.argmax(gains))
        if gains[best] <= 0 and len(stacks) <= MOST_SHAPES:
            break
        a, b, wide = pairs[best]
        members = stacks.pop(a) + stacks.pop(b)
        stacks[wide] = members + stacks.pop(wide, [])
    return stacks


def _wide(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
    """Windows that hold those of both."""
    return tuple(map(max, itertools.zip_longest(a, b, fillvalue=0)))


def _stack(members: list[_Series], windows: tuple[int, ...], cells: int) -> TileStack:
    """Series whose tiles and key windows have these shapes."""
    starts = np.zeros((len(members), len(windows)), np.int32)
    hidden = np.full((len(members), sum(windows)), -np.inf, np.float32)
    ends = np.cumsum(windows)
    for number, series in enumerate(members):
        runs = zip(series.group.keys, series.group.log_weight, windows, ends, strict=False)
        for place, ((start, length), weight, window, end) in enumerate(runs):
            starts[number, place] = min(start, cells - window)
            first = end - window + start - starts[number, place]
            hidden[number, first : first + length] = weight
    return TileStack(
        query_lengths=members[0].lengths,
        query_starts=np.array([series.starts for series in members], np.int32),
        skipped=np.array([series.skipped for series in members], np.int32),
        key_lengths=windows,
        key_starts=starts,
        log_weight=hidden if hidden.any() else None,
    )
