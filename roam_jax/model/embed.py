"""Cells that the graft adds beside the backbone's own: their encoders and embeddings.

Every new cell is content + modality embedding + position. Content is an encoded vector where data
exists (past actions) and a learned query where it is to be predicted (future actions). Positions
are sinusoidal in time (in actions) and not learned, so that any window length works.
"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def time_positions(times: np.ndarray, width: int) -> Float[np.ndarray, "N D"]:
    """Sinusoidal embedding of integer times, (N,) -> (N, width), sin then cos, in float64."""
    half = width // 2
    frequencies = np.exp(-np.log(10_000.0) * np.arange(half) / half)
    angles = np.asarray(times, np.float64)[:, None] * frequencies
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=-1).astype(np.float32)


class VectorCells(nn.Module):
    """One cell a vector: linear encoding + modality embedding + time position."""

    width: int

    @nn.compact
    def __call__(
        self, vectors: Float[Array, "B N A"], times: Float[np.ndarray, "N D"]
    ) -> Float[Array, "B N D"]:
        """Encodes vectors; `times` are the positions from `time_positions`."""
        modality = self.param("modality", nn.initializers.normal(0.02), (self.width,))
        return nn.Dense(self.width, name="encoder")(vectors) + modality + times


class QueryCells(nn.Module):
    """Cells without data: one learned query a cell + modality embedding + time position."""

    width: int

    @nn.compact
    def __call__(self, batch: int, times: Float[np.ndarray, "N D"]) -> Float[Array, "B N D"]:
        """`batch` copies of the queries."""
        cells = times.shape[0]
        modality = self.param("modality", nn.initializers.normal(0.02), (self.width,))
        query = self.param("query", nn.initializers.normal(0.02), (cells, self.width))
        return jnp.broadcast_to(query + modality + times, (batch, cells, self.width))
