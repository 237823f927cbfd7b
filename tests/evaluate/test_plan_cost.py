"""Costs of a plan and of slices against counts over the mask itself."""

import numpy as np

from roam_jax.canvas.layout import CanvasLayout, RegionSpec
from roam_jax.canvas.plan import DENSE_ROWS
from roam_jax.canvas.topology import CanvasTopology, Connection
from roam_jax.evaluate.plan_cost import describe_plan, describe_slices
from tests.canvas.canvases import allowed, influences, places

LAYOUT = CanvasLayout(
    T=4,
    H=20,
    W=16,
    d_model=8,
    regions={
        "video": (0, 4, 0, 16, 0, 16),
        "action": (0, 4, 16, 18, 0, 16),
        "thought": RegionSpec((0, 2, 18, 20, 0, 8), period=2),
    },
)
CELLS = 1024 + 128 + 32
CAUSAL = CanvasTopology.causal_temporal(list(LAYOUT.regions)).matching(LAYOUT)


def test_a_plan_in_tiles_beside_all_pairs():
    report = describe_plan(LAYOUT, CAUSAL, heads=4, width=16)
    mask = allowed(CAUSAL, LAYOUT)
    assert report["pairs"] == np.count_nonzero(mask)
    assert not report["dense"] and report["loops"] >= 1 and report["tiles"] >= report["loops"]
    assert report["pairs"] <= report["scores"]["planned"] < report["scores"]["all"] == CELLS**2
    # Two products of multiply-adds for each score.
    assert report["flops"]["all"] == 2 * 2 * 4 * 16 * CELLS**2
    assert report["flops"]["planned"] == 2 * 2 * 4 * 16 * report["scores"]["planned"]
    assert report["score_bytes"]["all"] == 4 * 4 * CELLS**2
    assert report["score_bytes"]["planned"] < report["score_bytes"]["all"]
    blocks = report["live_blocks"]
    edges = np.arange(0, CELLS, 128)
    in_order = np.add.reduceat(np.add.reduceat(mask, edges, axis=0, dtype=int), edges, axis=1)
    assert blocks["all"] == in_order.size and blocks["size"] == [128, 128]
    # The best order of tokens has no more of them than the layout's.
    assert report["pairs"] / 128**2 <= blocks["live"] <= np.count_nonzero(in_order)
    assert report["edges"] == []


def test_where_dense_is_cheaper_all_scores_are_computed():
    layout = CanvasLayout(T=2, H=1, W=2, d_model=8, regions={"a": (0, 2, 0, 1, 0, 2)})
    topology = CanvasTopology((Connection("a", "a", t_src=0, t_dst=0),))
    report = describe_plan(layout, topology, heads=2, width=4)
    assert report["dense"] and report["loops"] == report["tiles"] == 0
    assert report["pairs"] == 8 and report["scores"] == {"all": 16, "planned": 16}
    assert DENSE_ROWS > 4 and report["score_bytes"] == {"all": 4 * 2 * 16, "planned": 4 * 2 * 16}


def test_edges_of_other_kinds_stand_beside_the_softmax():
    edges = (
        Connection("video", "video"),
        Connection("video", "action", t_src=0, t_dst=0, fn="gated"),
        Connection("action", "thought", fn="pooling"),
    )
    report = describe_plan(LAYOUT, CanvasTopology(edges), heads=1, width=8)
    assert report["pairs"] == 1024**2
    assert report["edges"] == [
        {"index": 1, "src": "video", "dst": "action", "kind": "gated", "groups": 4,
         "pairs": 4 * 256 * 32},
        {"index": 2, "src": "action", "dst": "thought", "kind": "pooling", "groups": 1,
         "pairs": 128 * 32},
    ]  # fmt: skip


def test_what_cannot_run_says_why():
    mamba = CanvasTopology((Connection("video", "action", fn="mamba"),))
    report = describe_plan(LAYOUT, mamba, heads=1, width=8)
    assert list(report) == ["refused"] and "kind 'mamba'" in report["refused"]
    late = CanvasTopology((Connection("video", "action", t_src=0, t_dst=-9),))
    assert "match no frame" in describe_plan(LAYOUT, late, heads=1, width=8)["refused"]


def test_slices_are_what_the_mask_lets_through():
    regions = {
        "video": (0, 2, 0, 2, 0, 3),
        "action": (0, 2, 2, 3, 0, 1),
        "idea": (0, 2, 2, 3, 1, 3),
    }
    layout = CanvasLayout(T=2, H=3, W=3, d_model=8, regions=regions)
    chain = CanvasTopology.causal_chain(["video", "idea", "action"])
    wanted = {"all": tuple(regions), "video alone": ("video",), "acting": ("action",)}
    report = describe_slices(layout, chain, wanted, applications=3)
    every, video, action = report["wanted"]
    assert report["applications"] == 3
    assert (every["cell_share"], every["pair_share"]) == (1, 1)
    assert video["regions"] == ["video"] and video["cell_share"] == 12 / 18
    mask, names = allowed(chain, layout), places(layout)[0]
    cells = pairs = 0
    for later in range(3):
        needed = influences(mask, later)[names == "action"].any(axis=0)
        cells, pairs = cells + needed.sum(), pairs + mask[needed].sum()
    assert action["cell_share"] == cells / (3 * 18)
    assert action["pair_share"] == pairs / (3 * mask.sum())
