"""Which cells of a graft run through which application of its blocks.

Where only some outputs are wanted, the last applications need fewer cells than the first: a cell
that no wanted output can read any more is left out (`canvas/slicing.py`). The applications that
need the same cells run in one scan over the depth; the few that need fewer run one by one.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Collection, Mapping

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from roam_jax.canvas.layout import CanvasLayout
from roam_jax.canvas.plan import AttentionPlan, compile_plan
from roam_jax.canvas.shards import CellSplit
from roam_jax.canvas.slicing import CanvasSlice, slice_canvas
from roam_jax.canvas.topology import CanvasTopology
from roam_jax.cogvideox.block import JointCells

# Stream -> region -> where its cells stand in the stream.
Parts = Mapping[str, Mapping[str, slice]]


@dataclasses.dataclass(frozen=True, eq=False)
class PassCells(JointCells):
    """The cells of one application, and of which regions those are that go out.

    Args:
        parts: of the streams "text" and "video"; every region of the layout, also without cells.
    """

    parts: Parts = dataclasses.field(default_factory=dict)

    def count(self, region: str) -> int:
        """How many cells of a region go out."""
        (place,) = (regions[region] for regions in self.parts.values() if region in regions)
        return place.stop - place.start


@dataclasses.dataclass(frozen=True, eq=False)
class Passes:
    """Applications of the blocks, block by block and round by round; static.

    Args:
        blocks, rounds: how many there are.
        start: (M,) places, in the whole joint sequence, of the cells that enter the first block.
        scanned: how many of the first blocks keep all these cells in all rounds.
        cells: of their applications.
        tails: for each further block its last rounds, which keep fewer cells each; the rounds
            before these run on `cells`.
        end: (N,) places of the cells that leave the last block.
    """

    blocks: int
    rounds: int
    start: Int[np.ndarray, " M"]
    scanned: int
    cells: PassCells
    tails: tuple[tuple[PassCells, ...], ...]
    end: Int[np.ndarray, " N"]

    def counts(self, region: str) -> Int[np.ndarray, "blocks rounds"]:
        """How many cells of a region each application keeps."""
        found = np.full((self.blocks, self.rounds), self.cells.count(region))
        for block, tail in enumerate(self.tails, start=self.scanned):
            first = self.rounds - len(tail)
            found[block, first:] = [cells.count(region) for cells in tail]
        return found

    def mean_of_cells(
        self, means: Mapping[str, Float[Array, "blocks rounds"]]
    ) -> Float[Array, "blocks rounds"]:
        """Over all cells that an application keeps, from the means over those of each region."""
        counts = {region: self.counts(region) for region in means}
        # Of a region without cells there is no mean.
        sums = [jnp.where(n > 0, means[region] * n, 0.0) for region, n in counts.items()]
        return sum(sums) / sum(counts.values())


def plan_passes(
    layout: CanvasLayout,
    topology: CanvasTopology,
    *,
    blocks: int,
    rounds: int,
    frames: Int[np.ndarray, " N"] | None = None,
    coordinates: Float[np.ndarray, "M 3"] | None = None,
    wanted: Collection[str] | None = None,
    shards: int = 1,
) -> Passes:
    """Plans every application; without `wanted` all of them keep all cells.

    Args:
        layout, topology: of the graft; its first region is the text.
        blocks, rounds: applications of the stack of blocks.
        frames: latent frame of every cell but the text's, where frames have timesteps of their own.
        coordinates: of every cell, where positions enter queries and keys.
        wanted: regions whose cells are wanted after the last block; None = all.
        shards: devices that text and video are split over; then all cells are kept, since these
            lie where they are.

    Raises:
        ValueError: as `compile_plan` and `slice_canvas`.
    """
    count = sum(layout.region_numel(name) for name in layout.regions)
    every = np.arange(count)
    if shards > 1:
        cells = _split_cells(layout, topology, frames, coordinates, shards)
        return Passes(blocks, rounds, every, blocks, cells, (), every)
    if wanted is None:
        cells = PassCells(_plan(layout, topology), frames, coordinates, parts=_parts(layout, every))
        return Passes(blocks, rounds, every, blocks, cells, (), every)
    sliced = slice_canvas(topology, layout, tuple(wanted), applications=blocks * rounds)
    texts = layout.region_numel(next(iter(layout.regions)))

    def application(number: int, *, shrinks: bool) -> PassCells:
        incoming = sliced.cells(number)
        own = frames
        if frames is not None:
            own = frames[incoming[incoming >= texts] - texts]
        return PassCells(
            _plan(layout, topology, sliced, number),
            own,
            None if coordinates is None else coordinates[incoming],
            sliced.cells_within(number) if shrinks else None,
            parts=_parts(layout, sliced.cells(number + 1)),
        )

    scanned = sliced.steady // rounds
    tails = tuple(
        tuple(
            application(number, shrinks=True)
            for number in range(max(block * rounds, sliced.steady), (block + 1) * rounds)
        )
        for block in range(scanned, blocks)
    )
    start, end = sliced.cells(0), sliced.cells(blocks * rounds)
    # Without a steady application nothing runs on these cells.
    first = PassCells(parts=_parts(layout, start))
    if sliced.steady:
        first = application(0, shrinks=False)
    return Passes(blocks, rounds, start, scanned, first, tails, end)


def _split_cells(
    layout: CanvasLayout,
    topology: CanvasTopology,
    frames: Int[np.ndarray, " N"] | None,
    coordinates: Float[np.ndarray, "M 3"] | None,
    shards: int,
) -> PassCells:
    """All cells in every application, text and video each over so many devices."""
    texts, *others = (layout.region_numel(name) for name in layout.regions)
    split = CellSplit((texts, sum(others)), shards)
    return PassCells(
        _plan(layout, topology),
        None if frames is None else split.padded_stream(frames, 1),
        None if coordinates is None else split.spread(coordinates),
        split=split,
        parts=_parts(layout, np.arange(sum(split.lengths))),
    )


def _parts(layout: CanvasLayout, places: Int[np.ndarray, " M"]) -> Parts:
    """Of some cells of the joint sequence, given by their rising places in it."""
    names = list(layout.regions)
    ends = np.cumsum([layout.region_numel(name) for name in names])
    borders = np.searchsorted(places, [0, *ends]).tolist()
    text, *others = names
    texts = borders[1]
    video = {
        name: slice(first - texts, end - texts)
        for name, (first, end) in zip(others, itertools.pairwise(borders[1:]), strict=True)
    }
    return {"text": {text: slice(0, texts)}, "video": video}


def _plan(
    layout: CanvasLayout,
    topology: CanvasTopology,
    sliced: CanvasSlice | None = None,
    number: int = 0,
) -> AttentionPlan | None:
    """Of one application; None where every cell reads every other, as in the backbone."""
    some = {}
    if sliced is not None:
        some = {"queries": sliced.kept[number + 1], "keys": sliced.kept[number]}
    plan = compile_plan(layout, topology, **some)
    return None if plan.is_free else plan
