"""The transformer block of a canvas model that is trained from scratch.

Attention under a plan, then a feed-forward layer, each behind a LayerNorm and added to the cells.
A block may keep fewer cells than it reads: then queries, output and feed-forward layer run on
those alone.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from roam_jax import logical
from roam_jax.attention import dense, sharded
from roam_jax.canvas.plan import AttentionPlan
from roam_jax.canvas.shards import CellSplit
from roam_jax.logical import BATCH, DEPTH, HEADS, HIDDEN, WIDTH, axes, constrain
from roam_jax.model.edge_kinds import KindedAttention
from roam_jax.model.geometry import Geometry
from roam_jax.model.looped import LAYER_OUTPUT
from roam_jax.model.one_round import Round
from roam_jax.model.round_measures import Streams

# The stream of a canvas model in a `LoopedBlock`.
CELLS = "cells"
# How the projections of the blocks are split, stacked over depth; attention is `attn`, or `attn1`
# in a CogVideoX block. What is not named here is split by the rules of a task.
BLOCK_RULES = (
    (r"^blocks/attn1?/to_[qkv]/kernel$", axes(DEPTH, WIDTH, HEADS)),
    (r"^blocks/attn1?/to_[qkv]/bias$", axes(DEPTH, HEADS)),
    (r"^blocks/attn1?/to_out/kernel$", axes(DEPTH, HEADS, WIDTH)),
    (r"^blocks/ff/up/kernel$", axes(DEPTH, WIDTH, HIDDEN)),
    (r"^blocks/ff/up/bias$", axes(DEPTH, HIDDEN)),
    (r"^blocks/ff/down/kernel$", axes(DEPTH, HIDDEN, WIDTH)),
)
LAYER_NORM_EPSILON = 1e-5


@dataclasses.dataclass(frozen=True, eq=False)
class Kept:
    """One application of a block that keeps fewer cells than it reads.

    Args:
        inputs: (M,) numbers, in the whole sequence, of the cells that come in, rising.
        outputs: (N,) the same of those that go out, each among `inputs`.
        plan: its queries are the outputs, its keys the inputs.

    Raises:
        ValueError: an output is no input, or the plan is for other numbers of cells.
    """

    inputs: Int[np.ndarray, " M"]
    outputs: Int[np.ndarray, " N"]
    plan: AttentionPlan

    def __post_init__(self):
        missing = np.setdiff1d(self.outputs, self.inputs)
        if missing.size:
            raise ValueError(f"cell {missing[0]} is kept, but not among the cells that come in")
        sizes = (self.plan.query_cells, self.plan.key_cells)
        if sizes != (len(self.outputs), len(self.inputs)):
            raise ValueError(
                f"the slice keeps {len(self.outputs)} of {len(self.inputs)} cells, but its plan "
                f"has {sizes[0]} queries and {sizes[1]} keys"
            )

    @property
    def places(self) -> Int[np.ndarray, " N"]:
        """Where the outputs stand among the inputs."""
        return np.searchsorted(self.inputs, self.outputs)


def _layer_norm(name: str, dtype: Any) -> nn.LayerNorm:
    return nn.LayerNorm(epsilon=LAYER_NORM_EPSILON, use_fast_variance=False, dtype=dtype, name=name)


class FlatDense(nn.Module):
    """`nn.Dense` on all cells of a batch as one matrix, with the same parameters.

    The gradient of its weights is then a plain matrix product, before which XLA's CPU backend else
    copies and transposes one side: a third of its time at width 512. Where rows and cells are split
    over devices, no one axis could hold both, so that they stay two.

    Args:
        features: that come out.
        dtype: compute dtype.
    """

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, cells: Float[Array, "B N _"]) -> Float[Array, "B N A"]:
        """Each cell on its own."""
        dense = nn.Dense(self.features, dtype=self.dtype)
        nn.share_scope(self, dense)
        if logical.shards(cells, logical.CELLS) > 1:
            return dense(cells)
        flat = dense(einops.rearrange(cells, "B N D -> (B N) D"))
        return einops.rearrange(flat, "(B N) D -> B N D", B=cells.shape[0])


class CanvasAttention(nn.Module):
    """Attention with projections under a plan.

    Fields are those of `CanvasBlock`.
    """

    heads: int
    plan: AttentionPlan
    geometry: str
    coordinates: Float[np.ndarray, "M 3"] | None
    dtype: Any

    @nn.compact
    def __call__(
        self,
        cells: Float[Array, "B M D"],
        inverse_temperature: Float[Array, ""] | None,
        keep: Kept | None,
        rows: Int[Array, "B R"] | None = None,
    ) -> Float[Array, "B _ D"]:
        """What the kept cells, or those of `rows`, read from all cells."""
        width = cells.shape[-1]

        def project(name, cells):
            heads = FlatDense(width, dtype=self.dtype, name=f"to_{name}")(cells)
            return einops.rearrange(heads, "B N (K D) -> B N K D", K=self.heads)

        here = there = self.coordinates
        queries, plan, split = cells, self.plan, cell_split(cells, self.plan)
        if split is not None and self.coordinates is not None:
            here = there = split.spread(self.coordinates)
        if keep is not None:
            queries, plan = cells[:, keep.places], keep.plan
            if self.coordinates is not None:
                here, there = self.coordinates[keep.outputs], self.coordinates[keep.inputs]
        if rows is not None:
            queries = jnp.take_along_axis(cells, rows[..., None], axis=1)
        query, key, value = project("q", queries), project("k", cells), project("v", cells)
        if rows is not None:
            if inverse_temperature is not None:
                query = query * inverse_temperature.astype(query.dtype)
            attended = dense.attention_rows(query, key, value, rows=rows, table=plan.table)
            return self._out(attended)
        geometry = Geometry(self.geometry, self.heads, name="geometry")
        read, by = geometry(query, key, here, there)
        if inverse_temperature is not None:
            read = read * inverse_temperature.astype(read.dtype)
        if plan.is_free and dense.free_in_one_go(read, by):
            return self._out(sharded.attention(read, by, value, split=split))
        attend = KindedAttention(name="edges")
        attended = attend(read, by, value, plan, plain=(query, key), split=split)
        return self._out(attended)

    def _out(self, attended: Float[Array, "B N K D"]) -> Float[Array, "B N _"]:
        """Heads joined and projected."""
        joined = einops.rearrange(attended, "B N K D -> B N (K D)")
        out = FlatDense(joined.shape[-1], dtype=self.dtype, name="to_out")(joined)
        return constrain(out, BATCH, logical.CELLS, None)


def cell_split(cells: Float[Array, "B N D"], plan: AttentionPlan) -> CellSplit | None:
    """How the mesh splits the cells of a canvas, whose last ones may be empty; None = not at all.

    Args:
        cells: under the mesh, if any.
        plan: of the canvas.
    """
    shards = logical.shards(cells, logical.CELLS)
    return None if shards == 1 else CellSplit((plan.query_cells,), shards)


class FeedForward(nn.Module):
    """Widens four times, tanh-approximate gelu, narrows; what it adds is named `LAYER_OUTPUT`."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, cells: Float[Array, "B N D"]) -> Float[Array, "B N D"]:
        """Each cell on its own."""
        width = cells.shape[-1]
        hidden = FlatDense(4 * width, dtype=self.dtype, name="up")(cells)
        hidden = constrain(hidden, BATCH, logical.CELLS, HIDDEN)
        narrowed = FlatDense(width, dtype=self.dtype, name="down")(jax.nn.gelu(hidden))
        narrowed = constrain(narrowed, BATCH, logical.CELLS, None)
        return checkpoint_name(narrowed, LAYER_OUTPUT)


class CanvasBlock(nn.Module):
    """Pre-norm attention and feed-forward layer over the cells of a canvas.

    Args:
        width: width D of the cells.
        heads: attention heads K, a divisor of the width.
        plan: the topology, for all cells.
        geometry: one of `geometry.GEOMETRIES`.
        coordinates: (N, 3) of all cells, from `canvas_coordinates`; needed by a geometry.
        dtype: compute dtype; parameters are float32.
    """

    width: int
    heads: int
    plan: AttentionPlan
    geometry: str = "none"
    coordinates: Float[np.ndarray, "N 3"] | None = None
    dtype: Any = jnp.float32

    @property
    def can_call_rows(self) -> bool:
        """Whether it may run for some cells alone: where that computes less than for all."""
        plain = self.geometry == "none" and not self.plan.edges
        return plain and (self.plan.is_dense or self.plan.is_free)

    @nn.compact
    def __call__(
        self,
        cells: Float[Array, "B N D"],
        inverse_temperature: Float[Array, ""] | None = None,
        *,
        keep: Kept | None = None,
        rows: Int[Array, "B R"] | None = None,
    ) -> Float[Array, "B _ D"]:
        """The cells after the block, or those of them that are kept.

        Args:
            cells: in sequence order.
            inverse_temperature: multiplies scores (those of `kinds.DOT_PRODUCT_KINDS`); None = 1.
            keep: static; what comes in and goes out, where that is not all.
            rows: places of the cells that are kept, which may differ from row to row of the batch;
                for blocks that `can_call_rows`, and not with `keep`.

        Raises:
            ValueError: the width is not `width`, or no multiple of `heads`; or rows are asked of a
                block that cannot give them.
        """
        if cells.shape[-1] != self.width or self.width % self.heads:
            raise ValueError(
                f"cells of width {cells.shape[-1]} and {self.heads} heads: expected width "
                f"{self.width}, a multiple of the heads"
            )
        attend = CanvasAttention(
            self.heads, self.plan, self.geometry, self.coordinates, self.dtype, name="attn"
        )
        if logical.shards(cells, logical.CELLS) > 1 and (keep is not None or rows is not None):
            raise ValueError(
                "some cells alone of a block whose cells are split over devices: expected all "
                "cells, or mesh.sequence = 1"
            )
        if rows is not None and (keep is not None or not self.can_call_rows):
            raise ValueError(
                "rows of a block with a slice, a geometry, or a plan that is neither dense nor "
                "free: expected a block that can_call_rows, and no slice"
            )
        change = attend(_layer_norm("norm1", self.dtype)(cells), inverse_temperature, keep, rows)
        if keep is not None:
            cells = cells[:, keep.places]
        if rows is not None:
            cells = jnp.take_along_axis(cells, rows[..., None], axis=1)
        cells = cells + checkpoint_name(change, LAYER_OUTPUT)
        change = FeedForward(self.dtype, name="ff")(_layer_norm("norm2", self.dtype)(cells))
        return cells + change


def call_block(
    block: CanvasBlock, streams: Streams, this: Round, *, keep: Kept | None = None
) -> Streams:
    """`LoopedBlock.call` of a canvas block."""
    cells = constrain(streams[CELLS].astype(block.dtype), BATCH, logical.CELLS, None)
    return {CELLS: block(cells, this.inverse_temperature, keep=keep).astype(jnp.float32)}


def call_rows(
    block: CanvasBlock, streams: Streams, this: Round, rows: Int[Array, "B R"]
) -> Streams:
    """`LoopedBlock.call_rows` of a canvas block that `can_call_rows`."""
    cells = streams[CELLS].astype(block.dtype)
    return {CELLS: block(cells, this.inverse_temperature, rows=rows).astype(jnp.float32)}


def select_cells(streams: Streams, keep: Kept) -> Streams:
    """`LoopedBlock.select` of a canvas block."""
    return {name: cells[:, keep.places] for name, cells in streams.items()}
