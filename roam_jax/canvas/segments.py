"""A topology as a table of segments, not as an N x N array.

A segment is a set of cells that the topology cannot tell apart: one (region, canvas frame). All
that attention needs is the segment of each cell and one small matrix of log weights between
segments; a mask tile is a gather from it.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class SegmentTable:
    """Which cells attend to which, and how strongly; equal and hashed by content.

    Args:
        segments: (M,) int32, the segment of each cell of the sequence.
        log_weight: (segments, segments) float32, row = query segment: log of the edge weight,
            0 for a plain edge, -inf for no edge.
        queries: (N,) int32, segments of the queries where these are other cells than the keys.

    Raises:
        ValueError: shapes do not fit, or a segment has no row.
    """

    segments: np.ndarray
    log_weight: np.ndarray
    queries: np.ndarray | None = None

    def __post_init__(self):
        count = self.log_weight.shape[0]
        if self.log_weight.shape != (count, count):
            raise ValueError(f"log_weight has shape {self.log_weight.shape}, expected a square")
        for cells in (self.segments, self.query_segments):
            if cells.size and not 0 <= cells.min() <= cells.max() < count:
                raise ValueError(
                    f"segments range over {cells.min()}..{cells.max()}, expected 0..{count - 1}"
                )

    @property
    def cells(self) -> int:
        """Number of key cells M, and of queries where these are the same."""
        return len(self.segments)

    @property
    def query_segments(self) -> np.ndarray:
        """(N,) int32, the segment of each query."""
        return self.segments if self.queries is None else self.queries

    @property
    def pairs(self) -> int:
        """Pairs of a query cell and a key cell that may attend."""
        count = len(self.log_weight)
        queries, keys = (
            np.bincount(cells, minlength=count) for cells in (self.query_segments, self.segments)
        )
        return int(queries @ np.isfinite(self.log_weight) @ keys)

    def check_lengths(self, queries: int, keys: int) -> None:
        """Refuses sequences of other lengths.

        Raises:
            ValueError: the table is not for so many queries and keys.
        """
        if (queries, keys) != (len(self.query_segments), self.cells):
            raise ValueError(
                f"topology table has {len(self.query_segments)} queries and {self.cells} keys, got "
                f"{queries} and {keys}"
            )

    def mask(self) -> np.ndarray:
        """Allowed pairs as a boolean (N, M) array; for tests and small canvases only."""
        return np.isfinite(self.log_weight)[self.query_segments[:, None], self.segments[None, :]]

    @functools.cached_property
    def _content(self) -> tuple[bytes, bytes, bytes]:
        return tuple(x.tobytes() for x in (self.query_segments, self.segments, self.log_weight))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SegmentTable) and self._content == other._content

    def __hash__(self) -> int:
        return hash(self._content)
