"""Queries and keys that know where their cells lie on the canvas.

Both forms change queries and keys alone, so that every way to run attention can take them. `rotary`
turns pairs of features by the cell's coordinates, so that scores depend on differences of
coordinates (Su et al. 2021, arXiv:2104.09864). `relative_features` appends features whose product
is a learned function of such differences, added to the scores: a short Fourier series along each
axis, with even and odd terms, so that earlier and later can differ.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import MappingProxyType

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from roam_jax.canvas.layout import CanvasLayout

# Radians a cell of the relative term: periods of about 6, 25, 100 and 400 cells.
FREQUENCIES = 4.0 ** -np.arange(4)
# Slowest turn of a rotary pair, as a share of the fastest, which is 1 radian a cell.
SLOWEST = 1e-4
# Coordinates of a cell: real time, row, column.
AXES = 3
# Rotary pairs need half of the width for time, a quarter each for rows and columns.
WIDTH_MULTIPLE = 8

Coordinates = Float[np.ndarray, "N 3"]


def canvas_coordinates(
    layout: CanvasLayout,
    *,
    without_place: Collection[str] = (),
    corners: Mapping[str, tuple[int, int]] = MappingProxyType({}),
) -> Coordinates:
    """Real time, row and column of every token, float32, region by region.

    Real time is the absolute canvas frame x the region's period; rows and columns count from the
    region's own corner.

    Args:
        layout: the canvas.
        without_place: regions whose tokens have no place, such as text: their rows are NaN.
        corners: region -> row and column from which its own count instead.

    Raises:
        ValueError: `without_place` names an unknown region.
    """
    for name in without_place:
        layout.region_spec(name)
    found = [np.zeros((0, AXES))]
    for name, spec in layout.regions.items():
        grid = (layout.T, layout.H, layout.W)
        places = np.stack(np.unravel_index(layout.region_indices(name), grid), axis=-1)
        row, column = corners.get(name, (spec.bounds[2], spec.bounds[4]))
        places = (places - [0, row, column]) * [spec.period, 1, 1]
        found.append(np.full(places.shape, np.nan) if name in without_place else places)
    return np.concatenate(found).astype(np.float32)


def rotary_angles(coordinates: Coordinates, width: int) -> Float[np.ndarray, "N pairs"]:
    """Radians by which each pair of `width` features turns, float32; 0 for cells without a place.

    The first half of the pairs turns with time, a quarter with the row and one with the column, at
    1 radian a cell down to `SLOWEST`.

    Raises:
        ValueError: the width is no multiple of 8.
    """
    if width % WIDTH_MULTIPLE:
        raise ValueError(f"head width {width}: rotary pairs need a multiple of {WIDTH_MULTIPLE}")
    angles = []
    for axis, pairs in enumerate((width // 4, width // 8, width // 8)):
        frequencies = SLOWEST ** (np.arange(pairs) / pairs)
        angles.append(coordinates[:, axis, None].astype(np.float64) * frequencies)
    return np.nan_to_num(np.concatenate(angles, axis=-1)).astype(np.float32)


def rotary(
    heads: Float[Array, "B N K D"], coordinates: Coordinates, scale: Float[Array, " K"]
) -> Float[Array, "B N K D"]:
    """Turns feature pairs (i, i + D/2) by scale x their angles.

    Args:
        heads: queries or keys.
        coordinates: of their cells; NaN = without a place, left as they are.
        scale: one a head, multiplies all angles; 0 changes nothing.

    Raises:
        ValueError: the width is no multiple of 8.
    """
    angles = rotary_angles(coordinates, heads.shape[-1])[:, None] * scale[:, None]
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    first, second = jnp.split(heads.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, first * sin + second * cos], axis=-1)
    return turned.astype(heads.dtype)


def relative_features(
    query: Float[Array, "B N K D"],
    key: Float[Array, "B M K D"],
    query_coordinates: Float[np.ndarray, "N 3"],
    key_coordinates: Float[np.ndarray, "M 3"],
    amplitude: Float[Array, "K 3 F 2"],
) -> tuple[Float[Array, "B N K Dr"], Float[Array, "B M K Dr"]]:
    """Widens queries and keys by 6F features, so that scores gain a bias by head.

    With q', k' of width D', q' . k' / sqrt(D') = q . k / sqrt(D) + the sum over axes and
    frequencies w of a cos(w d) + b sin(w d), where d is the query's coordinate minus the key's.

    Args:
        query, key: heads.
        query_coordinates, key_coordinates: of their cells; a pair with a cell without a place
            (NaN) has no bias.
        amplitude: a and b, for each head, axis and frequency; 0 gives no bias.
    """
    count = amplitude.shape[2]
    width = query.shape[-1] + 2 * AXES * count
    a, b = (amplitude[..., i].reshape(-1, AXES * count) for i in range(2))
    cos, sin = (x[:, None] for x in _waves(query_coordinates, count))
    wave = np.float32(np.sqrt(width)) * jnp.concatenate(
        [a * cos + b * sin, a * sin - b * cos], axis=-1
    )
    plain = query * np.asarray(np.sqrt(width / query.shape[-1]), query.dtype)
    key_wave = np.concatenate(_waves(key_coordinates, count), axis=-1)[:, None]
    return _widened(plain, wave), _widened(key, key_wave)


def _waves(coordinates: Coordinates, count: int) -> tuple[np.ndarray, np.ndarray]:
    """cos and sin (N, 3F) float32 of coordinates x frequencies, 0 for cells without a place."""
    angles = coordinates[:, :, None].astype(np.float64) * FREQUENCIES[:count]
    angles = angles.reshape(len(coordinates), AXES * count)
    return tuple(np.nan_to_num(f(angles)).astype(np.float32) for f in (np.cos, np.sin))


def _widened(heads: Array, features: Array | np.ndarray) -> Array:
    batch, cells, count, _ = heads.shape
    features = jnp.broadcast_to(features, (batch, cells, count, features.shape[-1]))
    return jnp.concatenate([heads, features.astype(heads.dtype)], axis=-1)
