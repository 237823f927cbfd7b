"""Topologies in real time: who may read whom is a matter of how long ago a cell was.

The real frame of a cell is its canvas frame x the period of its region. All of these are declared
by listed pairs of frames, so that regions with different clocks meet where they should.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from roam_jax.canvas.fills import TemporalFill, require_causal_fill
from roam_jax.canvas.layout import CanvasLayout, whole_number
from roam_jax.canvas.topology import CanvasTopology, Connection, segment_keys


def causal(
    layout: CanvasLayout,
    *,
    regions: Sequence[str] | None = None,
    window: int | None = None,
    temporal_fill: TemporalFill | str = TemporalFill.HOLD,
) -> CanvasTopology:
    """Nothing sees the future: a cell reads all regions at its own time and before.

    What a robot may know when it acts, and what an autoregressive model is built on (van den Oord
    et al. 2016, arXiv:1609.03499). No chain of reads, of any depth and number of rounds, leads from
    a later real frame to an earlier one.

    Args:
        layout: the canvas.
        regions: those that take part; None = all.
        window: real frames back that are read, beside the cell's own; None = all the past.
        temporal_fill: where a region has no frame within the window, `hold` reads its latest
            earlier one, `drop` nothing.

    Raises:
        ValueError: a region is unknown or named twice, the window is negative, or the fill is
            `interpolate`, which looks ahead, or there is no such fill.
    """
    require_causal_fill(temporal_fill)
    names = chosen_regions(layout, regions)
    age = ages(layout)
    reads = age >= 0
    if window is not None:
        reads &= age <= at_least_0("window", window)
        for name in names if temporal_fill == TemporalFill.HOLD else ():
            columns = among(layout, [name])
            bare = ~reads[:, columns].any(axis=1)
            reads |= bare[:, None] & latest(age, columns)
    return from_reads(reads & between(layout, names, names), layout)


def local_window(
    layout: CanvasLayout, *, regions: Sequence[str] | None = None, frames: int
) -> CanvasTopology:
    """A cell reads all regions at most so many real frames away, before and after.

    Nearby moments explain each other best, and a window costs the same for a long video as for a
    short one, a frame (sliding windows: Beltagy et al. 2020, arXiv:2004.05150). Influence travels
    no more than `frames` real frames with each application of a block.

    Args:
        layout: the canvas.
        regions: those that take part; None = all.
        frames: the farthest that is read; 0 = the same real frame alone.

    Raises:
        ValueError: a region is unknown or named twice, or `frames` is negative.
    """
    return from_reads(window_reads(layout, chosen_regions(layout, regions), frames), layout)


def window_reads(layout: CanvasLayout, regions: Sequence[str], frames: int) -> np.ndarray:
    """(segments, segments) bool: of the regions and at most so many real frames apart."""
    near = np.abs(ages(layout)) <= at_least_0("frames", frames)
    return near & between(layout, regions, regions)


def chosen_regions(layout: CanvasLayout, regions: Sequence[str] | None) -> list[str]:
    """The regions that take part, None = all.

    Raises:
        ValueError: one is unknown or named twice, there is none, or it is no list.
    """
    if isinstance(regions, str):
        raise ValueError(f"regions {regions!r}: expected a list of names")
    names = list(layout.regions) if regions is None else list(regions)
    for number, name in enumerate(names):
        layout.region_spec(name)
        if name in names[:number]:
            raise ValueError(f"region {name!r} is named twice: expected each region once")
    if not names:
        raise ValueError("no regions: expected at least one")
    return names


def at_least_0(name: str, value: int) -> int:
    """A whole number that is not negative; raises ValueError."""
    value = whole_number(name, value)
    if value < 0:
        raise ValueError(f"{name} {value}: expected at least 0")
    return value


def real_frames(layout: CanvasLayout) -> np.ndarray:
    """(segments,) int64, the real frame of each segment."""
    keys = segment_keys(layout)
    return np.array([t * layout.regions[name].period for name, t in keys], np.int64)


def ages(layout: CanvasLayout) -> np.ndarray:
    """(segments, segments) int64: how many real frames before the row the column is."""
    real = real_frames(layout)
    return real[:, None] - real[None, :]


def among(layout: CanvasLayout, names: Sequence[str]) -> np.ndarray:
    """(segments,) bool, which belong to the regions."""
    return np.array([name in names for name, _ in segment_keys(layout)], bool)


def between(layout: CanvasLayout, src: Sequence[str], dst: Sequence[str]) -> np.ndarray:
    """(segments, segments) bool: row of a region of `src`, column of one of `dst`."""
    return among(layout, src)[:, None] & among(layout, dst)[None, :]


def latest(age: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """(segments, segments) bool: of the given columns of one region, the last that has been."""
    been = np.where((age >= 0) & columns, age, np.iinfo(age.dtype).max)
    return (age >= 0) & columns & (age == been.min(axis=1, initial=been.max(), keepdims=True))


def from_reads(reads: np.ndarray, layout: CanvasLayout) -> CanvasTopology:
    """The topology by which a segment reads exactly those of its row.

    Args:
        reads: (segments, segments) bool, row = query segment.
        layout: the canvas.
    """
    connections, row = [], 0
    for src, reader in layout.regions.items():
        column = 0
        for dst, read in layout.regions.items():
            block = reads[row : row + len(reader.frames), column : column + len(read.frames)]
            column += len(read.frames)
            pairs = np.argwhere(block) + np.array([reader.frames[0], read.frames[0]])
            if block.all():
                connections.append(Connection(src, dst))
            elif len(pairs):
                connections.append(Connection(src, dst, pairs=tuple(map(tuple, pairs.tolist()))))
        row += len(reader.frames)
    return CanvasTopology(tuple(connections))
