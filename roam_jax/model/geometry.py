"""The learned part of position-aware queries and keys; without effect at initialisation."""

from __future__ import annotations

import flax.linen as nn
import numpy as np
from jaxtyping import Array, Float

from roam_jax.attention.geometry import (
    AXES,
    FREQUENCIES,
    relative_features,
    rotary,
)
from roam_jax.spelling import check_choice

GEOMETRIES = ("none", "relative", "rotary")
_zeros = nn.initializers.zeros_init()


class Geometry(nn.Module):
    """Puts the coordinates of cells into queries and keys.

    `rotary` learns one scale of the angles a head, `relative` a space-time term a head, which makes
    queries and keys wider. Both start at 0, where scores are those of plain attention.

    Args:
        kind: one of `GEOMETRIES`; none has no parameters.
        heads: number of heads K.
    """

    kind: str
    heads: int

    @nn.compact
    def __call__(
        self,
        query: Float[Array, "B N K D"],
        key: Float[Array, "B M K D"],
        query_coordinates: Float[np.ndarray, "_ 3"] | None,
        key_coordinates: Float[np.ndarray, "_ 3"] | None,
    ) -> tuple[Float[Array, "B N K Dr"], Float[Array, "B M K Dr"]]:
        """Queries and keys for scores.

        Args:
            query, key: projected heads.
            query_coordinates, key_coordinates: (cells, 3) of theirs, from
                `attention.geometry.canvas_coordinates`; not read by the kind none.

        Raises:
            ValueError: no such kind, or coordinates of another number of cells.
        """
        check_choice("geometry", self.kind, GEOMETRIES)
        if self.kind == "none":
            return query, key
        for name, cells, places in (
            ("query", query, query_coordinates),
            ("key", key, key_coordinates),
        ):
            count = None if places is None else len(places)
            if count != cells.shape[1]:
                raise ValueError(
                    f"geometry {self.kind!r} has coordinates of {count} {name} cells, expected "
                    f"{cells.shape[1]}"
                )
        if self.kind == "rotary":
            scale = self.param("rotary_scale", _zeros, (self.heads,))
            return rotary(query, query_coordinates, scale), rotary(key, key_coordinates, scale)
        shape = (self.heads, AXES, len(FREQUENCIES), 2)
        amplitude = self.param("amplitude", _zeros, shape)
        return relative_features(query, key, query_coordinates, key_coordinates, amplitude)
