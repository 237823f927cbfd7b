"""Attention under a table of segments in float64 numpy, with its gradients in closed form."""

import numpy as np

from roam_jax.canvas.segments import SegmentTable


def attention(query, key, value, table: SegmentTable, change):
    """Output (B, N, K, Dv), then gradients of sum(output * change) for query, key and value."""
    query, key, value, change = (np.asarray(x, np.float64) for x in (query, key, value, change))
    weight = weights(table)
    scale = 1 / np.sqrt(query.shape[-1])
    scores = np.einsum("bnkd,bmkd->bknm", query, key) * scale
    mass = np.exp(scores - scores.max()) * weight
    total = mass.sum(-1, keepdims=True)
    mass /= np.where(total > 0, total, 1)
    out = np.einsum("bknm,bmkd->bnkd", mass, value)
    d_mass = np.einsum("bnkd,bmkd->bknm", change, value)
    d_scores = mass * (d_mass - (mass * d_mass).sum(-1, keepdims=True)) * scale
    return (
        out,
        np.einsum("bknm,bmkd->bnkd", d_scores, key),
        np.einsum("bknm,bnkd->bmkd", d_scores, query),
        np.einsum("bknm,bnkd->bmkd", mass, change),
    )


def weights(table: SegmentTable) -> np.ndarray:
    """(N, M) edge weights, 0 = no edge."""
    weight = np.exp(table.log_weight.astype(np.float64))
    return weight[table.query_segments[:, None], table.segments[None]]


def check(found, query, key, value, table: SegmentTable, change):
    """Asserts output and gradients; queries without keys get 0 and give no gradient."""
    expected = attention(query, key, value, table, change)
    for at, (a, b) in enumerate(zip(found, expected, strict=True)):
        assert np.isfinite(a).all()
        assert distance(a, b) < (5e-6 if at else 2e-6)
    empty = ~(weights(table) > 0).any(axis=1)
    for rows in found[:2]:
        np.testing.assert_array_equal(rows[:, empty], 0)


def distance(found, expected) -> float:
    """Relative L2; absolute below a norm of 1, which gradients that vanish have."""
    found = np.asarray(found, np.float64)
    return float(np.linalg.norm(found - expected) / max(np.linalg.norm(expected), 1))


def table(weight, lengths, *, queries=None) -> SegmentTable:
    """A table of edge weights (S, S), with so many keys and queries of each segment."""
    with np.errstate(divide="ignore"):
        log_weight = np.log(np.asarray(weight, np.float32))
    segments = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
    if queries is not None:
        queries = np.repeat(np.arange(len(queries), dtype=np.int32), queries)
    return SegmentTable(segments, log_weight, queries)
