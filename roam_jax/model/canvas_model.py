"""The canvas model: all streams of a scene as cells of one canvas, looped blocks, decoders.

Encoders fill the regions (`cells.py`), blocks run in rounds over all cells under the topology's
plan (`stack.py`), one LayerNorm ends them, and each predicted region has a decoder (`decoders.py`).
The parts are methods of their own, so that cells after any round can be decoded.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from roam_jax import logical
from roam_jax.attention.geometry import canvas_coordinates
from roam_jax.canvas.layout import CanvasLayout
from roam_jax.canvas.plan import compile_plan
from roam_jax.canvas.shards import CellSplit
from roam_jax.canvas.topology import CanvasTopology
from roam_jax.model.block import LAYER_NORM_EPSILON, CanvasBlock
from roam_jax.model.cells import CanvasCells, CellRegion, check_groups, group_corners
from roam_jax.model.decoders import CanvasDecoders, owner_parts
from roam_jax.model.loop_options import LoopOptions
from roam_jax.model.one_round import STATES
from roam_jax.model.sizes import check_sizes
from roam_jax.model.stack import CanvasLoop


class CanvasModel(nn.Module):
    """A looped transformer over the cells of a canvas.

    Its parameters are `cells/REGION/*`, `blocks/*` stacked over depth with `blocks/loop/*` beside
    them, `norm_out/*` and `decoders/REGION/*`; regions of a group share those of `GROUP`.

    Args:
        layout, topology: the canvas.
        regions: one for each region of the layout, in its order.
        options: of the loop.
        depth: number of blocks L.
        heads: attention heads K.
        geometry: how coordinates enter queries and keys, one of `geometry.GEOMETRIES`.
        unroll, remat: how rounds are run, as for `CanvasLoop`.

    Raises:
        ValueError: sizes that do not fit, regions that are not the layout's, or a topology that has
            no plan.
    """

    layout: CanvasLayout
    topology: CanvasTopology
    regions: tuple[CellRegion, ...]
    options: LoopOptions
    depth: int
    heads: int
    geometry: str = "none"
    unroll: bool | None = None
    remat: bool | None = None

    def setup(self):
        """Declares encoders, blocks, norm and decoders."""
        check_sizes(width=self.layout.d_model, depth=self.depth, heads=self.heads)
        names = [region.name for region in self.regions]
        if names != list(self.layout.regions):
            raise ValueError(
                f"regions {names}: expected those of the layout, {[*self.layout.regions]}"
            )
        check_groups(self.layout, self.regions)
        self.cells = CanvasCells(self.layout, self.regions)
        coordinates = None
        if self.geometry != "none":
            corners = group_corners(self.layout, self.regions)
            coordinates = canvas_coordinates(self.layout, corners=corners)
        make_block = functools.partial(
            CanvasBlock,
            self.layout.d_model,
            self.heads,
            compile_plan(self.layout, self.topology),
            self.geometry,
            coordinates,
        )
        self.rounds = CanvasLoop(
            make_block=make_block,
            depth=self.depth,
            width=self.layout.d_model,
            options=self.options,
            parts=owner_parts(self.layout, self.regions),
            unroll=self.unroll,
            remat=self.remat,
        )
        nn.share_scope(self, self.rounds)
        self.norm_out = nn.LayerNorm(epsilon=LAYER_NORM_EPSILON, use_fast_variance=False)
        self.decoders = CanvasDecoders(self.layout, self.regions, self.heads)

    def __call__(
        self,
        data: Mapping[str, Array],
        timesteps: Mapping[str, Int[Array, " B"]],
        *,
        batch: int,
        rounds: int,
        **options: Any,
    ) -> tuple[dict[str, Float[Array, "B _ A"]], dict]:
        """Predictions of all predicted regions, and what was measured on the way.

        Args:
            data, timesteps, batch: as for `embed`.
            rounds, options: as for `loop`.

        Returns:
            region -> velocity, value or logits of its cells (B, N, A); the second as of `loop`.
        """
        cells, info = self.loop(self.embed(data, timesteps, batch=batch), rounds=rounds, **options)
        return self.decode(self.finish(cells)), info

    def embed(
        self,
        data: Mapping[str, Array],
        timesteps: Mapping[str, Int[Array, " B"]],
        *,
        batch: int,
    ) -> Float[Array, "B N D"]:
        """The cells before the first block.

        Args:
            data: region -> (B, N, A) of patches and vectors, (B, N) of scalars and tokens (int32),
                for each region that holds data: inputs clean, diffused outputs noised.
            timesteps: region -> noise level 0..999 of each row, or `cells.CLEAN`, for each diffused
                region.
            batch: batch size B.

        Raises:
            ValueError: data does not fit the regions.
        """
        return self.cells(data, timesteps, batch=batch)

    def loop(
        self, cells: Float[Array, "B N D"], *, rounds: int, **options: Any
    ) -> tuple[Float[Array, "B N D"], dict]:
        """The cells after the last round, as the blocks leave them.

        Args:
            cells: from `embed`.
            rounds: static number of rounds.
            options: extrapolate, exit, collect and threshold, as for `CanvasLoop`.

        Returns:
            The cells, and measure -> region or group -> (depth or 1, rounds).
        """
        count, shards = cells.shape[1], logical.shards(cells, logical.CELLS)
        if shards == 1:
            return self.rounds(cells, rounds=rounds, **options)
        # Encoders and decoders are small, and have some cells each: all of them on every device.
        cells = logical.constrain(cells, logical.BATCH, None, None)
        # Devices hold as many cells each; those added at the end are read by none.
        more = CellSplit((count,), shards).padded[0] - count
        cells = jnp.pad(cells, ((0, 0), (0, more), (0, 0)))
        cells, info = self.rounds(cells, rounds=rounds, **options)
        if STATES in info:
            info[STATES] = info[STATES][:, :, :count]
        cells = logical.constrain(cells, logical.BATCH, None, None)
        return cells[:, :count], info

    def finish(self, cells: Float[Array, "B N D"]) -> Float[Array, "B N D"]:
        """Cells after any round, normed as decoders read them."""
        return self.norm_out(cells)

    def decode(
        self, cells: Float[Array, "B N D"], wanted: Collection[str] | None = None
    ) -> dict[str, Float[Array, "B _ A"]]:
        """Predictions by region.

        Args:
            cells: from `finish`.
            wanted: regions; None = all that are predicted.
        """
        return self.decoders(cells, wanted)
