"""Attention of some queries, other ones in each row of the batch, against float64 numpy."""

import jax
import numpy as np
import pytest
from scipy.special import softmax

from roam_jax.attention import dense
from roam_jax.canvas.layout import CanvasLayout
from roam_jax.canvas.plan import compile_plan
from roam_jax.canvas.topology import CanvasTopology, Connection

LAYOUT = CanvasLayout(
    T=4, H=2, W=2, d_model=8, regions={"a": (0, 4, 0, 2, 0, 1), "b": (0, 4, 0, 2, 1, 2)}
)
TOPOLOGIES = {
    "free": CanvasTopology.dense(["a", "b"]),
    # Queries of the last frame of b read nothing.
    "masked": CanvasTopology(
        (Connection("a", "a", weight=0.5), Connection("b", "a", t_src=0, t_dst=1))
    ),
}


@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("piece", [dense.PIECE_SCORES, 64])
def test_equals_numpy(topology, piece, monkeypatch):
    """In one tile, and in several."""
    monkeypatch.setattr(dense, "PIECE_SCORES", piece)
    table = compile_plan(LAYOUT, TOPOLOGIES[topology]).table
    rng = np.random.default_rng(0)
    rows = np.stack([rng.permutation(16)[:6] for _ in range(2)]).astype(np.int32)
    query, key, value = (rng.standard_normal((2, n, 2, 4)).astype(np.float32) for n in (16, 16, 16))
    chosen = np.take_along_axis(query, rows[:, :, None, None], axis=1)
    out = jax.jit(lambda *heads: dense.attention_rows(*heads[:3], rows=heads[3], table=table))(
        chosen, key, value, rows
    )
    scores = np.einsum("bnkd,bmkd->bknm", np.float64(query), key) / 2
    scores += table.log_weight[np.ix_(table.query_segments, table.segments)]
    with np.errstate(invalid="ignore"):
        weights = np.nan_to_num(softmax(scores, axis=-1))
    expected = np.einsum("bknm,bmkd->bnkd", weights, value)
    expected = np.take_along_axis(expected, rows[:, :, None, None], axis=1)
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)
