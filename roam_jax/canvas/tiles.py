"""A segment table as a few stacks of equal tiles.

A group's queries (`canvas/groups.py`) are cut into tiles of rows, its keys are a few windows, that
is slices of the sequence. Groups whose tiles and windows have equal shapes are stacked, so that one
loop runs all of them; a window may be longer than what is read of it, which a log weight of -inf
hides, where one loop less is worth more than the scores.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Sequence

import numpy as np

from roam_jax.canvas.groups import (
    ROWS,
    SMALL_ROWS,
    STACK_COST,
    TILE_SCORES,
    Group,
    Run,
    all_together,
    put_together,
    query_groups,
    tile_cost,
)
from roam_jax.canvas.segments import SegmentTable

# Most scores of a tile with all heads and groups that run together, and most keys that one softmax
# takes; of more the pieces are put together.
PIECE_SCORES, KEY_CHUNK = 3 << 20, 8192
# Most windows of all groups that run together; each is code of its own.
WINDOWS_TOGETHER = 16
# More windows of a group, shapes of windows for one shape of tiles, and loops in all, than anybody
# would compile; what a loop is said to cost until there are few enough.
MOST_WINDOWS, MOST_SHAPES, MOST_STACKS = 192, 8, 24
LOOP_COSTS = (STACK_COST, 16 * STACK_COST, 256 * STACK_COST)


@dataclasses.dataclass(frozen=True, eq=False)
class TileStack:
    """G groups of equal shape, each of T tiles of rows over keys of its own.

    Args:
        query_lengths: rows of each window of a tile.
        query_starts: (G, T, windows) int32, their places in the sequence of queries.
        skipped: (G, T) int32, leading rows of a tile that the tile before has as well.
        key_lengths: keys of each window of a group.
        key_starts: (G, windows) int32, their places in the sequence of keys.
        log_weight: (G, classes, keys) float32 of the windows' keys, -inf for those that are not
            read; None where all are 0.
        classes: (G, T, rows) int32, whose log weights each row has; None where a group has one.
    """

    query_lengths: tuple[int, ...]
    query_starts: np.ndarray
    skipped: np.ndarray
    key_lengths: tuple[int, ...]
    key_starts: np.ndarray
    log_weight: np.ndarray | None
    classes: np.ndarray | None

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

    def together(self, heads: int) -> tuple[int, int]:
        """How many heads, a divisor of their number, and how many groups run at once."""
        scores = self.rows * self.keys
        fitting = max(1, PIECE_SCORES // scores)
        some = largest_divisor(heads, most=fitting)
        windows = len(self.query_lengths) + len(self.key_lengths)
        groups = min(fitting // some, WINDOWS_TOGETHER // windows, len(self.key_starts))
        return some, max(1, groups)

    @property
    def cost(self) -> int:
        """Time of one head, in scores."""
        windows = len(self.query_lengths) + len(self.key_lengths)
        tile = tile_cost(self.rows, self.keys, windows=windows, hidden=self.log_weight is not None)
        return self.tiles * tile + STACK_COST


def largest_divisor(number: int, *, most: int) -> int:
    """The largest divisor that is not above `most`; at least 1."""
    return max(n for n in range(1, number + 1) if number % n == 0 and (n == 1 or n <= most))


def _cells(starts: np.ndarray, lengths: tuple[int, ...]) -> np.ndarray:
    """(..., cells) places in windows (..., windows)."""
    within = np.concatenate([np.arange(length) for length in lengths])
    return np.repeat(starts, lengths, axis=-1) + within


@dataclasses.dataclass(frozen=True, eq=False)
class _Series:
    """Tiles of one group that have equal shapes.

    Args:
        lengths: of the windows of a tile.
        starts: (tiles, windows).
        classes: (tiles, rows).
        skipped: (tiles,).
        windows: (start, length) of each window of keys.
        group: whose tiles they are.
    """

    lengths: tuple[int, ...]
    starts: np.ndarray
    classes: np.ndarray
    skipped: np.ndarray
    windows: tuple[Run, ...]
    group: Group


@functools.cache
def whole(queries: int, keys: int) -> tuple[TileStack, ...]:
    """Stacks of queries that all read all keys."""
    group = Group(((0, queries, 0),), np.zeros((1, 1), np.float32))
    runs = [(0, keys)]
    return tuple(_stack([series], (keys,), runs, keys) for series in _series(group, runs, runs))


def tile_stacks(table: SegmentTable) -> tuple[TileStack, ...] | None:
    """The cheapest stacks for a table; None where it is too ragged for any.

    Queries without keys are in no stack.
    """
    groups, runs = query_groups(table)
    sizes = np.array([length for _, length in runs], np.int64)
    found = []
    for some in (groups, put_together(groups, sizes), all_together(groups)):
        for joined in (True, False):
            stacked = _stacked(some, runs, joined=joined)
            if stacked is not None:
                found.append(stacked)
    if not found:
        return None
    best = min(found, key=lambda stacked: sum(_cost(*s, STACK_COST) for s in stacked))
    return tuple(_stack(members, windows, runs, table.cells) for windows, members in best)


def _windows(group: Group, runs: list[Run], *, joined: bool) -> list[Run]:
    """Of the keys that a group reads; `joined`: neighbouring runs are one window."""
    found: list[Run] = []
    for number in np.flatnonzero(group.read).tolist():
        start, length = runs[number]
        if joined and found and sum(found[-1]) == start:
            found[-1] = found[-1][0], found[-1][1] + length
        else:
            found.append((start, length))
    return found if joined else sorted(found, key=lambda run: -run[1])


def _series(group: Group, runs: list[Run], windows: list[Run]) -> list[_Series]:
    """A group's queries as tiles: all in one, or long runs cut equally and short ones together."""
    keys = sum(length for _, length in windows)
    # A power of two, so that tiles over more and more keys have few shapes.
    most = min(ROWS, max(SMALL_ROWS, 1 << (TILE_SCORES // keys).bit_length() - 1))
    small = list(group.queries)
    found = []
    if group.rows > most or len(small) > MOST_WINDOWS:
        long = [run for run in small if run[1] >= SMALL_ROWS]
        small = [run for run in small if run[1] < SMALL_ROWS]
        for start, length, of_class in long:
            tiles = -(-length // most)
            rows = -(-length // tiles)
            offsets = np.minimum(np.arange(tiles) * rows, length - rows)
            found.append(
                _Series(
                    (rows,),
                    (start + offsets)[:, None],
                    np.full((tiles, rows), of_class),
                    np.arange(tiles) * rows - offsets,
                    tuple(windows),
                    group,
                )
            )
    for tile in _bundles(small, most):
        starts, lengths, classes = zip(*tile, strict=True)
        of_rows = np.repeat(classes, lengths)[None]
        place = np.array([starts])
        found.append(_Series(lengths, place, of_rows, np.zeros(1, int), tuple(windows), group))
    return found


def _bundles(runs: Sequence[tuple[int, int, int]], most: int) -> list[list[tuple[int, int, int]]]:
    """Runs together, up to so many rows and windows."""
    found: list[list[tuple[int, int, int]]] = []
    for run in runs:
        fits = found and sum(length for _, length, _ in found[-1]) + run[1] <= most
        if fits and len(found[-1]) < MOST_WINDOWS:
            found[-1].append(run)
        else:
            found.append([run])
    return found


def _stacked(
    groups: list[Group], runs: list[Run], *, joined: bool
) -> list[tuple[tuple[int, ...], list[_Series]]] | None:
    """Key windows and the tiles over them, of every stack; merged while that is cheaper."""
    shapes: dict[tuple, dict[tuple[int, ...], list[_Series]]] = {}
    for group in groups:
        windows = _windows(group, runs, joined=joined)
        if len(windows) > MOST_WINDOWS:
            return None
        for series in _series(group, runs, windows):
            shape = series.lengths, len(series.starts)
            lengths = tuple(length for _, length in windows)
            shapes.setdefault(shape, {}).setdefault(lengths, []).append(series)
    for loop_cost in LOOP_COSTS:
        merged = [
            stack
            for by_windows in shapes.values()
            for stack in _merged(by_windows, loop_cost=loop_cost).items()
        ]
        if len(merged) <= MOST_STACKS:
            return merged
    return None


def _cost(windows: tuple[int, ...], members: list[_Series], loop_cost: int) -> int:
    """Time of one head and stack, in scores."""
    tiles = sum(len(series.starts) for series in members)
    exact = all(windows == tuple(length for _, length in s.windows) for s in members)
    hidden = not exact or any(series.group.hides() for series in members)
    rows, pieces = sum(members[0].lengths), len(members[0].lengths) + len(windows)
    return tiles * tile_cost(rows, sum(windows), windows=pieces, hidden=hidden) + loop_cost


def _merged(
    stacks: dict[tuple[int, ...], list[_Series]], *, loop_cost: int
) -> dict[tuple[int, ...], list[_Series]]:
    """Key windows -> tiles, with windows widened to the longest of several while that pays."""
    stacks = dict(stacks)

    def cost(windows: tuple[int, ...], members: list[_Series]) -> int:
        return _cost(windows, members, loop_cost)

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


def _stack(
    members: list[_Series], lengths: tuple[int, ...], runs: list[Run], cells: int
) -> TileStack:
    """Series whose tiles and key windows have these shapes."""
    starts = np.zeros((len(members), len(lengths)), np.int32)
    most = max(len(series.group.weight) for series in members)
    hidden = np.full((len(members), most, sum(lengths)), -np.inf, np.float32)
    firsts = np.cumsum([0, *lengths])
    for number, series in enumerate(members):
        weight = series.group.weight
        for place, (start, length) in enumerate(series.windows):
            starts[number, place] = min(start, cells - lengths[place])
            shift = firsts[place] - starts[number, place]
            for run, (first, size) in enumerate(runs):
                if start <= first < start + length:
                    at = first + shift
                    hidden[number, : len(weight), at : at + size] = weight[:, run, None]
        hidden[number, len(weight) :] = 0  # classes that no row has
    return TileStack(
        query_lengths=members[0].lengths,
        query_starts=np.array([series.starts for series in members], np.int32),
        skipped=np.array([series.skipped for series in members], np.int32),
        key_lengths=lengths,
        key_starts=starts,
        log_weight=hidden if hidden.any() else None,
        classes=np.array([s.classes for s in members], np.int32) if most > 1 else None,
    )
