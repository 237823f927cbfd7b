"""What has to be computed for some wanted outputs, and nothing else.

Counted back from the last application of a block: a segment, that is a (region, frame), is needed
after an application if it is wanted, or if a needed one reads it in a later application. All others
are left out. Outputs are the same to rounding, as what is left out reaches no wanted cell.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from roam_jax.canvas.layout import CanvasLayout, whole_number
from roam_jax.canvas.topology import CanvasTopology, segment_keys, segment_sizes

# A region, or some canvas frames of it.
Wanted = str | tuple[str, Sequence[int]]


@dataclasses.dataclass(frozen=True)
class CanvasSlice:
    """Which segments each application of a block needs.

    Args:
        kept: for each of the applications the numbers of the segments, rising, whose state before
            it is needed, and at the end those that are wanted. An application's keys are
            `kept[i]`, its queries `kept[i + 1]`.
        sizes: tokens of each segment.
        reads: for each segment, how many cells one of its cells reads.
    """

    kept: tuple[tuple[int, ...], ...]
    sizes: tuple[int, ...]
    reads: tuple[int, ...]

    @property
    def applications(self) -> int:
        """How many there are of a block."""
        return len(self.kept) - 1

    @property
    def steady(self) -> int:
        """How many of the first applications have the same segments before and after them."""
        return sum(before == after for before, after in itertools.pairwise(self.kept))

    def cells(self, i: int) -> np.ndarray:
        """(n,) int64, places of the cells of `kept[i]` in the sequence of all tokens."""
        return np.flatnonzero(np.repeat(self._mask(i), self.sizes))

    def cells_within(self, i: int) -> np.ndarray:
        """(n,) int64, places of the cells of `kept[i + 1]` in the sequence of those of `kept[i]`.

        Args:
            i: an application.
        """
        before, after = (np.repeat(self._mask(number), self.sizes) for number in (i, i + 1))
        return np.flatnonzero(after[before])

    @property
    def computed_share(self) -> float:
        """Cells that are computed, over all applications, as a share of all cells."""
        return self._share(np.array(self.sizes))

    @property
    def pair_share(self) -> float:
        """Pairs of a query and a key cell that remain, over all applications, as a share of all."""
        return self._share(np.array(self.sizes) * np.array(self.reads))

    def _mask(self, i: int) -> np.ndarray:
        mask = np.zeros(len(self.sizes), bool)
        mask[list(self.kept[i])] = True
        return mask

    def _share(self, counts: np.ndarray) -> float:
        """Of what each segment counts as a query; 1 where nothing counts at all."""
        remaining = sum(int(counts[list(after)].sum()) for after in self.kept[1:])
        whole = self.applications * int(counts.sum())
        return remaining / whole if whole else 1.0


def slice_canvas(
    topology: CanvasTopology,
    layout: CanvasLayout,
    wanted: Sequence[Wanted],
    *,
    applications: int,
) -> CanvasSlice:
    """The slice of a canvas that some outputs depend on.

    Args:
        topology: edges of kind `none` and of weight 0 read nothing, all others do.
        layout: the canvas.
        wanted: regions, or (region, canvas frames).
        applications: how often a block is applied: blocks x rounds.

    Raises:
        ValueError: nothing is wanted, a region is unknown or has no tokens in a wanted frame, or
            there are no applications.
    """
    if whole_number("applications", applications) < 1:
        raise ValueError(f"applications {applications}: expected at least 1")
    reads, sizes = topology.reads(layout), segment_sizes(layout)
    needed = _wanted_segments(layout, wanted)
    kept = [_numbers(needed)]
    while len(kept) <= applications:
        grown = needed | reads[needed].any(axis=0)
        if (grown == needed).all():
            kept += [kept[-1]] * (applications + 1 - len(kept))
            break
        needed = grown
        kept.append(_numbers(needed))
    return CanvasSlice(
        tuple(reversed(kept)), tuple(sizes.tolist()), tuple((reads @ sizes).tolist())
    )


def _numbers(mask: np.ndarray) -> tuple[int, ...]:
    return tuple(np.flatnonzero(mask).tolist())


def _wanted_segments(layout: CanvasLayout, wanted: Sequence[Wanted]) -> np.ndarray:
    """(segments,) bool, which are wanted."""
    if isinstance(wanted, str):
        raise ValueError(f"wanted {wanted!r}: expected a list of regions, or of frames of them")
    keys: set[tuple[str, int]] = set()
    for want in wanted:
        name, frames = (want, None) if isinstance(want, str) else want
        known = layout.region_spec(name).frames
        frames = known if frames is None else frames
        if isinstance(frames, int):
            raise ValueError(f"wanted: region {name!r}: {frames}: expected a list of canvas frames")
        if not len(frames):
            raise ValueError(f"wanted: no canvas frames of region {name!r}: expected at least one")
        for t in frames:
            if t not in known:
                raise ValueError(
                    f"wanted: region {name!r} has no tokens in canvas frame {t}: expected "
                    f"{known[0]}..{known[-1]}"
                )
        keys |= {(name, t) for t in frames}
    if not keys:
        raise ValueError(f"wanted {wanted}: nothing is wanted, expected a region, or frames of one")
    return np.array([key in keys for key in segment_keys(layout)], bool)
