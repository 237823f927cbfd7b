"""Decoders of a canvas model: from the cells of a region to what it predicts.

A ladder of capacity: `linear` reads each cell on its own by one matrix, `mlp` by two with a
nonlinearity between, `attention` lets each cell of the region look at all cells of the canvas
first. Every last layer starts at zero, so that an untrained model predicts 0, and classes alike.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from roam_jax.attention import dense
from roam_jax.canvas.layout import CanvasLayout
from roam_jax.model.block import LAYER_NORM_EPSILON
from roam_jax.model.cells import CellRegion

# The hidden layer, in widths of a cell.
HIDDEN = 2


class RegionDecoder(nn.Module):
    """The decoder of one region.

    Args:
        kind: one of `cells.DECODERS`.
        features: numbers of a cell that are predicted.
        heads: attention heads K.
    """

    kind: str
    features: int
    heads: int

    @nn.compact
    def __call__(
        self, cells: Float[Array, "B N D"], canvas: Float[Array, "B M D"]
    ) -> Float[Array, "B N A"]:
        """Predictions of the region's cells.

        Args:
            cells: of the region, normed.
            canvas: all cells, normed.
        """
        width = cells.shape[-1]

        def heads(name: str, cells: Array) -> Array:
            return einops.rearrange(
                nn.Dense(width, name=name)(cells), "B N (K D) -> B N K D", K=self.heads
            )

        if self.kind == "attention":
            read = dense.attention(
                heads("to_q", cells), heads("to_k", canvas), heads("to_v", canvas)
            )
            read = einops.rearrange(read, "B N K D -> B N (K D)")
            cells = cells + nn.Dense(width, name="to_out")(read)
            cells = nn.LayerNorm(epsilon=LAYER_NORM_EPSILON, use_fast_variance=False, name="norm")(
                cells
            )
        if self.kind != "linear":
            cells = jax.nn.gelu(nn.Dense(HIDDEN * width, name="hidden")(cells))
        return nn.Dense(self.features, name="out", kernel_init=nn.initializers.zeros_init())(cells)


class CanvasDecoders(nn.Module):
    """The decoders of all predicted regions, each region's parameters under their owner's name.

    Args:
        layout: the canvas.
        regions: one for each region of the layout, in its order.
        heads: attention heads K.
    """

    layout: CanvasLayout
    regions: tuple[CellRegion, ...]
    heads: int

    @nn.compact
    def __call__(
        self, canvas: Float[Array, "B N D"], wanted: Collection[str] | None = None
    ) -> dict[str, Float[Array, "B _ A"]]:
        """Predictions by region.

        Args:
            canvas: all cells, normed.
            wanted: regions; None = all that are predicted.
        """
        places, found = region_slices(self.layout), {}
        groups: dict[str, list[CellRegion]] = {}
        for region in self.regions:
            if region.objective and (wanted is None or region.name in wanted):
                groups.setdefault(region.owner, []).append(region)
        for owner, regions in groups.items():
            first = regions[0]
            decode = RegionDecoder(first.decoder, first.features, self.heads, name=owner)
            cells = [canvas[:, places[region.name]] for region in regions]
            decoded = decode(jnp.concatenate(cells, axis=1), canvas)
            parts = jnp.split(decoded, len(regions), axis=1)
            found |= {region.name: part for region, part in zip(regions, parts, strict=True)}
        return found


def owner_parts(
    layout: CanvasLayout, regions: Sequence[CellRegion]
) -> dict[str, slice | np.ndarray]:
    """Group, or region without one -> its places in the sequence of cells."""
    places, owned = region_slices(layout), {}
    for region in regions:
        owned.setdefault(region.owner, []).append(places[region.name])
    return {owner: _joined(slices) for owner, slices in owned.items()}


def _joined(slices: Sequence[slice]) -> slice | np.ndarray:
    """One slice where they follow each other, else indices."""
    indices = np.concatenate([np.arange(s.start, s.stop) for s in slices])
    low, high = slices[0].start, slices[-1].stop
    return slice(low, high) if len(indices) == high - low else indices


def region_slices(layout: CanvasLayout) -> dict[str, slice]:
    """Region -> its place in the sequence of cells."""
    ends = np.cumsum([layout.region_numel(name) for name in layout.regions]).tolist()
    starts = [0, *ends[:-1]]
    return {
        name: slice(start, end)
        for name, start, end in zip(layout.regions, starts, ends, strict=True)
    }
