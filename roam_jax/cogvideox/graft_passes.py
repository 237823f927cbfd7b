"""Which cells of a graft run through which application of its blocks.

Where only some outputs are wanted, the last applications need fewer cells than the first: a cell
that no wanted output can read any more is left out (`canvas/slicing.py`). The applications that
need the same cells run in one scan over the depth; the few that need fewer run one by one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

import numpy as np
from jaxtyping import Float, Int

from roam_jax.canvas.layout import CanvasLayout
from roam_jax.canvas.plan import AttentionPlan, compile_plan
from roam_jax.canvas.slicing import CanvasSlice, slice_canvas
from roam_jax.canvas.topology import CanvasTopology
from roam_jax.cogvideox.block import JointCells


@dataclasses.dataclass(frozen=True, eq=False)
class Passes:
    """Applications of the blocks, block by block and round by round; static.

    Args:
        start: (M,) places, in the whole joint sequence, of the cells that enter the first block.
        scanned: how many of the first blocks keep all these cells in all rounds.
        cells: of their applications.
        tails: for each further block its last rounds, which keep fewer cells each; the rounds
            before these run on `cells`.
        end: (N,) places of the cells that leave the last block.
    """

    start: Int[np.ndarray, " M"]
    scanned: int
    cells: JointCells
    tails: tuple[tuple[JointCells, ...], ...]
    end: Int[np.ndarray, " N"]


def plan_passes(
    layout: CanvasLayout,
    topology: CanvasTopology,
    *,
    blocks: int,
    rounds: int,
    frames: Int[np.ndarray, " N"] | None = None,
    coordinates: Float[np.ndarray, "M 3"] | None = None,
    wanted: Collection[str] | None = None,
) -> Passes:
    """Plans every application; without `wanted` all of them keep all cells.

    Args:
        layout, topology: of the graft; its first region is the text.
        blocks, rounds: applications of the stack of blocks.
        frames: latent frame of every cell but the text's, where frames have timesteps of their own.
        coordinates: of every cell, where positions enter queries and keys.
        wanted: regions whose cells are wanted after the last block; None = all.

    Raises:
        ValueError: as `compile_plan` and `slice_canvas`.
    """
    count = sum(layout.region_numel(name) for name in layout.regions)
    if wanted is None:
        every = np.arange(count)
        cells = JointCells(_plan(layout, topology), frames, coordinates)
        return Passes(every, blocks, cells, (), every)
    sliced = slice_canvas(topology, layout, tuple(wanted), applications=blocks * rounds)
    texts = layout.region_numel(next(iter(layout.regions)))

    def application(number: int, *, shrinks: bool) -> JointCells:
        incoming = sliced.cells(number)
        own = frames
        if frames is not None:
            own = frames[incoming[incoming >= texts] - texts]
        return JointCells(
            _plan(layout, topology, sliced, number),
            own,
            None if coordinates is None else coordinates[incoming],
            sliced.cells_within(number) if shrinks else None,
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
    first = application(0, shrinks=False) if sliced.steady else JointCells()
    return Passes(start, scanned, first, tails, end)


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
