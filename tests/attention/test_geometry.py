"""Positions in queries and keys against float64 numpy with an explicit bias for every pair."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax

from roam_jax.attention.geometry import (
    FREQUENCIES,
    canvas_coordinates,
    relative_features,
    rotary,
)
from roam_jax.canvas.layout import CanvasLayout, RegionSpec
from roam_jax.model.geometry import Geometry

HEADS, WIDTH = 3, 16
LAYOUT = CanvasLayout(
    T=6,
    H=4,
    W=3,
    d_model=48,
    regions={
        "text": RegionSpec((0, 1, 0, 1, 0, 3)),
        "thought": RegionSpec((1, 3, 1, 3, 1, 3), period=3, length=7),
        "state": RegionSpec((2, 4, 0, 1, 0, 1)),
    },
)
COORDINATES = canvas_coordinates(LAYOUT, without_place=("text",))


def heads(*, count=3):
    rng = np.random.default_rng(0)
    shape = (count, 2, len(COORDINATES), HEADS, WIDTH)
    return tuple(jnp.asarray(x) for x in rng.standard_normal(shape).astype(np.float32))


def attend(query, key, value):
    """All to all; values may be narrower than queries and keys."""
    scores = jnp.einsum("BNKD,BMKD->BKNM", query, key) / np.sqrt(query.shape[-1])
    return jnp.einsum("BKNM,BMKD->BNKD", jax.nn.softmax(scores), value)


def test_coordinates_are_real_time_row_and_column_of_the_box():
    thought = [(3 * t, h, w) for t in (1, 2) for h in range(2) for w in range(2)][:7]
    expected = [(np.nan,) * 3] * 3 + thought + [(2, 0, 0), (3, 0, 0)]
    np.testing.assert_array_equal(COORDINATES, expected)
    assert not np.isnan(canvas_coordinates(LAYOUT)).any()
    with pytest.raises(ValueError, match="unknown region 'txt': did you mean 'text'"):
        canvas_coordinates(LAYOUT, without_place=("txt",))


def turned(cell, place, scale):
    """One head's vector, pair by pair as complex numbers."""
    out = cell.astype(np.complex128)[: WIDTH // 2] + 1j * cell[WIDTH // 2 :]
    pair = 0
    for axis, pairs in ((0, 4), (1, 2), (2, 2)):
        for i in range(pairs):
            if not np.isnan(place[axis]):
                out[pair] *= np.exp(1j * scale * place[axis] * 1e-4 ** (i / pairs))
            pair += 1
    return np.concatenate([out.real, out.imag])


def test_rotary_turns_pairs_by_coordinates():
    [cells] = heads(count=1)
    scale = np.array([0, 1, -0.7], np.float32)
    out = rotary(cells, COORDINATES, jnp.asarray(scale))
    for n, place in enumerate(COORDINATES):
        for k in range(HEADS):
            expected = turned(np.asarray(cells[1, n, k], np.float64), place, float(scale[k]))
            np.testing.assert_allclose(out[1, n, k], expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(out[:, :, 0], cells[:, :, 0])
    np.testing.assert_array_equal(out[:, :3], cells[:, :3])


def test_rotary_scores_depend_on_differences_alone():
    query, key = heads(count=2)
    scale = jnp.ones(HEADS)
    moved = COORDINATES + np.array([11, 5, 2], np.float32)
    scores = [
        jnp.einsum("BNKD,BMKD->BKNM", rotary(query, at, scale), rotary(key, at, scale))[..., 3:, 3:]
        for at in (COORDINATES, moved)
    ]
    np.testing.assert_allclose(*scores, rtol=1e-4, atol=1e-4)


def test_relative_features_add_a_bias_to_every_pair():
    query, key, value = heads()
    rng = np.random.default_rng(3)
    amplitude = rng.standard_normal((HEADS, 3, len(FREQUENCIES), 2)).astype(np.float32)
    difference = COORDINATES[:, None].astype(np.float64) - COORDINATES[None]
    bias = np.zeros((HEADS, len(COORDINATES), len(COORDINATES)))
    for k in range(HEADS):
        for axis in range(3):
            for f, w in enumerate((1, 1 / 4, 1 / 16, 1 / 64)):
                even, odd = amplitude[k, axis, f]
                angle = w * difference[..., axis]
                bias[k] += np.nan_to_num(even * np.cos(angle) + odd * np.sin(angle))
    scores = np.einsum("bnkd,bmkd->bknm", *(np.asarray(x, np.float64) for x in (query, key)))
    weights = softmax(scores / np.sqrt(WIDTH) + bias, axis=-1)
    expected = np.einsum("bknm,bmkd->bnkd", weights, np.asarray(value, np.float64))
    wide = relative_features(query, key, COORDINATES, COORDINATES, jnp.asarray(amplitude))
    assert {x.shape[-1] for x in wide} == {WIDTH + 6 * len(FREQUENCIES)}
    np.testing.assert_allclose(attend(*wide, value), expected, rtol=2e-5, atol=2e-5)
    # Some of the queries: rows of the same.
    some = slice(2, 9, 3)
    wide = relative_features(
        query[:, some], key, COORDINATES[some], COORDINATES, jnp.asarray(amplitude)
    )
    np.testing.assert_allclose(attend(*wide, value), expected[:, some], rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("kind", ["none", "relative", "rotary"])
def test_positions_have_no_effect_at_initialisation_but_gradients(kind):
    query, key, value = heads()
    module = Geometry(kind, HEADS)
    inputs = (query, key, COORDINATES, COORDINATES)
    params = module.init(jax.random.key(0), *inputs).get("params", {})

    def loss(params):
        out = attend(*module.apply({"params": params}, *inputs), value)
        return jnp.sum(out**2), out

    gradient, out = jax.grad(loss, has_aux=True)(params)
    np.testing.assert_allclose(out, attend(query, key, value), rtol=1e-5, atol=1e-6)
    shapes = {"rotary": {"rotary_scale": (HEADS,)}, "relative": {"amplitude": (HEADS, 3, 4, 2)}}
    assert jax.tree.map(jnp.shape, params) == shapes.get(kind, {})
    assert all((np.asarray(g) != 0).all() for g in jax.tree.leaves(gradient))


def test_positions_that_do_not_fit_are_refused():
    query, key = heads(count=2)
    with pytest.raises(ValueError, match="geometry = 'rotery': .*; did you mean 'rotary'"):
        Geometry("rotery", HEADS).init(jax.random.key(0), query, key, None, None)
    with pytest.raises(ValueError, match="'rotary' has coordinates of None query cells"):
        Geometry("rotary", HEADS).init(jax.random.key(0), query, key, None, None)
    with pytest.raises(ValueError, match="'relative' has coordinates of 5 key cells, expected 12"):
        Geometry("relative", HEADS).init(
            jax.random.key(0), query, key, COORDINATES, COORDINATES[:5]
        )
    with pytest.raises(ValueError, match="head width 12: rotary pairs need a multiple of 8"):
        rotary(query[..., :12], COORDINATES, jnp.zeros(HEADS))
