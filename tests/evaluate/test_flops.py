"""Counted FLOPs against closed forms and, where nothing loops, against XLA's own count."""

import functools

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl

from roam_jax.attention.block_sparse import block_sparse_attention
from roam_jax.canvas.segments import SegmentTable
from roam_jax.evaluate.flops import count_flops

N, D, E = 6, 8, 10


def flops(function, *args) -> int:
    return count_flops(jax.make_jaxpr(function)(*args)).total()


def xla_flops(function, *args) -> int:
    return int(jax.jit(function).lower(*args).cost_analysis()["flops"])


def shape(*sizes) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, jnp.float32)


def layer(x, w):
    return jnp.tanh(x @ w)


PRODUCT = 2 * N * D * E
X, W = shape(N, D), shape(D, E)


def test_matrix_products():
    assert flops(jnp.matmul, X, W) == PRODUCT
    batched = functools.partial(jnp.einsum, "bkid,bkjd->bkij")
    assert flops(batched, shape(2, 3, 5, 7), shape(2, 3, 4, 7)) == 2 * 2 * 3 * 5 * 4 * 7
    assert flops(jnp.tanh, X) == 0


def test_gradients():
    def loss(x, w):
        return layer(x, w).sum()

    assert flops(jax.grad(loss), X, W) == 2 * PRODUCT
    assert flops(jax.grad(loss, argnums=(0, 1)), X, W) == 3 * PRODUCT


def test_remat_computes_the_forward_pass_twice():
    def loss(x, w):
        return jax.checkpoint(layer)(x, w).sum()

    assert flops(jax.grad(loss, argnums=(0, 1)), X, W) == 4 * PRODUCT


@pytest.mark.parametrize("length", [1, 7])
def test_a_scan_counts_as_often_as_it_runs(length):
    square, x = shape(D, D), shape(N, D)

    def stack(x, w):
        return jax.lax.scan(lambda h, _: (layer(h, w), None), x, length=length)[0]

    one = 2 * N * D * D
    assert flops(stack, x, square) == length * one
    assert flops(jax.grad(lambda x, w: stack(x, w).sum(), (0, 1)), x, square) == 3 * length * one
    assert flops(lambda xs, w: jax.lax.map(lambda x: x @ w, xs), shape(5, N, D), W) == 5 * PRODUCT


def test_calls_and_branches():
    assert flops(lambda x, w: jax.jit(layer)(x, w), X, W) == PRODUCT
    assert flops(lambda x, w: jax.nn.relu(jax.vmap(layer, (0, None))(x, w)), X, W) == PRODUCT

    def branch(x, w):
        return jax.lax.cond(x[0, 0] > 0, lambda: (x @ w) @ w.T, lambda: x)

    assert flops(branch, X, W) == 2 * PRODUCT


def test_loops_of_unknown_length_are_refused():
    def until(x, w):
        return jax.lax.while_loop(lambda h: h[0, 0] < 1, lambda h: h @ w, x)

    with pytest.raises(ValueError, match="products in a 'while'"):
        flops(until, X, shape(D, D))
    assert flops(lambda x: jax.lax.while_loop(lambda h: h[0, 0] < 1, jnp.tanh, x), X) == 0


# Has a name that is known to be of a product.
fused_attention = jax.extend.core.Primitive("dot_product_attention_fp8_fwd_wrapper")
fused_attention.def_abstract_eval(lambda x: x)


@pytest.mark.parametrize(
    "name, function, arguments",
    [
        (
            "ragged_dot_general",
            jax.lax.ragged_dot,
            (X, shape(2, D, E), jax.ShapeDtypeStruct((2,), jnp.int32)),
        ),
        ("dot_product_attention_fp8_fwd_wrapper", fused_attention.bind, (X,)),
        ("cholesky", jnp.linalg.cholesky, (shape(D, D),)),
        ("triangular_solve", jax.scipy.linalg.solve_triangular, (shape(D, D), shape(D, D))),
        ("fft", jnp.fft.fft, (X,)),
        ("pure_callback", lambda x: jax.pure_callback(np.tanh, x, x), (X,)),
        ("ffi_call", jax.ffi.ffi_call("a_kernel", X), (X,)),
    ],
)
def test_other_products_are_refused_by_name(name, function, arguments):
    with pytest.raises(ValueError, match=f"cannot count '{name}'.*: known products are dot_gen"):
        flops(function, *arguments)


CONVOLUTIONS = {
    "1d same": dict(spatial=(9,), kernel=(3,), padding="SAME"),
    "2d valid strided": dict(spatial=(9, 8), kernel=(3, 2), padding="VALID", window_strides=(2, 3)),
    "3d same": dict(spatial=(3, 5, 4), kernel=(3, 3, 3), padding="SAME"),
    "causal": dict(spatial=(5,), kernel=(3,), padding=[(2, 0)]),
    "dilated": dict(spatial=(9, 9), kernel=(3, 3), padding="SAME", rhs_dilation=(2, 1)),
    "transposed": dict(spatial=(4, 5), kernel=(3, 3), padding=[(1, 2)] * 2, lhs_dilation=(2, 2)),
    "grouped": dict(spatial=(6,), kernel=(3,), padding="SAME", feature_group_count=2),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_and_their_gradients_count_as_in_xla(name):
    options = dict(CONVOLUTIONS[name])
    spatial, kernel = options.pop("spatial"), options.pop("kernel")
    options.setdefault("window_strides", (1,) * len(spatial))
    channels_in, channels_out = 4, 6
    image = shape(2, channels_in, *spatial)
    groups = options.get("feature_group_count", 1)
    weights = shape(channels_out, channels_in // groups, *kernel)

    def convolve(image, weights):
        return jax.lax.conv_general_dilated(image, weights, **options)

    def backward(image, weights, cotangent):
        result, pull = jax.vjp(convolve, image, weights)
        return result, pull(cotangent)

    assert flops(convolve, image, weights) == xla_flops(convolve, image, weights)
    arguments = image, weights, jax.eval_shape(convolve, image, weights)
    assert flops(backward, *arguments) == xla_flops(backward, *arguments)


def test_a_plain_convolution_by_hand():
    def convolve(x, w):
        return jax.lax.conv_general_dilated(x, w, (1, 1), "VALID")

    assert flops(convolve, shape(2, 3, 8, 8), shape(5, 3, 3, 3)) == 2 * 2 * 5 * 6 * 6 * 3 * 9


def test_scopes_say_where_products_come_from():
    def loss(x, w):
        with jax.named_scope("layer"):
            return jax.checkpoint(layer)(x, w).sum()

    counts = count_flops(jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(X, W))
    again = {scope: n for scope, n in counts.items() if "rematted_computation" in scope}
    assert sum(again.values()) == PRODUCT
    assert sum(n for scope, n in counts.items() if "transpose" in scope) == 3 * PRODUCT
    assert all("layer" in scope for scope in counts)


def test_fused_attention_counts_as_its_products(monkeypatch):
    # JAX asks the GPU whether it has cuDNN when this is traced.
    fused = jax._src.cudnn.fused_attention_stablehlo
    monkeypatch.setattr(fused, "check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(fused, "check_compute_capability", lambda *_, **__: True)
    monkeypatch.setattr(fused, "check_is_flash_attention", lambda *_, **__: None)
    heads, rows, keys, width = 3, 8, 16, 64
    query, key = (
        jax.ShapeDtypeStruct((2, cells, heads, width), jnp.bfloat16) for cells in (rows, keys)
    )

    def attend(*qkv):
        return jax.nn.dot_product_attention(*qkv, implementation="cudnn")

    product = 2 * 2 * heads * rows * keys * width
    assert flops(attend, query, key, key) == 2 * product
    gradient = jax.grad(lambda *qkv: attend(*qkv).sum(), argnums=(0, 1, 2))
    assert flops(gradient, query, key, key) == 7 * product


def test_a_kernel_counts_as_it_says():
    def double(source, target):
        target[...] = source[...] @ source[...]

    def call(**estimate):
        out = jax.ShapeDtypeStruct((16, 16), jnp.float32)
        return pl.pallas_call(double, out_shape=out, interpret=True, **estimate)

    cost = pl.CostEstimate(flops=77, transcendentals=0, bytes_accessed=0)
    assert flops(call(cost_estimate=cost), shape(16, 16)) == 77
    assert flops(jax.vmap(call(cost_estimate=cost)), shape(5, 16, 16)) == 5 * 77
    with pytest.raises(ValueError, match="the kernel has no cost_estimate"):
        flops(call(), shape(16, 16))


def test_block_sparse_attention_counts_its_live_blocks():
    # Two segments of 32 cells in blocks of 16: the first reads itself, the second both.
    segments = np.repeat(np.array([0, 1], np.int32), 32)
    table = SegmentTable(segments, np.array([[0, -np.inf], [0, 0]], np.float32))
    query = shape(2, 64, 3, 16)

    def attend(*qkv):
        return block_sparse_attention(*qkv, table, block=16)

    product = 2 * 2 * 3 * (32 * 32 + 32 * 64) * 16
    assert flops(attend, query, query, query) == 2 * product
    gradient = jax.grad(lambda *qkv: attend(*qkv).sum(), argnums=(0, 1, 2))
    # Scores and their gradients are made twice, for queries and for keys and values.
    assert flops(gradient, query, query, query) == (2 + 3 + 4) * product
