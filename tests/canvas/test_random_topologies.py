"""Random topologies: links that are drawn, and pairs that match."""

import itertools
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roam_jax.canvas.layout import CanvasLayout, RegionSpec
from roam_jax.canvas.random_topologies import (
    local_plus_sparse_global,
    random_matched,
    subset_near,
)
from roam_jax.canvas.temporal_topologies import causal, local_window
from roam_jax.canvas.topologies import central_thought
from roam_jax.canvas.topology import CanvasTopology, Connection, segment_keys, segment_sizes
from tests.canvas.canvases import allowed, edges, layouts

# Segments of 600, 40, 28, 30, 4 and 1 cells.
UNEQUAL = CanvasLayout(
    9, 24, 30, d_model=4,
    regions={
        "video": (0, 9, 0, 20, 0, 30),
        "goal": RegionSpec((0, 5, 20, 22, 0, 20), period=2, length=188),
        "action": (1, 9, 22, 23, 0, 4),
        "reward": (0, 9, 22, 23, 4, 5),
        "thought": (0, 1, 23, 24, 0, 30),
        "unused": (1, 9, 23, 24, 0, 30),
    },
)  # fmt: skip
NAMES = ["video", "goal", "action", "reward"]
MATCHED = {
    "central_thought": central_thought(UNEQUAL, streams=NAMES, thought="thought"),
    "causal": causal(UNEQUAL, regions=NAMES),
    "local_window": local_window(UNEQUAL, regions=NAMES, frames=1),
    "hub_spoke": CanvasTopology.hub_spoke("thought", NAMES),
    "causal_temporal": CanvasTopology.causal_temporal(NAMES),
}


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_every_segment_has_its_window_and_its_far_links(data):
    layout = data.draw(layouts(lengths=True))
    names = data.draw(st.lists(st.sampled_from(list(layout.regions)), min_size=1, unique=True))
    frames, links, seed = (data.draw(st.integers(0, 4)) for _ in range(3))
    made = [
        local_plus_sparse_global(layout, regions=names, frames=frames, links=links, seed=seed)
        for _ in range(2)
    ]
    assert made[0] == made[1]
    keys = segment_keys(layout)
    near = local_window(layout, regions=names, frames=frames)
    # Kinds ignored, as a region's default may be `none`.
    near, drawn = (plain(topology).reads(layout) for topology in (near, made[0]))
    assert not (near & ~drawn).any()
    inside = [name in names for name, _ in keys]
    assert not drawn[np.logical_not(inside)].any() and not drawn[:, np.logical_not(inside)].any()
    for row in np.flatnonzero(inside):
        exist = sum(inside) - near[row].sum()
        assert (drawn & ~near)[row].sum() == min(links, exist)


def plain(topology: CanvasTopology) -> CanvasTopology:
    return CanvasTopology(
        tuple(Connection(e.src, e.dst, pairs=e.pairs, fn="cogvideox") for e in topology.connections)
    )


def test_far_links_make_paths_short():
    layout = CanvasLayout(64, 1, 1, d_model=4, regions={"video": (0, 64, 0, 1, 0, 1)})

    def longest_path(links: int) -> int:
        topology = local_plus_sparse_global(layout, frames=1, links=links, seed=0)
        step = allowed(topology, layout).astype(np.int64)
        reached, count = step, 1
        while not reached.all():
            reached, count = (reached @ step > 0).astype(np.int64), count + 1
        return count

    assert longest_path(0) == 63
    assert longest_path(2) <= 8


@pytest.mark.parametrize("name", MATCHED)
def test_pairs_match_within_one_percent_and_self_edges_stay(name):
    matched = MATCHED[name].reads(UNEQUAL)
    sizes = segment_sizes(UNEQUAL)
    oneself = np.eye(len(sizes), dtype=bool)
    used = np.array([key[0] in MATCHED[name].regions for key in segment_keys(UNEQUAL)])
    drawn = []
    for seed in range(5):
        topology = random_matched(MATCHED[name], UNEQUAL, seed=seed)
        assert topology == random_matched(MATCHED[name], UNEQUAL, seed=seed)
        assert {edge.weight for edge in topology.connections} == {1.0}
        assert topology.matching(UNEQUAL) == topology
        reads = topology.reads(UNEQUAL)
        pairs, expected = (int(sizes @ r @ sizes) for r in (reads, matched))
        assert abs(pairs - expected) <= 0.01 * expected
        np.testing.assert_array_equal(reads & oneself, matched & oneself)
        assert not reads[~used].any() and not reads[:, ~used].any()
        drawn.append(reads)
    # Two seeds differ about as two independent draws of their densities do.
    drawn_anew = used[:, None] & used[None, :] & ~oneself
    for one, other in itertools.pairwise(drawn):
        p, q = one[drawn_anew].mean(), other[drawn_anew].mean()
        differ = (one != other)[drawn_anew].mean()
        assert differ == pytest.approx(p * (1 - q) + q * (1 - p), rel=0.3)
    assert (drawn[0] != matched)[drawn_anew].mean() > 0.1


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_any_topology_can_be_matched(data):
    layout = data.draw(layouts(lengths=True))
    topology = CanvasTopology(tuple(data.draw(edges(layout, pairs=True))))
    reads = random_matched(topology, layout, seed=data.draw(st.integers(0, 3))).reads(layout)
    sizes, matched = segment_sizes(layout), topology.reads(layout)
    pairs, expected = (int(sizes @ r @ sizes) for r in (reads, matched))
    assert abs(pairs - expected) <= 0.01 * expected
    np.testing.assert_array_equal(np.diag(reads), np.diag(matched))


def test_all_segments_are_drawn_alike_where_they_are_of_one_size():
    regions = {"a": (0, 4, 0, 1, 0, 1), "b": (0, 4, 1, 2, 0, 1)}
    layout = CanvasLayout(4, 2, 1, d_model=4, regions=regions)
    matched = CanvasTopology.isolated(["a", "b"])
    share = np.mean([random_matched(matched, layout, seed=s).reads(layout) for s in range(400)], 0)
    # 24 of 56 pairs; the standard deviation of a share over 400 draws is 0.025.
    others = ~np.eye(8, dtype=bool)
    assert np.abs(share[others] - 24 / 56).max() < 4 * 0.025
    np.testing.assert_array_equal(np.diag(share), 1)


def test_a_total_that_no_choice_gives_is_refused_with_the_nearest():
    draw = {"slack": 5.0, "generator": np.random.default_rng(0)}
    weights = np.array([100, 100, 100, 100])
    assert subset_near(weights, target=205, **draw).sum() == 2
    message = (
        "no random choice among 4 (region, frame) pairs allows 240 pairs of cells: the nearest of "
        "64 allows 200, expected within 5"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        subset_near(weights, target=240, **draw)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"frames": -1}, "frames -1: expected at least 0"),
        ({"links": -1}, "links -1: expected at least 0"),
        ({"seed": -1}, "seed -1: expected at least 0"),
        ({"regions": ["vidoe"]}, "unknown region 'vidoe': did you mean 'video'"),
    ],
)
def test_bad_numbers_and_names_are_refused(changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        local_plus_sparse_global(UNEQUAL, **({"frames": 1, "links": 1, "seed": 0} | changes))
    with pytest.raises(ValueError, match="unknown region 'vidoe'"):
        random_matched(CanvasTopology.dense(["vidoe"]), UNEQUAL, seed=0)
