"""Encoders and decoders of the action cells against numpy."""

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import erf

from roam_jax.model.embed import QueryCells, VectorCells, time_positions
from roam_jax.model.heads import PooledDecoder, TokensDecoder


def random_params(module, *args, seed=0):
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda key: module.init(key, *args), jax.random.key(0))["params"]
    return jax.tree.map(lambda x: rng.standard_normal(x.shape).astype(np.float32), shapes)


def linear(params, x):
    return x @ params["kernel"] + params["bias"]


def test_pooled_decoder_is_the_published_head():
    velocity = np.random.default_rng(1).standard_normal((2, 3, 16, 4, 5)).astype(np.float32)
    module = PooledDecoder(7)
    params = random_params(module, jnp.asarray(velocity))
    pooled = velocity.astype(np.float64).mean((1, 3, 4))
    expected = linear(params["out"], np.maximum(linear(params["hidden"], pooled), 0))
    out = module.apply({"params": params}, jnp.asarray(velocity))
    np.testing.assert_allclose(out, expected[:, None], rtol=1e-5, atol=1e-5)
    assert sum(x.size for x in jax.tree.leaves(params)) == 199


def test_tokens_decoder_is_a_norm_and_two_layers_a_cell():
    cells = np.random.default_rng(1).standard_normal((2, 3, 32)).astype(np.float32)
    module = TokensDecoder(7)
    params = random_params(module, jnp.asarray(cells))
    x = cells.astype(np.float64)
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    x = linear(params["hidden"], x * params["norm"]["scale"] + params["norm"]["bias"])
    # The tanh form of gelu is within 5e-4 of the exact one.
    expected = linear(params["out"], x * (1 + erf(x / np.sqrt(2))) / 2)
    out = module.apply({"params": params}, jnp.asarray(cells))
    np.testing.assert_allclose(out, expected, atol=5e-2, rtol=1e-3)
    fresh = module.init(jax.random.key(0), jnp.asarray(cells))
    np.testing.assert_array_equal(module.apply(fresh, jnp.asarray(cells)), 0)


def test_cells_are_content_plus_modality_plus_time():
    times = time_positions(np.array([0, 3]), 8)
    angles = np.array([0.0, 3.0])[:, None] * 10_000.0 ** (-np.arange(4) / 4)
    np.testing.assert_allclose(
        times, np.concatenate([np.sin(angles), np.cos(angles)], 1), rtol=1e-6
    )

    vectors = np.random.default_rng(0).standard_normal((2, 2, 7)).astype(np.float32)
    encoder = VectorCells(8)
    params = random_params(encoder, jnp.asarray(vectors), times)
    expected = linear(params["encoder"], vectors) + params["modality"] + times
    out = encoder.apply({"params": params}, jnp.asarray(vectors), times)
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)

    queries = QueryCells(8)
    params = {"modality": np.ones(8, "f4"), "query": np.arange(16, dtype="f4").reshape(2, 8)}
    expected = np.broadcast_to(params["query"] + params["modality"] + times, (3, 2, 8))
    np.testing.assert_allclose(queries.apply({"params": params}, 3, times), expected, rtol=1e-6)
