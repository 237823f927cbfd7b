"""The encoder of T5 v1.1 (Raffel et al. 2020, arXiv:1910.10683; Shazeer 2020, arXiv:2002.05202).

A port of transformers' `T5EncoderModel` as CogVideoX calls it: without a mask, so that padding is
attended. Attention has no scale, and a bias by relative position that all layers share. The depth
is one scan over parameters stacked on axis 0; parameters stored in half precision are promoted one
layer at a time, where they are used.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import einops
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Int

from roam_jax.cogvideox.text_config import TextEncoderConfig
from roam_jax.contracts import Params

_TOKEN_INIT = nn.initializers.normal(1.0)
_LINEAR_INIT = nn.initializers.lecun_normal(in_axis=-1, out_axis=-2)


def relative_buckets(length: int, *, buckets: int, farthest: int) -> Int[np.ndarray, "S S"]:
    """Which row of the position bias each query (axis 0) takes for each key (axis 1).

    Args:
        length: tokens S.
        buckets: rows; the upper half is of keys after the query. In each half a quarter of all rows
            are for single distances, the others for ranges that widen with the logarithm.
        farthest: distance from which on everything is in the last bucket.
    """
    distance = np.arange(length)[None, :] - np.arange(length)[:, None]
    half = buckets // 2
    exact = half // 2
    # In float32, as the published weights were trained: the ranges' borders lie on whole numbers.
    share = np.log(np.maximum(np.abs(distance), 1).astype(np.float32) / np.float32(exact))
    share = share / np.float32(math.log(farthest / exact)) * np.float32(half - exact)
    ranged = np.minimum(exact + share.astype(np.int32), half - 1)
    bucket = np.where(np.abs(distance) < exact, np.abs(distance), ranged)
    return (bucket + half * (distance > 0)).astype(np.int32)


class Table(nn.Module):
    """Rows that are looked up; only those are promoted, not the table."""

    rows: int
    width: int

    @nn.compact
    def __call__(self, indices: Int[Array | np.ndarray, "*N"]) -> Float[Array, "*N D"]:
        """The rows at `indices`, float32."""
        table = self.param("embedding", _TOKEN_INIT, (self.rows, self.width))
        return jnp.asarray(table)[indices].astype(jnp.float32)


class Linear(nn.Module):
    """A product with a matrix, without bias, accumulated in float32.

    The kernel keeps torch's axes, (outputs, inputs): XLA's CPU products of a few hundred rows are
    7 % faster with it than with Flax's, and on a GPU both are the same.
    """

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, tokens: Float[Array, "B S D"]) -> Float[Array, "B S E"]:
        """Computed in `dtype`, returned as float32."""
        kernel = self.param("kernel", _LINEAR_INIT, (self.features, tokens.shape[-1]))
        tokens, kernel = tokens.astype(self.dtype), kernel.astype(self.dtype)
        return jnp.einsum("BSD,ED->BSE", tokens, kernel, preferred_element_type=jnp.float32)


class SelfAttention(nn.Module):
    """All tokens to all tokens, scores not scaled."""

    config: TextEncoderConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, tokens: Float[Array, "B S D"], bias: Float[Array, "K S S"]
    ) -> Float[Array, "B S D"]:
        """`bias` is added to the scores."""
        config = self.config

        def project(name):
            heads = Linear(config.inner_width, self.dtype, name=name)(tokens).astype(self.dtype)
            return einops.rearrange(heads, "B S (K E) -> B K S E", K=config.num_heads)

        query, key, value = project("q"), project("k"), project("v")
        scores = jnp.einsum("BKSE,BKNE->BKSN", query, key, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(scores + bias, axis=-1).astype(self.dtype)
        attended = jnp.einsum("BKSN,BKNE->BKSE", weights, value, preferred_element_type=jnp.float32)
        attended = einops.rearrange(attended, "B K S E -> B S (K E)")
        return Linear(config.d_model, self.dtype, name="o")(attended)


class GatedFeedForward(nn.Module):
    """A GELU (its tanh approximation) times a gate."""

    config: TextEncoderConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, tokens: Float[Array, "B S D"]) -> Float[Array, "B S D"]:
        """Widens to `d_ff` twice, narrows once."""
        hidden = nn.gelu(Linear(self.config.d_ff, self.dtype, name="wi_0")(tokens))
        hidden = hidden * Linear(self.config.d_ff, self.dtype, name="wi_1")(tokens)
        return Linear(self.config.d_model, self.dtype, name="wo")(hidden)


class Layer(nn.Module):
    """Attention, then the feed-forward layer, each on a normed copy and added to the stream."""

    config: TextEncoderConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, tokens: Float[Array, "B S D"], bias: Float[Array, "K S S"]
    ) -> Float[Array, "B S D"]:
        """The stream after the layer."""
        config, dtype = self.config, self.dtype
        normed = _norm(config, "attention_norm")(tokens)
        tokens = tokens + SelfAttention(config, dtype, name="attention")(normed, bias)
        normed = _norm(config, "ff_norm")(tokens)
        return tokens + GatedFeedForward(config, dtype, name="ff")(normed)


def _norm(config: TextEncoderConfig, name: str | None = None) -> nn.RMSNorm:
    """A norm without mean and bias, in float32."""
    return nn.RMSNorm(epsilon=config.layer_norm_epsilon, dtype=jnp.float32, name=name)


class TextEncoder(nn.Module):
    """Token ids -> text embeddings.

    The stream between the layers is float32 whatever `dtype` is: T5's reaches values that float16
    does not hold, and bfloat16 would round them at every layer.

    Args:
        config: sizes.
        dtype: of the matrix products; parameters may be stored in another.
    """

    config: TextEncoderConfig = TextEncoderConfig()
    dtype: Any = jnp.float32

    def setup(self):
        """Declares the parts."""
        config = self.config
        buckets = config.relative_attention_num_buckets
        self.token_embedding = Table(config.vocab_size, config.d_model)
        self.relative_attention_bias = Table(buckets, config.num_heads)
        self.layers = Layer(config, self.dtype)
        self.norm = _norm(config)

    def __call__(self, token_ids: Int[Array, "B S"]) -> Float[Array, "B S D"]:
        """Embeddings of all tokens, float32; every token attends to every other, padding too.

        Args:
            token_ids: 0 to `vocab_size` - 1. The CogVideoX models read 226 of them.
        """
        tokens, bias = self.embed(token_ids)
        scan = nn.scan(
            lambda layer, tokens, bias: (layer(tokens, bias), None),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=self.config.num_layers,
        )
        tokens, _ = scan(self.layers, tokens, bias)
        return self.finish(tokens)

    def embed(
        self, token_ids: Int[Array, "B S"]
    ) -> tuple[Float[Array, "B S D"], Float[Array, "K S S"]]:
        """What goes into the first layer, and the position bias of all layers."""
        config = self.config
        buckets = relative_buckets(
            token_ids.shape[1],
            buckets=config.relative_attention_num_buckets,
            farthest=config.relative_attention_max_distance,
        )
        bias = einops.rearrange(self.relative_attention_bias(buckets), "S N K -> K S N")
        return self.token_embedding(token_ids), bias

    def finish(self, tokens: Float[Array, "B S D"]) -> Float[Array, "B S D"]:
        """What comes out of the last layer, normed."""
        return self.norm(tokens)


def encode_by_layers(
    encoder: TextEncoder, params: Params, token_ids: Int[np.ndarray, "B S"]
) -> Float[np.ndarray, "B S D"]:
    """`encoder.apply`, a layer at a time for all rows, and a row at a time in each layer.

    Needs the memory of one layer beside the rows where parameters are views on a file, and promotes
    a layer once, whatever the number of rows. It is also the fast way on a CPU, where the scan over
    layers copies each out of its stack, at a third of the time of a row's products.

    Args:
        encoder: the module.
        params: its parameters, NumPy or JAX arrays.
        token_ids: as for `encoder`.
    """

    rows = []
    for ids in token_ids:
        tokens, bias = _embed(encoder, _chosen(params, *_TABLES), ids[None])
        rows.append(tokens)
    for index in range(encoder.config.num_layers):
        layer = _promoted(_unstack(params["layers"], index), dtype=encoder.dtype)
        for row, tokens in enumerate(rows):
            rows[row] = _layer(encoder, layer, tokens, bias)
        # Without this the next layer would be promoted, and in memory, meanwhile.
        jax.block_until_ready(rows)
    norm = _chosen(params, "norm")
    return np.concatenate([np.asarray(_finish(encoder, norm, tokens)) for tokens in rows])


_TABLES = ("token_embedding", "relative_attention_bias")


def _chosen(params: Params, *names: str) -> Params:
    return {name: params[name] for name in names}


def _unstack(stacks: Params, index: int) -> Params:
    return jax.tree.map(lambda stack: stack[index], stacks)


def _promoted(layer: Params, *, dtype: Any) -> Params:
    """Matrices in the dtype that they are computed in; the norms stay as they are."""
    return jax.tree.map(lambda x: _cast(x, dtype=dtype) if x.ndim == 2 else x, layer)


def _cast(matrix: Array | np.ndarray, *, dtype: Any) -> Array | np.ndarray:
    # Even a cast to the same dtype would copy it.
    return matrix if matrix.dtype == dtype else _cast_on_device(matrix, dtype=dtype)


@functools.partial(jax.jit, static_argnames="dtype")
def _cast_on_device(matrix: Array, *, dtype: Any) -> Array:
    return matrix.astype(dtype)


@functools.partial(jax.jit, static_argnums=0)
def _embed(encoder: TextEncoder, params: Params, token_ids: Array) -> tuple[Array, Array]:
    return encoder.apply({"params": params}, token_ids, method="embed")


@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
def _layer(encoder: TextEncoder, params: Params, tokens: Array, bias: Array) -> Array:
    return Layer(encoder.config, encoder.dtype).apply({"params": params}, tokens, bias)


@functools.partial(jax.jit, static_argnums=0)
def _finish(encoder: TextEncoder, params: Params, tokens: Array) -> Array:
    return encoder.apply({"params": params}, tokens, method="finish")
