"""Cells that stand beside the backbone's own: their encoders and embeddings.

Every new cell is content + modality embedding + position. Content is an encoded vector where data
exists (past actions, observed robot state) and a learned query where something is to be predicted
or thought. Positions are sinusoidal in real time, row and column and not learned, so that any
window length works. Cells of further videos come with the backbone's own content and positions.
"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Num

from roam_jax.canvas.layout import CanvasLayout
from roam_jax.diffusion.schedule import NoiseSchedule

# Width of the sinusoidal code of a diffusion timestep.
TIMESTEP_WIDTH = 256


def sinusoids(values: Num[np.ndarray, " N"], width: int) -> Float[np.ndarray, "N width"]:
    """sin, then cos, of the values at `width // 2` frequencies from 1 down to 1e-4, float32."""
    half = width // 2
    frequencies = np.exp(-np.log(10_000.0) * np.arange(half) / half)
    angles = np.asarray(values, np.float64)[:, None] * frequencies
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=-1).astype(np.float32)


def cell_positions(
    layout: CanvasLayout, region: str, *, corner: tuple[int, int] | None = None
) -> Float[np.ndarray, "N D"]:
    """Position codes of a region's cells, in their order, float32.

    Half of the width codes real time (canvas frame x period), a quarter the row and a quarter the
    column. The width must be a multiple of 8.

    Args:
        layout: the canvas.
        region: of the layout.
        corner: row and column from which those of the cells count; None = the region's own corner.

    Raises:
        ValueError: unknown region, or the width is no multiple of 8.
    """
    if layout.d_model % 8:
        raise ValueError(f"width {layout.d_model}: 3-D positions need a multiple of 8")
    spec = layout.region_spec(region)
    grid = (layout.T, layout.H, layout.W)
    frames, rows, columns = np.unravel_index(layout.region_indices(region), grid)
    half, quarter = layout.d_model // 2, layout.d_model // 4
    row, column = (spec.bounds[2], spec.bounds[4]) if corner is None else corner
    codes = (
        sinusoids(frames * spec.period, half),
        sinusoids(rows - row, quarter),
        sinusoids(columns - column, quarter),
    )
    return np.concatenate(codes, axis=-1)


class VectorCells(nn.Module):
    """One cell a vector: linear encoding + modality embedding + position."""

    width: int

    @nn.compact
    def __call__(
        self, vectors: Float[Array, "B N A"], positions: Float[np.ndarray, "N D"]
    ) -> Float[Array, "B N D"]:
        """Encodes vectors; `positions` are from `cell_positions`."""
        modality = self.param("modality", nn.initializers.normal(0.02), (self.width,))
        return nn.Dense(self.width, name="encoder")(vectors) + modality + positions


class QueryCells(nn.Module):
    """Cells without data: one learned query a cell + modality embedding + position."""

    width: int

    @nn.compact
    def __call__(self, batch: int, positions: Float[np.ndarray, "N D"]) -> Float[Array, "B N D"]:
        """`batch` copies of the queries."""
        cells = positions.shape[0]
        modality = self.param("modality", nn.initializers.normal(0.02), (self.width,))
        query = self.param("query", nn.initializers.normal(0.02), (cells, self.width))
        return jnp.broadcast_to(query + modality + positions, (batch, cells, self.width))


class NoisedCells(nn.Module):
    """One cell a noised vector: as `VectorCells`, with the vector's own noise level added.

    The level is added to the cell, not to the modulation of the blocks, so that actions may be
    denoised while the video stays at another timestep.
    """

    width: int

    @nn.compact
    def __call__(
        self,
        vectors: Float[Array, "B N A"],
        positions: Float[np.ndarray, "N D"],
        timesteps: Int[Array, " B"],
    ) -> Float[Array, "B N D"]:
        """Encodes vectors that were noised to `timesteps`, 0..999."""
        codes = jnp.asarray(sinusoids(np.arange(NoiseSchedule().steps), TIMESTEP_WIDTH))
        level = nn.Dense(self.width, name="noise_level")(codes[timesteps])
        return VectorCells(self.width, name="vector")(vectors, positions) + level[:, None]


class PatchCells(nn.Module):
    """Cells of another video: the backbone's own patch embedding of it + modality embedding.

    The frozen blocks know video by the backbone's patch projection and positions, so that is how
    another one enters: nothing has to be learned before its cells can be read, and no parameter
    depends on the frame size. But the same projection and positions leave nothing by which a cell
    could be told from that of the first camera at the same place. The vector does that; it starts
    small, so that the cells stay near what the blocks were trained on.
    """

    width: int

    @nn.compact
    def __call__(self, patches: Float[Array, "B N D"]) -> Float[Array, "B N D"]:
        """Embedded patches, which hold their positions, as cells; float32."""
        modality = self.param("modality", nn.initializers.normal(0.02), (self.width,))
        return patches.astype(jnp.float32) + modality
