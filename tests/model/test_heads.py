"""Decoders against numpy."""

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import erf, softmax

from roam_jax.model.heads import (
    CrossAttentionDecoder,
    PerFrameDecoder,
    PooledDecoder,
    TokensDecoder,
)
from tests.model.modules import linear, random_params


def gelu(x):
    return x * (1 + erf(x / np.sqrt(2))) / 2


def tanh_gelu(x):
    """The approximate form, `jax.nn.gelu`'s default."""
    return x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2


def normed(params, x):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return x * params["scale"] + params["bias"]


def test_pooled_decoder_is_the_published_head():
    velocity = np.random.default_rng(1).standard_normal((2, 3, 16, 4, 5)).astype(np.float32)
    module = PooledDecoder(7)
    params = random_params(module, jnp.asarray(velocity))
    pooled = velocity.astype(np.float64).mean((1, 3, 4))
    expected = linear(params["out"], gelu(linear(params["hidden"], pooled)))
    out = module.apply({"params": params}, jnp.asarray(velocity))
    np.testing.assert_allclose(out, expected[:, None], rtol=1e-5, atol=1e-5)
    assert sum(x.size for x in jax.tree.leaves(params)) == 199


def test_tokens_decoder_is_a_norm_and_two_layers_a_cell():
    cells = np.random.default_rng(1).standard_normal((2, 3, 32)).astype(np.float32)
    module = TokensDecoder(7)
    params = random_params(module, jnp.asarray(cells))
    hidden = linear(params["hidden"], normed(params["norm"], cells.astype(np.float64)))
    expected = linear(params["out"], tanh_gelu(hidden))
    out = module.apply({"params": params}, jnp.asarray(cells))
    np.testing.assert_allclose(out, expected, atol=1e-4, rtol=1e-4)
    fresh = module.init(jax.random.key(0), jnp.asarray(cells))
    np.testing.assert_array_equal(module.apply(fresh, jnp.asarray(cells)), 0)


def test_per_frame_decoder_gives_every_frame_four_actions():
    velocity = np.random.default_rng(1).standard_normal((2, 3, 16, 4, 5)).astype(np.float32)
    module = PerFrameDecoder(7)
    params = random_params(module, jnp.asarray(velocity))
    out = module.apply({"params": params}, jnp.asarray(velocity))
    assert out.shape == (2, 12, 7)
    pooled = velocity.astype(np.float64).mean((3, 4))
    for frame in range(3):
        actions = linear(params["out"], gelu(linear(params["hidden"], pooled[:, frame])))
        expected = actions.reshape(2, 4, 7)
        found = out[:, 4 * frame : 4 * frame + 4]
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_cross_attention_decoder_equals_numpy():
    activations = np.random.default_rng(1).standard_normal((2, 3, 5, 16)).astype(np.float32)
    module = CrossAttentionDecoder(7, 4)
    params = random_params(module, jnp.asarray(activations))
    params = jax.tree.map(lambda x: x / np.sqrt(x.shape[0]) if x.ndim == 2 else x, params)
    memory = [
        linear(params[f"narrow_{i}"], normed(params[f"norm_{i}"], activations[i].astype(float)))
        for i in range(2)
    ]
    memory = np.concatenate(memory, axis=1)
    state = np.broadcast_to(params["query"], (3, 4, 256)).astype(float)

    def heads(x):
        return x.reshape(*x.shape[:2], 4, 64)

    query = heads(linear(params["to_q"], normed(params["norm_query"], state)))
    key, value = (heads(linear(params[name], memory)) for name in ("to_k", "to_v"))
    scores = softmax(np.einsum("bnkd,bmkd->bknm", query, key) / 8, axis=-1)
    attended = np.einsum("bknm,bmkd->bnkd", scores, value).reshape(3, 4, 256)
    state = state + linear(params["to_out"], attended)
    state = state + linear(
        params["down"], tanh_gelu(linear(params["up"], normed(params["norm_up"], state)))
    )
    expected = linear(params["out"], normed(params["norm_out"], state))
    found = module.apply({"params": params}, jnp.asarray(activations))
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=1e-4)
    fresh = module.init(jax.random.key(0), jnp.asarray(activations))
    np.testing.assert_array_equal(module.apply(fresh, jnp.asarray(activations)), 0)
