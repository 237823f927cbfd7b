"""Splash attention of JAX for TPUs, interpreted on a CPU, against float64 numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from roam_jax.attention import splash
from roam_jax.attention.splash import splash_attention
from roam_jax.canvas.live_blocks import live_blocks
from tests.attention import oracle

# The third reads nothing, nobody reads the fourth.
PLAIN = [[1, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0], [0, 1, 1, 0]]
TABLES = {
    "odd sizes, queries without keys": oracle.table(PLAIN, [70, 41, 64, 81]),
    "a block of queries without keys": oracle.table(PLAIN, [70, 41, 192, 20]),
    "fewer queries than keys": oracle.table(PLAIN, [70, 41, 64, 81], queries=[0, 33, 20, 50]),
    "sorted": oracle.table(np.equal.outer(np.arange(4) % 2, np.arange(4) % 2), [64] * 4),
}


def heads(table, *, width=16):
    """Query, key, value and a gradient of the output."""
    rows, columns = len(table.query_segments), table.cells
    keys = jax.random.split(jax.random.key(0), 4)
    return tuple(
        jax.random.normal(k, (2, cells, 2, width))
        for k, cells in zip(keys, (rows, columns, columns, rows), strict=True)
    )


@pytest.mark.parametrize("name", TABLES)
def test_equals_float64_with_gradients(name):
    table = TABLES[name]
    inputs = heads(table)

    @jax.jit
    def run(query, key, value, change):
        out, pull = jax.vjp(
            lambda *qkv: splash_attention(*qkv, table, block=128, interpret=True),
            query,
            key,
            value,
        )
        return out, *pull(change)

    found = run(*inputs)
    oracle.check(found, *inputs[:3], table, inputs[3])


def test_without_any_key_all_outputs_are_0():
    table = oracle.table(np.zeros((2, 2)), [30, 20])
    query, key, value, _ = heads(table)
    out = splash_attention(query, key, value, table)
    np.testing.assert_array_equal(out, np.zeros((2, 50, 2, 16)))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_lowers_for_tpus_without_one(dtype):
    table = oracle.table(PLAIN, [700, 41, 64, 81])
    shape = jax.ShapeDtypeStruct((2, table.cells, 2, 64), dtype)

    def loss(*qkv):
        return jnp.sum(splash_attention(*qkv, table).astype(jnp.float32))

    step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))
    text = step.trace(shape, shape, shape).lower(lowering_platforms=("tpu",)).as_text()
    assert text.count("tpu_custom_call") == 3


def test_the_mask_is_read_part_by_part():
    table = TABLES["odd sizes, queries without keys"]
    blocks = live_blocks(table)
    mask = splash._TableMask(blocks)
    assert mask.shape == (256, 256)
    expected = np.isfinite(blocks.log_weight)[blocks.query_segments[:, None], blocks.key_segments]
    np.testing.assert_array_equal(mask[16:80, 100:256], expected[16:80, 100:256])
    assert mask == splash._TableMask(live_blocks(table))


def test_equal_partial_blocks_are_kept_once():
    """2 x 32 frames of 96 cells, each with the frame before: 6,144 cells, borders repeat."""
    frame = np.tile(np.arange(32), 2)
    table = oracle.table((frame[:, None] - frame) // 2 == 0, [96] * 64)
    blocks = live_blocks(table)
    kernel = splash._kernel(blocks, heads=8, interpret=False)
    kept = kernel.fwd_mask_info.partial_mask_blocks
    assert blocks.partial > 90
    assert kept.shape[1:] == (128, 128) and len(kept) <= 12
    assert kernel.fwd_mask_info.block_mask.size < blocks.blocks


def test_bad_input_is_refused():
    table = TABLES["sorted"]
    query, key, value, _ = heads(table)
    with pytest.raises(ValueError, match="256 queries and 256 keys, got 255 and 256"):
        splash_attention(query[:, 1:], key, value, table)
    with pytest.raises(ValueError, match="block = 96: expected a multiple of 128"):
        splash_attention(query, key, value, table, block=96)
    weighted = oracle.table([[1, 0.25], [1, 1]], [128, 128])
    with pytest.raises(ValueError, match=r"edge weight 0\.25: .* weight 1 only"):
        splash_attention(query, key, value, weighted)
