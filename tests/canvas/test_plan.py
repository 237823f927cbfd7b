"""Plans as data: what they hold, count and refuse. That they compute the mask: test_planned.py."""

import time
import tracemalloc

import numpy as np
import pytest

from roam_jax.canvas.layout import CanvasLayout, RegionSpec
from roam_jax.canvas.plan import compile_plan
from roam_jax.canvas.temporal_topologies import causal
from roam_jax.canvas.topology import CanvasTopology, Connection


def video(frames=16, rows=8, columns=8, *, regions=2, width=64) -> CanvasLayout:
    """Equal boxes beside each other."""
    boxes = {f"r{i}": (0, frames, i * rows, (i + 1) * rows, 0, columns) for i in range(regions)}
    return CanvasLayout(frames, regions * rows, columns, width, boxes)


def robot() -> CanvasLayout:
    """Text, 13 frames of 30 x 45 video, and cells of actions, state and thought: 17,776 + 130."""
    return CanvasLayout(
        13,
        38,
        45,
        1920,
        {
            "text": RegionSpec((0, 1, 30, 36, 0, 45), length=226),
            "visual": (0, 13, 0, 30, 0, 45),
            "action": (1, 13, 36, 37, 0, 4),
            "proprio": (0, 13, 36, 37, 4, 5),
            "thought": RegionSpec((0, 4, 37, 38, 0, 17), period=4),
        },
    )


TOPOLOGIES = {
    "dense": CanvasTopology.dense,
    "causal_temporal": CanvasTopology.causal_temporal,
    "hub_spoke": lambda names: CanvasTopology.hub_spoke(names[-1], names[:-1]),
}


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_a_full_size_canvas_is_compiled_at_once(name):
    layout = robot()
    topology = TOPOLOGIES[name](list(layout.regions)).matching(layout)
    compile_plan(layout, topology)  # imports and caches
    tracemalloc.start()
    start = time.process_time()
    plan = compile_plan(layout, topology)
    seconds = time.process_time() - start
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert plan.query_cells == plan.key_cells == 17_776 + 48 + 13 + 68
    # Type checks of the tests take most of it; benchmarks/attention.py measures without.
    assert seconds < 5
    assert peak < 50e6


def test_scores_are_those_that_the_topology_allows():
    layout = video(16, 16, 16)
    plan = compile_plan(layout, CanvasTopology.causal_temporal(list(layout.regions)))
    assert not plan.is_dense
    # A first frame reads itself, each later one itself and two frames before.
    assert plan.pairs == 2 * 256**2 * (1 + 15 * 3)
    assert plan.pairs <= plan.scores < 1.05 * plan.pairs
    assert plan.flops(heads=8, width=32, batch=3) == 4 * 3 * 8 * 32 * plan.scores


def test_all_the_past_of_a_full_size_canvas_is_planned():
    """Every frame has keys of its own, and regions of very unequal sizes."""
    layout = robot()
    plan = compile_plan(layout, causal(layout))
    assert not plan.is_dense
    assert plan.scores < 1.2 * plan.pairs


def test_small_groups_are_put_together():
    """64 queries a frame over 192 keys: tiles of one region alone would be too small."""
    layout = video()
    plan = compile_plan(layout, CanvasTopology.causal_temporal(list(layout.regions)))
    assert any(stack.classes is not None for stack in plan.stacks)
    assert plan.pairs < plan.scores < 1.5 * plan.pairs


def test_a_free_plan_is_one_loop_over_all():
    layout = video(4)
    plan = compile_plan(layout, CanvasTopology.dense(list(layout.regions)))
    assert plan.is_free and [s.keys for s in plan.stacks or ()] == [512]
    causal = compile_plan(layout, CanvasTopology.causal_chain(list(layout.regions)))
    assert not causal.is_free


def test_dense_where_the_loops_cost_more():
    layout = video(4, 1, 2)  # 16 cells
    assert compile_plan(layout, CanvasTopology.causal_temporal(list(layout.regions))).is_dense


def test_many_shapes_of_keys_become_few_loops():
    """One frame more is read by every later frame: 32 sets of keys."""
    layout = video(32, regions=1)
    edges = [Connection("r0", "r0", pairs=tuple((t, s) for t in range(32) for s in range(t + 1)))]
    plan = compile_plan(layout, CanvasTopology(tuple(edges)))
    assert plan.pairs == 64**2 * 32 * 33 // 2
    assert len(plan.stacks) <= 8
    assert plan.scores < 1.15 * plan.pairs


def test_equal_plans_are_equal_and_hash_alike():
    layout = video()
    topologies = [CanvasTopology.causal_temporal(list(layout.regions)) for _ in range(2)]
    one, other = (compile_plan(layout, topology) for topology in topologies)
    assert one == other and hash(one) == hash(other)
    weaker = CanvasTopology(
        (*topologies[0].connections[:-1], Connection("r1", "r1", weight=0.5, t_src=0, t_dst=-1))
    )
    assert compile_plan(layout, weaker) != one
    assert compile_plan(layout, topologies[0], queries=(0, 1), keys=(0, 1)) != one


def test_plans_of_parts_of_larger_groups_are_others():
    """Local attention scales key places by all queries of a group, also those that are left out."""
    plans = []
    topology = CanvasTopology((Connection("a", "b", fn="local_attention"),))
    for length in (6, 8):
        regions = {"a": RegionSpec((0, 2, 0, 1, 0, 4), length=length), "b": (0, 1, 1, 2, 0, 4)}
        layout = CanvasLayout(2, 2, 4, 8, regions)
        plans.append(compile_plan(layout, topology, queries=(0,), keys=(2,)))
    assert [plan.edges[0].stacks[0].size for plan in plans] == [6, 8]
    assert plans[0] != plans[1]


def test_slices_keep_cells_in_sequence_order():
    layout = video(3, 1, 2)
    chain = CanvasTopology.causal_temporal(["r0", "r1"])
    plan = compile_plan(layout, chain, queries=(2, 5), keys=(1, 2, 4, 5))
    np.testing.assert_array_equal(plan.table.query_segments, [2, 2, 5, 5])
    np.testing.assert_array_equal(plan.table.segments, [1, 1, 2, 2, 4, 4, 5, 5])
    assert plan.pairs == 2 * 2 * (2 + 2 + 2)


def test_shares_weigh_each_edge_of_another_kind_and_softmax_together():
    layout = CanvasLayout(1, 1, 6, 8, {"a": (0, 1, 0, 1, 0, 2), "b": (0, 1, 0, 1, 2, 6)})
    edges = (
        Connection("a", "a", weight=2.0),
        Connection("a", "b"),
        Connection("a", "b", fn="pooling", weight=3.0),
        Connection("a", "b", fn="none", weight=50.0),
        Connection("b", "b", fn="copy", weight=0.5),
    )
    plan = compile_plan(layout, CanvasTopology(edges))
    assert [(e.kind, e.index, e.src, e.dst) for e in plan.edges] == [
        ("pooling", 2, "a", "b"),
        ("copy", 4, "b", "b"),
    ]
    np.testing.assert_array_equal(plan.shares[:, 0], [0.5, 0.5, 0])
    np.testing.assert_array_equal(plan.shares[:, 2], [0, 0, 1])
    (stack,) = plan.edges[0].stacks
    np.testing.assert_array_equal(stack.query_cells, [[0, 1]])
    np.testing.assert_array_equal(stack.key_cells, [[2, 3, 4, 5]])


def test_bad_input_is_refused_by_name():
    layout = video(4)

    def refused(message, *edges):
        with pytest.raises(ValueError, match=message):
            compile_plan(layout, CanvasTopology(edges))

    refused("unknown region 'r2'", Connection("r0", "r2"))
    refused("kind 'mamba'", Connection("r0", "r1", fn="mamba"))
    refused(
        "unknown kind 'cros_attention': did you mean 'cross_attention'",
        Connection("r0", "r1", fn="cros_attention"),
    )
    refused("r0 -> r1.*match no frame", Connection("r0", "r1", t_src=0, t_dst=-9))
    with pytest.raises(ValueError, match="keys: no segment 8: the layout has 8 segments"):
        compile_plan(layout, CanvasTopology.dense(["r0", "r1"]), queries=(0,), keys=(0, 8))
