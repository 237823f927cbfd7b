"""A topology as a table of segments, not as an N x N array.

A segment is a set of cells that the topology cannot tell apart: one (region, canvas frame). All
that attention needs is the segment of each cell and one small matrix of log weights between
segments; a mask tile is a gather from it.
"""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class SegmentTable:
    """Which cells attend to which, and how strongly.

    Args:
        segments: (N,) int32, the segment of each cell of the sequence.
        log_weight: (segments, segments) float32, row = query segment: log of the edge weight,
            0 for a plain edge, -inf for no edge.
    """

    segments: np.ndarray
    log_weight: np.ndarray

    def __post_init__(self):
        count = self.log_weight.shape[0]
        if self.log_weight.shape != (count, count):
            raise ValueError(f"log_weight has shape {self.log_weight.shape}, expected a square")
        if self.segments.size and not 0 <= self.segments.min() <= self.segments.max() < count:
            raise ValueError(
                f"segments range over {self.segments.min()}..{self.segments.max()}, "
                f"expected 0..{count - 1}"
            )

    @property
    def cells(self) -> int:
        """Number of cells N."""
        return len(self.segments)

    def mask(self) -> np.ndarray:
        """Allowed pairs as a boolean (N, N) array; for tests and small canvases only."""
        return np.isfinite(self.log_weight)[self.segments[:, None], self.segments[None, :]]
