"""Queries that run over the same keys, from what each reads in a segment table.

Queries that read alike form a group. Groups that read nearly the same are put together where that
costs less: some scores are hidden by a mask then, but the tiles are larger.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Sequence

import numpy as np

from roam_jax.canvas.segments import SegmentTable

# Most rows of a tile, and most scores of it (one head): what is best on CPUs (docs/performance.md).
ROWS, TILE_SCORES = 1024, 1 << 22
# Shorter pieces of a group's queries share a tile.
SMALL_ROWS = 64
# What things cost beside scores, in scores of one head: the keys of a tile, as if it had so many
# more rows (copies, and products with few rows); a window; a tile; and a loop of its own, which has
# to be compiled as well. A score under a mask costs so many plain ones.
ROW_COST, WINDOW_COST, TILE_COST, STACK_COST = 96, 256, 8192, 1 << 16
HIDDEN_COST = 1.3
# More groups than this are not compared with each other to be put together.
MOST_COMPARED = 512

Run = tuple[int, int]  # start, length


def tile_cost(rows: int, keys: int, *, windows: int = 2, hidden: bool) -> int:
    """Time of one tile and head, in scores."""
    scores = rows * keys * (HIDDEN_COST if hidden else 1)
    return int(scores) + ROW_COST * keys + TILE_COST + WINDOW_COST * windows


@dataclasses.dataclass(frozen=True, eq=False)
class Group:
    """Queries that run over the same keys.

    Args:
        queries: runs of them, each with its class: queries of a class read alike.
        weight: (classes, runs of keys) log weights, -inf where a class does not read.
    """

    queries: tuple[tuple[int, int, int], ...]  # start, length, class
    weight: np.ndarray

    @property
    def rows(self) -> int:
        """Number of queries."""
        return sum(length for _, length, _ in self.queries)

    @property
    def read(self) -> np.ndarray:
        """(runs of keys,) bool, which any of them reads."""
        return np.isfinite(self.weight).any(axis=0)

    def hides(self) -> bool:
        """Whether some query does not read one of the keys, or weighs it."""
        return bool(self.weight[:, self.read].any())


def query_groups(table: SegmentTable) -> tuple[list[Group], list[Run]]:
    """Queries by what they read, and the runs of keys that any of them can tell apart."""
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
    groups = [
        Group(tuple((*queries[i][0], 0) for i in numbers), weight[numbers[:1]])
        for numbers in members.values()
    ]
    return groups, [run for run, _ in keys]


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


def put_together(groups: list[Group], sizes: np.ndarray) -> list[Group]:
    """Groups joined while that costs less: some scores are hidden then, but tiles are larger.

    Args:
        groups: by what they read.
        sizes: (runs,) keys of each run.
    """
    if not 1 < len(groups) <= MOST_COMPARED:
        return groups
    groups = list(groups)
    rows = np.array([group.rows for group in groups])
    read = np.array([group.read for group in groups])
    hides = np.array([group.hides() for group in groups])
    alive = np.ones(len(groups), bool)
    gains = np.stack([_gains(i, rows, read, hides, sizes) for i in range(len(groups))])
    gains[np.tril_indices(len(groups))] = -np.inf
    while gains.max() > 0:
        i, j = map(int, np.unravel_index(np.argmax(gains), gains.shape))
        groups[i] = _joined(groups[i], groups[j])
        rows[i], read[i], hides[i] = rows[i] + rows[j], read[i] | read[j], groups[i].hides()
        alive[j] = False
        gains[j, :] = gains[:, j] = -np.inf
        fresh = np.where(alive, _gains(i, rows, read, hides, sizes), -np.inf)
        gains[i, i + 1 :], gains[:i, i] = fresh[i + 1 :], fresh[:i]
    return [group for group, there in zip(groups, alive, strict=True) if there]


def all_together(groups: list[Group]) -> list[Group]:
    """One group of all, under a mask; as they are where they are too many for it."""
    if not groups or len(groups) > MOST_COMPARED:
        return groups
    return [functools.reduce(_joined, groups)]


def _gains(i: int, rows, read, hides, sizes) -> np.ndarray:
    """(groups,) what putting group i together with each other one saves, in scores."""

    def cost(rows, keys, hides):
        tiles = -(-rows // np.clip(TILE_SCORES // np.maximum(keys, 1), SMALL_ROWS, ROWS))
        scores = rows * keys * np.where(hides, HIDDEN_COST, 1)
        return scores + tiles * (ROW_COST * keys + TILE_COST)

    keys = read @ sizes
    both = (read | read[i]) @ sizes
    apart = cost(rows, keys, hides) + cost(rows[i], keys[i], hides[i])
    hidden = hides | hides[i] | (both > keys) | (both > keys[i])
    return apart - cost(rows + rows[i], both, hidden)


def _joined(a: Group, b: Group) -> Group:
    """Both groups' queries, each class with its own weights."""
    shift = len(a.weight)
    queries = (*a.queries, *((start, length, c + shift) for start, length, c in b.queries))
    return Group(tuple(sorted(queries)), np.concatenate([a.weight, b.weight]))
