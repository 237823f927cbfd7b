"""Which frames an edge with offsets joins: reference frames, periods, and what fills the gaps.

Semantics are those of canvas-engineering 0.5.0 (`connectivity.py`).
"""

from __future__ import annotations

import enum
import functools

import numpy as np

from roam_jax.spelling import check_choice

# Canvas frames of src, canvas frames of dst, shares of the edge's weight.
FramePairs = tuple[np.ndarray, np.ndarray, np.ndarray]
# Interpolation beyond order 1 reads nothing where all shares together are below this: as far away
# as that, canvas-engineering's edge is gone too.
NEGLIGIBLE_SHARE = 1e-12


class TemporalFill(enum.StrEnum):
    """What a query with an offset reads where `dst` has no cell at the wanted real frame."""

    DROP = "drop"  # nothing
    HOLD = "hold"  # the most recent earlier frame
    INTERPOLATE = "interpolate"  # frames around it, weighted by inverse distance


def require_causal_fill(fill: TemporalFill | str) -> None:
    """Refuses the fill that looks ahead.

    Raises:
        ValueError: it is `interpolate`, or there is no such fill.
    """
    check_choice("temporal_fill", fill, [f.value for f in TemporalFill])
    if fill == TemporalFill.INTERPOLATE:
        raise ValueError(
            f"temporal_fill {str(fill)!r} looks ahead: expected {TemporalFill.HOLD} or "
            f"{TemporalFill.DROP}"
        )


@functools.lru_cache(maxsize=1 << 13)
def offset_pairs(
    src: range,
    dst: range,
    periods: tuple[int, int],
    T: int,
    offsets: tuple[int | None, int | None],
    fill: tuple[TemporalFill, int],
) -> FramePairs:
    """What an edge with offsets, or none, joins; a pair may come more than once.

    Kept, as many edges of a topology differ in nothing of this.

    Args:
        src, dst: canvas frames of the two regions, and
        periods: their periods.
        T: frames of the canvas; each reference frame is in 0..T-1.
        offsets: t_src, t_dst.
        fill: temporal fill and its order.
    """
    t_src, t_dst = offsets
    if t_dst is None:
        # An offset of src may put frames out of reach.
        sources = [t for t in src if t_src is None or 0 <= t - t_src < T]
        src_t, dst_t = np.meshgrid(np.array(sources, np.int64), np.array(dst), indexing="ij")
        return src_t.ravel(), dst_t.ravel(), np.ones(src_t.size)
    found = []
    for reference in range(T):
        if t_src is None:
            sources, wanted = src, reference + t_dst
        elif reference + t_src in src:
            sources, wanted = (reference + t_src,), (reference + t_dst) * periods[0]
        else:
            continue
        read = _resolve_fill(fill, dst, periods[1], wanted)
        found += [(s, d, share) for s in sources for d, share in read]
    columns = np.array(found).reshape(-1, 3).T
    return columns[0].astype(np.int64), columns[1].astype(np.int64), columns[2]


@functools.lru_cache(maxsize=1 << 13)
def _resolve_fill(
    fill: tuple[TemporalFill, int], dst: range, period: int, wanted: int
) -> list[tuple[int, float]]:
    """Canvas frames of `dst` read for the real frame `wanted`, with their shares."""
    fill, order = fill
    frame, rest = divmod(wanted, period)
    if rest == 0 and frame in dst:
        return [(frame, 1.0)]
    if fill == TemporalFill.DROP:
        return []
    frames = np.array(dst)
    real = frames * period
    past, future = frames[real < wanted], frames[real > wanted]
    if fill == TemporalFill.HOLD:
        return [(int(past[-1]), 1.0)] if len(past) else []
    if order == 1:
        if len(past) and len(future):
            before, after = int(past[-1]), int(future[0])
            to_before, to_after = wanted - before * period, after * period - wanted
            span = to_before + to_after
            return [(before, to_after / span), (after, to_before / span)]
        nearest = past[-1:] if len(past) else future[:1]
        return [(int(t), 1.0) for t in nearest]
    distance = np.abs(real - wanted).astype(np.float64)
    nearest = np.argsort(distance, kind="stable")[: order + 1]
    share = 1.0 / distance[nearest] ** order
    if share.sum() < NEGLIGIBLE_SHARE:
        return []
    return [(int(frames[i]), float(s)) for i, s in zip(nearest, share / share.sum(), strict=True)]
