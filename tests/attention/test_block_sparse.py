"""The Pallas kernels for GPUs, interpreted on a CPU, against float64 numpy; and their lowering."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from roam_jax.attention import block_sparse
from roam_jax.attention.block_sparse import block_sparse_attention
from tests.attention import oracle

WEIGHTED = [
    [1, 0.25, 0, 1, 0],
    [1, 1, 2, 0, 0],
    [0, 0, 0, 0, 0],  # reads nothing
    [0, 1, 0, 1, 1],
    [1, 1, 1, 1, 0],  # nobody reads the first, everybody else is read
]
# Segments that are even and odd meet in turn: sorted they need fewer blocks.
ALTERNATING = np.equal.outer(np.arange(10) % 2, np.arange(10) % 2)
TABLES = {
    "weights, a query without keys, odd sizes": oracle.table(WEIGHTED, [70, 41, 64, 90, 35]),
    "fewer queries than keys": oracle.table(
        WEIGHTED, [70, 41, 64, 90, 35], queries=[0, 33, 20, 0, 50]
    ),
    "sorted": oracle.table(ALTERNATING, [32] * 10),
    "whole blocks": oracle.table(np.tril(np.ones((3, 3))), [64, 64, 128]),
    "one cell": oracle.table([[1]], [1]),
    "no key at all": oracle.table(np.zeros((2, 2)), [30, 20]),
}


def heads(table, *, width=16, value_width=None, dtype=jnp.float32, batch=2, count=2):
    """Query, key, value and a gradient of the output."""
    keys = jax.random.split(jax.random.key(0), 4)
    rows, columns = len(table.query_segments), table.cells
    shapes = [(rows, width), (columns, width), (columns, value_width or width)]
    shapes.append((rows, value_width or width))
    return tuple(
        jax.random.normal(k, (batch, cells, count, size), dtype)
        for k, (cells, size) in zip(keys, shapes, strict=True)
    )


def value_and_gradients(table, query, key, value, change, **options):
    @jax.jit
    def run(query, key, value, change):
        out, pull = jax.vjp(
            lambda *qkv: block_sparse_attention(*qkv, table, interpret=True, **options),
            query,
            key,
            value,
        )
        return out, *pull(change)

    return run(query, key, value, change)


@pytest.mark.parametrize("name", TABLES)
def test_equals_float64_with_gradients(name):
    table = TABLES[name]
    inputs = heads(table)
    found = value_and_gradients(table, *inputs, block=64)
    oracle.check(found, *inputs[:3], table, inputs[3])


def test_tokens_are_sorted_where_that_saves_blocks():
    table = TABLES["sorted"]
    assert block_sparse._live_blocks(table, 64, ()).query_order is not None
    assert block_sparse._live_blocks(TABLES["whole blocks"], 64, ()).query_order is None


def test_a_given_order_changes_nothing_but_rounding():
    table = oracle.table(np.eye(4), [16] * 4)
    inputs = heads(table)
    found = value_and_gradients(table, *inputs, block=32, orders=((2, 0, 1, 3),))
    expected = oracle.attention(*inputs[:3], table, inputs[3])
    assert all(oracle.distance(a, b) < 5e-6 for a, b in zip(found, expected, strict=True))


def test_widths_that_triton_lacks_and_another_width_of_the_values():
    table = TABLES["weights, a query without keys, odd sizes"]
    inputs = heads(table, width=12, value_width=24)
    found = value_and_gradients(table, *inputs, block=128)
    assert found[0].shape == (2, 300, 2, 24)
    expected = oracle.attention(*inputs[:3], table, inputs[3])
    assert all(oracle.distance(a, b) < 5e-6 for a, b in zip(found, expected, strict=True))


def test_bfloat16_rounds_as_bfloat16():
    """Its 8 bits: outputs and gradients within 2**-7 of float64 on the same inputs."""
    table = TABLES["weights, a query without keys, odd sizes"]
    inputs = heads(table, dtype=jnp.bfloat16)
    found = value_and_gradients(table, *inputs, block=64)
    expected = oracle.attention(*inputs[:3], table, inputs[3])
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == jnp.bfloat16
        assert oracle.distance(a, b) < 2**-7


def loss(table, **options):
    def total(*qkv):
        return jnp.sum(block_sparse_attention(*qkv, table, **options).astype(jnp.float32))

    return jax.value_and_grad(total, argnums=(0, 1, 2))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("width", [64, 128])
def test_lowers_to_triton_without_a_gpu(dtype, width):
    table = oracle.table(WEIGHTED, [700, 41, 64, 90, 35])
    shape = jax.ShapeDtypeStruct((2, table.cells, 3, width), dtype)
    traced = jax.jit(loss(table)).trace(shape, shape, shape)
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("__gpu$xla.gpu.triton") == 3
    for name in ("forward", "query_gradient", "key_gradient"):
        assert f'name = "block_sparse_{name}"' in text


def arrays(jaxpr):
    """Shapes of all values of a jaxpr and of the jaxprs in it."""
    for equation in jaxpr.eqns:
        for variable in (*equation.invars, *equation.outvars):
            yield variable.aval.shape if hasattr(variable.aval, "shape") else ()
        for parameter in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")
        ):
            inner = getattr(parameter, "jaxpr", parameter)
            if hasattr(inner, "eqns"):
                yield from arrays(inner)


def test_no_array_of_all_scores_exists():
    cells = 4096
    table = oracle.table(WEIGHTED, [1000, 1000, 96, 1000, 1000])
    shape = jax.ShapeDtypeStruct((1, cells, 2, 16), jnp.float32)
    shapes = list(arrays(jax.make_jaxpr(loss(table))(shape, shape, shape).jaxpr))
    assert (64, 32) in shapes  # scores of a step: the walk has been inside the kernels
    assert max(np.prod(shape) for shape in shapes) == cells * 2 * 16


def test_bad_input_is_refused():
    table = TABLES["whole blocks"]
    query, key, value, _ = heads(table)
    with pytest.raises(ValueError, match="256 queries and 256 keys, got 255 and 256"):
        block_sparse_attention(query[:, 1:], key, value, table)
    with pytest.raises(ValueError, match="float32, float32 and float16: expected all"):
        block_sparse_attention(query, key, value.astype(jnp.float16), table)
    with pytest.raises(ValueError, match="block = 96: expected a power of two"):
        block_sparse_attention(query, key, value, table, block=96)
