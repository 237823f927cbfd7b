"""Random topologies: a small-world prior, and the control for every other topology."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence

import numpy as np

from roam_jax.canvas.kinds import NONE_KIND
from roam_jax.canvas.layout import CanvasLayout
from roam_jax.canvas.temporal_topologies import (
    among,
    at_least_0,
    between,
    chosen_regions,
    from_reads,
    window_reads,
)
from roam_jax.canvas.topology import CanvasTopology, segment_sizes

# How far the allowed pairs of a matched topology may be from what they should be, as a share.
TOLERANCE = 0.01
# Random starts of the search for them.
STARTS = 64


def local_plus_sparse_global(
    layout: CanvasLayout,
    *,
    regions: Sequence[str] | None = None,
    frames: int,
    links: int,
    seed: int,
) -> CanvasTopology:
    """A local window, and a few far links for every segment: a small world.

    Cortex is wired locally with few long links, and few are enough to make all paths short (Watts
    and Strogatz 1998, doi:10.1038/30918; in attention, Zaheer et al. 2020, arXiv:2007.14062). A
    (region, frame) reads what `local_window` reads and `links` others, drawn without repeats, fewer
    where fewer exist.

    Args:
        layout: the canvas.
        regions: those that take part; None = all.
        frames: the farthest real frame of the window.
        links: far (region, frame) segments that each segment reads.
        seed: of the draw.

    Raises:
        ValueError: a region is unknown or named twice, or a number is negative.
    """
    names = chosen_regions(layout, regions)
    reads = window_reads(layout, names, frames)
    links = at_least_0("links", links)
    generator = np.random.default_rng(at_least_0("seed", seed))
    far = between(layout, names, names) & ~reads
    for row in np.flatnonzero(among(layout, names)):
        others = np.flatnonzero(far[row])
        reads[row, generator.choice(others, min(links, len(others)), replace=False)] = True
    return from_reads(reads, layout)


def random_matched(
    topology: CanvasTopology,
    layout: CanvasLayout,
    *,
    seed: int,
    governed: Collection[tuple[str, str]] | None = None,
) -> CanvasTopology:
    """The control: as many pairs of cells as another topology allows, between random segments.

    What a topology is worth shows against random wiring of the same cost, as with the random
    networks that measured ones are compared to (Maslov and Sneppen 2002,
    doi:10.1126/science.1065103). A (region, frame) reads itself where it did; everything else is
    drawn anew among the regions of the topology, all with weight 1 and their region's kind, until
    the allowed pairs are within 1 % of the matched topology's.

    Args:
        topology: what to match; edges of kind `none` and of weight 0 do not count.
        layout: the canvas.
        seed: of the draw.
        governed: (reader, read) regions between which pairs are counted and drawn, where the others
            are somebody else's affair: they join nothing here. None = all.

    Raises:
        ValueError: a connection names an unknown region or kind, or no draw is near enough; the
            message says how near the best was.
    """
    generator = np.random.default_rng(at_least_0("seed", seed))
    matched = topology.reads(layout)
    names = sorted(topology.regions)
    drawn = between(layout, names, names)
    if governed is not None:
        drawn &= np.any([between(layout, [src], [dst]) for src, dst in governed], axis=0)
        matched &= drawn
    sizes = segment_sizes(layout)
    pairs = np.outer(sizes, sizes)
    oneself = np.eye(len(sizes), dtype=bool)
    others = np.argwhere(drawn & ~oneself)
    chosen = subset_near(
        pairs[tuple(others.T)],
        target=int(pairs[matched & ~oneself].sum()),
        slack=TOLERANCE * int(pairs[matched].sum()),
        generator=generator,
    )
    reads = matched & oneself
    reads[tuple(others[chosen].T)] = True
    edges = (
        # Disabled by default, and yet it read something.
        dataclasses.replace(edge, fn="cross_attention")
        if topology.resolve_fn(edge, layout) == NONE_KIND
        else edge
        for edge in from_reads(reads, layout).connections
    )
    return CanvasTopology(tuple(edges))


def subset_near(
    weights: np.ndarray, *, target: int, slack: float, generator: np.random.Generator
) -> np.ndarray:
    """A random subset of a given total weight.

    Weights are taken in random order up to the target. Then single ones are put in, taken out or
    exchanged, each time such as to come nearest, the ones of equal weight at random.

    Args:
        weights: (n,) int64, above 0.
        target: the total.
        slack: how far from it the total may be.
        generator: of the draw.

    Returns:
        (n,) bool.

    Raises:
        ValueError: no draw comes within the slack.
    """
    values, classes = np.unique(weights, return_inverse=True)
    nearest = None
    for _ in range(STARTS):
        order = generator.permutation(len(weights))
        chosen = np.zeros(len(weights), bool)
        chosen[order[: np.searchsorted(np.cumsum(weights[order]), target, side="right")]] = True
        miss = _improve(chosen, weights, values, classes, target, slack, generator)
        nearest = miss if nearest is None else min(nearest, miss, key=abs)
        if abs(miss) <= slack:
            return chosen
    raise ValueError(
        f"no random choice among {len(weights)} (region, frame) pairs allows {target} pairs of "
        f"cells: the nearest of {STARTS} allows {target + nearest}, expected within {slack:g}"
    )


def _improve(chosen, weights, values, classes, target: int, slack: float, generator) -> int:
    """Changes the subset while that helps; returns by how much its total is too large.

    Args:
        chosen: (n,) bool, changed in place.
        weights: (n,) int64.
        values, classes: the different weights (c,), and which of them each weight is (n,).
        target, slack, generator: as for `subset_near`.
    """
    miss = int(weights[chosen].sum()) - target
    # A last class of weight 0 stands for none: to put in or take out without an exchange.
    steps = np.append(values, 0)
    while abs(miss) > slack:
        inside = np.append(np.bincount(classes[chosen], minlength=len(values)) > 0, True)
        outside = np.append(np.bincount(classes[~chosen], minlength=len(values)) > 0, True)
        after = np.abs(miss + steps[None, :] - steps[:, None]).astype(np.float64)
        after[~inside] = after[:, ~outside] = np.inf
        out, into = np.unravel_index(np.argmin(after), after.shape)
        if after[out, into] >= abs(miss):
            break
        for kind, present in ((out, True), (into, False)):
            if kind < len(values):
                place = generator.choice(np.flatnonzero((classes == kind) & (chosen == present)))
                chosen[place] = not present
        miss += int(steps[into] - steps[out])
    return miss
