"""Attention under a topology against a float64 numpy softmax, values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from roam_jax.attention import dense
from roam_jax.canvas.segments import SegmentTable


def reference(query, key, value, weight):
    """Masked softmax in float64; `weight` (N, M) multiplies exp(score)."""
    query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
    scores = np.einsum("bnkd,bmkd->bknm", query, key) / np.sqrt(query.shape[-1])
    mass = np.exp(scores - scores.max()) * weight
    total = mass.sum(-1, keepdims=True)
    return np.einsum("bknm,bmkd->bnkd", mass / np.where(total > 0, total, 1), value)


def heads(cells, *, batch=2, count=4, width=16, seed=0):
    return tuple(
        jax.random.normal(k, (batch, cells, count, width))
        for k in jax.random.split(jax.random.key(seed), 3)
    )


def table(cells: int) -> SegmentTable:
    """Three segments: plain, weighted and missing edges; segment 2 has no keys at all."""
    weight = np.array([[1, 0.25, 0], [1, 1, 2], [0, 0, 0]])
    with np.errstate(divide="ignore"):
        return SegmentTable(np.arange(cells, dtype=np.int32) % 3, np.log(weight, dtype=np.float32))


@pytest.mark.parametrize(
    ("cells", "piece_scores"), [(7, 1 << 19), (300, 1 << 19), (513, 1 << 19), (513, 1)]
)
def test_equals_float64_softmax(cells, piece_scores, monkeypatch):
    """At once; two tiles of all heads; three tiles of two heads, and of one."""
    monkeypatch.setattr(dense, "SMALL_SCORES", 1000)
    monkeypatch.setattr(dense, "PIECE_SCORES", piece_scores)
    inputs = heads(cells)
    topology = table(cells)
    weight = np.exp(topology.log_weight)[topology.segments[:, None], topology.segments[None]]
    out = dense.attention(*inputs, table=topology)
    expected = reference(*inputs, weight)
    assert np.linalg.norm(out - expected) / np.linalg.norm(expected) < 1e-6
    np.testing.assert_array_equal(out[:, topology.segments == 2], 0)
    free = dense.attention(*inputs)
    expected = reference(*inputs, np.ones((cells, cells)))
    assert np.linalg.norm(free - expected) / np.linalg.norm(expected) < 1e-6


def test_pieces_have_the_gradients_of_all_at_once(monkeypatch):
    monkeypatch.setattr(dense, "PIECE_SCORES", 1 << 17)  # 145 queries of one head, twice 290 keys
    inputs = heads(290)
    topology = table(290)

    def loss(*qkv):
        return jnp.sum(jnp.sin(dense.attention(*qkv, table=topology)))

    whole = jax.grad(loss, argnums=(0, 1, 2))(*inputs)
    monkeypatch.setattr(dense, "SMALL_SCORES", 0)
    pieces = jax.grad(loss, argnums=(0, 1, 2))(*inputs)
    for a, b in zip(whole, pieces, strict=True):
        assert np.isfinite(a).all()
        assert np.linalg.norm(a - b) / np.linalg.norm(a) < 2e-6


def test_no_array_of_all_scores_exists():
    cells, count = 4096, 4
    shape = jax.ShapeDtypeStruct((1, cells, count, 32), jnp.float32)
    step = jax.jit(jax.grad(lambda q, k, v: dense.attention(q, k, v).sum(), argnums=(0, 1, 2)))
    temporaries = step.lower(shape, shape, shape).compile().memory_analysis().temp_size_in_bytes
    assert temporaries < cells * cells * 4  # one head's scores alone would take this much


def test_a_table_of_another_size_is_refused():
    with pytest.raises(ValueError, match="table has 6 queries"):
        dense.attention(*heads(7), table=table(6))
