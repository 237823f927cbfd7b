"""Encoders and positions of the new cells against numpy."""

import jax.numpy as jnp
import numpy as np
import pytest

from roam_jax.canvas.layout import CanvasLayout, RegionSpec
from roam_jax.model.embed import (
    NoisedCells,
    QueryCells,
    VectorCells,
    cell_positions,
    sinusoids,
)
from tests.model.modules import linear, random_params

WIDTH = 16
LAYOUT = CanvasLayout(
    T=6,
    H=4,
    W=3,
    d_model=WIDTH,
    regions={
        "state": RegionSpec((2, 4, 0, 1, 0, 1)),
        "thought": RegionSpec((0, 2, 1, 3, 0, 2), period=3, length=7),
    },
)


def wave(value, width):
    angles = value * 10_000.0 ** (-np.arange(width // 2) / (width // 2))
    return np.concatenate([np.sin(angles), np.cos(angles)])


def test_sinusoids_have_their_closed_form():
    found = sinusoids(np.array([0, 3, 999]), 8)
    np.testing.assert_allclose(found, [wave(v, 8) for v in (0, 3, 999)], rtol=1e-6, atol=1e-7)


def test_positions_are_real_time_row_and_column_of_the_box():
    found = cell_positions(LAYOUT, "thought")
    cells = [(3 * t, h, w) for t in range(2) for h in range(2) for w in range(2)][:7]
    expected = [np.concatenate([wave(t, 8), wave(h, 4), wave(w, 4)]) for t, h, w in cells]
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)
    times = cell_positions(LAYOUT, "state")[:, :8]
    np.testing.assert_allclose(times, [wave(2, 8), wave(3, 8)], rtol=1e-6)


def test_a_width_that_three_axes_do_not_share_is_refused():
    layout = CanvasLayout(T=1, H=1, W=1, d_model=12, regions={"state": (0, 1, 0, 1, 0, 1)})
    with pytest.raises(ValueError, match="width 12: 3-D positions need a multiple of 8"):
        cell_positions(layout, "state")


def test_cells_are_content_plus_modality_plus_position():
    positions = cell_positions(LAYOUT, "state")
    vectors = np.random.default_rng(0).standard_normal((3, 2, 7)).astype(np.float32)
    encoder = VectorCells(WIDTH)
    params = random_params(encoder, jnp.asarray(vectors), positions)
    expected = linear(params["encoder"], vectors) + params["modality"] + positions
    out = encoder.apply({"params": params}, jnp.asarray(vectors), positions)
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)

    queries = QueryCells(WIDTH)
    params = {
        "modality": np.ones(WIDTH, "f4"),
        "query": np.arange(2 * WIDTH, dtype="f4").reshape(2, WIDTH),
    }
    expected = np.broadcast_to(params["query"] + params["modality"] + positions, (3, 2, WIDTH))
    np.testing.assert_allclose(queries.apply({"params": params}, 3, positions), expected, rtol=1e-6)


def test_noised_cells_know_their_noise_level():
    positions = cell_positions(LAYOUT, "state")
    vectors = np.random.default_rng(0).standard_normal((3, 2, 7)).astype(np.float32)
    times = jnp.array([0, 500, 999])
    encoder = NoisedCells(WIDTH)
    params = random_params(encoder, jnp.asarray(vectors), positions, times)
    level = linear(params["noise_level"], np.stack([wave(t, 256) for t in (0, 500, 999)]))
    vector = params["vector"]
    content = linear(vector["encoder"], vectors) + vector["modality"] + positions
    out = encoder.apply({"params": params}, jnp.asarray(vectors), positions, times)
    np.testing.assert_allclose(out, content + level[:, None], rtol=1e-4, atol=1e-4)
