"""Whether a cell can influence another, and along which chain of reads.

In one application of a block a segment, that is a (region, frame), passes on what it has to all
that read it. Blocks are residual, so that it keeps it as well and may wait. The answer is exact in
one direction: where there is no chain, outputs do not depend on the input at all, whatever the
weights; where there is one, they may.
"""

from __future__ import annotations

import numpy as np

from roam_jax.canvas.layout import CanvasLayout, whole_number
from roam_jax.canvas.topology import CanvasTopology, segment_keys

# A region at any time, or at one real frame (canvas frame x period).
Place = str | tuple[str, int]
PlaceInTime = tuple[str, int]


def reachable(
    topology: CanvasTopology,
    layout: CanvasLayout,
    source: Place,
    target: Place,
    *,
    blocks: int,
    rounds: int,
) -> bool:
    """Whether the input at `source` can change the output at `target`.

    Args:
        topology: edges of kind `none` and of weight 0 carry nothing, all others do.
        layout: the canvas.
        source, target: a region, at any time, or (region, real frame).
        blocks, rounds: a state runs through blocks x rounds applications.

    Raises:
        ValueError: a region is unknown or has no cells at the real frame, or a number is below 1.
    """
    path = influence_path(topology, layout, source, target, blocks=blocks, rounds=rounds)
    return path is not None


def influence_path(
    topology: CanvasTopology,
    layout: CanvasLayout,
    source: Place,
    target: Place,
    *,
    blocks: int,
    rounds: int,
) -> tuple[PlaceInTime, ...] | None:
    """A shortest chain from `source` to `target`, each read by the next; None = there is none.

    A chain of n places takes n - 1 applications of a block; it waits in the others. Arguments and
    errors are those of `reachable`.

    Returns:
        (region, real frame) of each place, the first in `source` and the last in `target`.
    """
    for name, count in (("blocks", blocks), ("rounds", rounds)):
        if whole_number(name, count) < 1:
            raise ValueError(f"{name} {count}: expected at least 1")
    carries = topology.reads(layout).T
    origin = {number: None for number in _segments(layout, source)}
    targets = _segments(layout, target)
    front = list(origin)
    for _ in range(blocks * rounds):
        if not front or not targets.isdisjoint(origin):
            break
        found = {}
        for number in front:
            for reader in np.flatnonzero(carries[number]).tolist():
                if reader not in origin:
                    found.setdefault(reader, number)
        origin |= found
        front = list(found)
    arrived = next((number for number in origin if number in targets), None)
    return None if arrived is None else _chain(layout, origin, arrived)


def _segments(layout: CanvasLayout, place: Place) -> set[int]:
    """Numbers of the segments at a place."""
    name, frame = (place, None) if isinstance(place, str) else place
    period = layout.region_spec(name).period
    real = {
        number: t * period
        for number, (region, t) in enumerate(segment_keys(layout))
        if region == name
    }
    if frame is not None and frame not in real.values():
        frames = ", ".join(map(str, real.values()))
        raise ValueError(
            f"region {name!r} has no cells at real frame {frame}: expected one of {frames}"
        )
    return {number for number, t in real.items() if frame is None or t == frame}


def _chain(
    layout: CanvasLayout, origin: dict[int, int | None], last: int
) -> tuple[PlaceInTime, ...]:
    """The way that led to a segment, from its start."""
    keys = segment_keys(layout)
    chain, number = [], last
    while number is not None:
        name, t = keys[number]
        chain.append((name, t * layout.regions[name].period))
        number = origin[number]
    return tuple(reversed(chain))
