"""Cells of a canvas model: what fills each region before the first block.

Every cell is content + modality + position. Content is encoded data, of which diffused regions have
noised data and, added to it, the code of their noise level; or, where there is no data, a learned
query of the cell. Regions are noised each on its own, so the level belongs to region and row; a
region that is given as it is has a level of its own, `CLEAN`.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from roam_jax.canvas.layout import CanvasLayout
from roam_jax.diffusion.schedule import NoiseSchedule
from roam_jax.logical import BATCH, constrain
from roam_jax.model.embed import TIMESTEP_WIDTH, cell_positions, sinusoids
from roam_jax.spelling import check_choice

# Kinds of data that have an encoder; `QUERIES` are cells without data.
ENCODED = ("patches", "vectors", "tokens", "scalars")
QUERIES = "queries"
OBJECTIVES = ("diffusion", "regression", "classification")
DECODERS = ("linear", "mlp", "attention")
# Timestep of what is not noised.
CLEAN = -1
# Deviation of learned vectors at the start: about that of position and content, which they must be
# told apart from. With 0.02 the diffused regions of configs/canvas_toy.py learn a third slower.
START = 0.5
# A number enters as sin and cos at this many frequencies, doubling from one whose period is 16,
# well beyond the range of noised values.
SCALAR_OCTAVES, LONGEST_PERIOD = 8, 16.0


@dataclasses.dataclass(frozen=True)
class CellRegion:
    """What a canvas model must know of a region.

    Args:
        name: of a region of the layout.
        kind: one of `ENCODED`, or `QUERIES`.
        features: numbers of a cell: pixels x channels of a patch, dimensions of a vector, 1 of a
            scalar, size of the vocabulary of tokens; 0 of queries.
        objective: how it is predicted, one of `OBJECTIVES`; "" where it is not.
        decoder: what predicts it, one of `DECODERS`; "" where it is not.
        group: regions of one group are alike and share encoder, query and decoder, whose parameters
            are named by it; so that there may be any number of them. "" = alone, by its own name.

    Raises:
        ValueError: there is no encoder of this kind, or no such decoder or objective, or one of the
            two is missing.
    """

    name: str
    kind: str
    features: int
    objective: str = ""
    decoder: str = ""
    group: str = ""

    def __post_init__(self):
        check_choice(f"kind of region {self.name!r}", self.kind, (*ENCODED, QUERIES))
        if self.objective:
            check_choice(f"objective of region {self.name!r}", self.objective, OBJECTIVES)
            check_choice(f"decoder of region {self.name!r}", self.decoder, DECODERS)
        elif self.decoder:
            raise ValueError(
                f"region {self.name!r} has the decoder {self.decoder!r}, but is not predicted; "
                "expected none, or an output region"
            )
        if (self.kind == "tokens") != (self.objective == "classification") and self.objective:
            raise ValueError(
                f"region {self.name!r} of {self.kind} has the objective {self.objective!r}: tokens "
                "are classified, and nothing else is"
            )

    @property
    def owner(self) -> str:
        """Name of its parameters, in the sections of cells and decoders."""
        return self.group or self.name

    @property
    def diffused(self) -> bool:
        """Whether it enters noised and its velocity is predicted."""
        return self.objective == "diffusion"

    @property
    def holds_data(self) -> bool:
        """Whether data enters the region, clean or noised."""
        return self.kind != QUERIES and (not self.objective or self.diffused)


def check_groups(layout: CanvasLayout, regions: Sequence[CellRegion]) -> None:
    """Refuses groups whose regions could not share parameters.

    Raises:
        ValueError: names two regions that are not alike, or one named as a group of others.
    """
    first: dict[str, CellRegion] = {}
    for region in regions:
        other = first.setdefault(region.owner, region)
        alike = dataclasses.replace(region, name=other.name) == other
        sizes = [layout.region_numel(r.name) for r in (other, region)]
        if not alike or sizes[0] != sizes[1]:
            raise ValueError(
                f"regions {other.name!r} ({sizes[0]} cells: {other}) and {region.name!r} "
                f"({sizes[1]} cells: {region}) share the parameters {region.owner!r}: expected "
                "the same kind, numbers, objective, decoder and cells"
            )


def group_corners(
    layout: CanvasLayout, regions: Sequence[CellRegion]
) -> dict[str, tuple[int, int]]:
    """Region of a group -> row and column of the group's corner, from which its cells count."""
    corners: dict[str, tuple[int, int]] = {}
    grouped = [region for region in regions if region.group]
    for region in grouped:
        _, _, row, _, column, _ = layout.region_spec(region.name).bounds
        low = corners.get(region.group, (row, column))
        corners[region.group] = (min(low[0], row), min(low[1], column))
    return {region.name: corners[region.group] for region in grouped}


def scalar_features(values: Float[Array, "B N"]) -> Float[Array, "B N features"]:
    """sin, then cos, of numbers at `SCALAR_OCTAVES` frequencies."""
    frequencies = 2 * np.pi / LONGEST_PERIOD * 2.0 ** np.arange(SCALAR_OCTAVES)
    angles = values[..., None] * frequencies.astype(np.float32)
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


class RegionCells(nn.Module):
    """The cells of one region.

    Args:
        region: what it holds.
        width: width D of a cell.
    """

    region: CellRegion
    width: int

    @nn.compact
    def __call__(
        self,
        values: Array | None,
        timesteps: Int[Array, " B"] | None,
        *,
        positions: Float[np.ndarray, "N D"],
        batch: int,
        copies: int = 1,
    ) -> Float[Array, "B N D"]:
        """Content + modality + position.

        Args:
            values: (B, N, A) float32, or (B, N) int32 of tokens and float32 of scalars; None where
                the region holds no data.
            timesteps: noise levels, `CLEAN` to 999, of a diffused region.
            positions: from `embed.cell_positions`.
            batch: batch size B.
            copies: regions of a group that come together, with as many cells each.
        """
        start = nn.initializers.normal(START)
        modality = self.param("modality", start, (self.width,))
        if values is None:
            query = self.param("query", start, (positions.shape[0] // copies, self.width))
            query = jnp.tile(query, (copies, 1))
            return jnp.broadcast_to(query + modality + positions, (batch, *positions.shape))
        cells = self._encode(values) + modality + positions
        if timesteps is None:
            return cells
        # The first code is that of clean data.
        codes = jnp.asarray(sinusoids(np.arange(NoiseSchedule().steps + 1), TIMESTEP_WIDTH))
        level = nn.Dense(self.width, name="noise_level")(codes[timesteps - CLEAN])
        return cells + level[:, None]

    def _encode(self, values: Array) -> Float[Array, "B N D"]:
        if self.region.kind == "tokens":
            start = nn.initializers.normal(1.0)
            table = nn.Embed(self.region.features, self.width, embedding_init=start, name="encoder")
            # Split by rows alone, and so is its gradient: XLA adds it up wrongly where a few cells
            # are split over devices that do not divide them.
            return constrain(table(values), BATCH, None, None)
        if self.region.kind == "scalars":
            values = scalar_features(values)
        return nn.Dense(self.width, name="encoder")(values)


class CanvasCells(nn.Module):
    """The cells of all regions, each region's parameters under the name of their owner.

    Args:
        layout: the canvas.
        regions: one for each region of the layout, in its order.
    """

    layout: CanvasLayout
    regions: tuple[CellRegion, ...]

    @nn.compact
    def __call__(
        self,
        data: Mapping[str, Array],
        timesteps: Mapping[str, Int[Array, " B"]],
        *,
        batch: int,
    ) -> Float[Array, "B N D"]:
        """The sequence of cells, region by region in layout order.

        Args:
            data: region -> values, for each that holds data.
            timesteps: region -> noise level of each row, for each that is diffused.
            batch: batch size B.

        Raises:
            ValueError: data or noise levels for other regions than these, or of a wrong shape.
        """
        self._check(data, timesteps, batch)
        corners = group_corners(self.layout, self.regions)
        encoders, cells = {}, []
        # Neighbours of a group are encoded at once, but each has a noise level of its own.
        for owner, run in itertools.groupby(self.regions, lambda r: (r.owner, r.diffused and r)):
            regions, name = list(run), owner[0]
            if name not in encoders:
                encoders[name] = RegionCells(regions[0], self.layout.d_model, name=name)
            names = [region.name for region in regions]
            positions = [cell_positions(self.layout, n, corner=corners.get(n)) for n in names]
            values = [data[n] for n in names if n in data]
            found = encoders[name](
                jnp.concatenate(values, axis=1) if values else None,
                timesteps.get(names[0]),
                positions=np.concatenate(positions),
                batch=batch,
                copies=len(names),
            )
            cells.append(found)
        return jnp.concatenate(cells, axis=1)

    def _check(self, data: Mapping[str, Array], timesteps: Mapping[str, Array], batch: int) -> None:
        given = {"data": set(data), "noise levels": set(timesteps)}
        expected = {
            "data": {r.name for r in self.regions if r.holds_data},
            "noise levels": {r.name for r in self.regions if r.diffused},
        }
        for what, names in expected.items():
            if given[what] != names:
                raise ValueError(
                    f"{what} of regions {sorted(given[what])}: expected {sorted(names)}"
                )
        for region in self.regions:
            if region.name not in data:
                continue
            shape = (batch, self.layout.region_numel(region.name))
            if region.kind in ("patches", "vectors"):
                shape = (*shape, region.features)
            if data[region.name].shape != shape:
                raise ValueError(
                    f"data of region {region.name!r} has shape {data[region.name].shape}: expected "
                    f"{shape}"
                )
