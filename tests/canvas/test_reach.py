"""Reachability against gradients: 'no' is exactly zero, 'yes' is not."""

import functools
import itertools
import re

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roam_jax.attention import dense
from roam_jax.canvas.layout import CanvasLayout, RegionSpec
from roam_jax.canvas.reach import influence_path, reachable
from roam_jax.canvas.segments import SegmentTable
from roam_jax.canvas.temporal_topologies import causal
from roam_jax.canvas.topologies import central_thought
from roam_jax.canvas.topology import CanvasTopology, Connection, TemporalFill
from tests.canvas.canvases import allowed, edges, influences, layouts, places

CELLS, WIDTH = 24, 2  # as many cells as the largest random layout


def sensitivities(table: SegmentTable, applications: int) -> np.ndarray:
    """(N, N): how strongly the row's output depends on the column's input."""

    def stack(state: jax.Array) -> jax.Array:
        for _ in range(applications):
            heads = state[None, :, None]
            state = state + dense.attention(heads, heads, heads, table=table)[0, :, 0]
        return state

    state = 0.3 * np.random.default_rng(0).normal(size=(CELLS, WIDTH)).astype(np.float32)
    return np.abs(jax.jacrev(stack)(state)).sum(axis=(1, 3))


def running(topology: CanvasTopology, layout: CanvasLayout) -> CanvasTopology:
    return CanvasTopology(
        tuple(e for e in topology.connections if topology.resolve_fn(e, layout) != "none")
    )


@settings(max_examples=12, deadline=None)
@given(st.data())
def test_no_is_a_zero_gradient_and_yes_is_not(data):
    layout = data.draw(layouts(lengths=True))
    topology = CanvasTopology(tuple(data.draw(edges(layout, pairs=True))))
    applications = data.draw(st.integers(1, 3))
    reads = allowed(running(topology, layout), layout)
    names, real = places(layout)
    count = len(names)
    log_weight = np.full((CELLS, CELLS), -np.inf, np.float32)
    log_weight[:count, :count][reads] = 0
    table = SegmentTable(np.arange(CELLS, dtype=np.int32), log_weight)
    moves = sensitivities(table, applications)[:count, :count]
    expected = influences(reads, applications)

    spots = list(dict.fromkeys(zip(names.tolist(), real.tolist(), strict=True)))
    for source in [*layout.regions, *spots]:
        for target in [*layout.regions, *spots]:
            cells = np.ix_(*(at(place, names, real) for place in (target, source)))
            found = reachable(topology, layout, source, target, blocks=applications, rounds=1)
            assert found == (moves[cells] != 0).any() == expected[cells].any()


def at(place, names: np.ndarray, real: np.ndarray) -> np.ndarray:
    name, frame = (place, None) if isinstance(place, str) else place
    return (names == name) & ((frame is None) | (real == frame))


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_paths_are_chains_of_reads_and_no_longer_than_needed(data):
    layout = data.draw(layouts(lengths=True))
    topology = CanvasTopology(tuple(data.draw(edges(layout, pairs=True))))
    blocks, rounds = data.draw(st.integers(1, 2)), data.draw(st.integers(1, 3))
    reads = allowed(running(topology, layout), layout)
    names, real = places(layout)
    for source in layout.regions:
        for target in layout.regions:
            path = influence_path(topology, layout, source, target, blocks=blocks, rounds=rounds)
            cells = np.ix_(names == target, names == source)
            if path is None:
                assert not influences(reads, blocks * rounds)[cells].any()
                continue
            assert path[0][0] == source and path[-1][0] == target
            assert len(path) - 1 <= blocks * rounds
            for read, reader in itertools.pairwise(path):
                assert reads[np.ix_(at(reader, names, real), at(read, names, real))].all()
            if len(path) > 1:
                assert not influences(reads, len(path) - 2)[cells].any()


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_nothing_reaches_the_past_under_a_causal_topology(data):
    layout = data.draw(layouts(lengths=True))
    fill = data.draw(st.sampled_from([TemporalFill.HOLD, TemporalFill.DROP]))
    topology = causal(layout, window=data.draw(st.none() | st.integers(0, 4)), temporal_fill=fill)
    names, real = places(layout)
    spots = list(dict.fromkeys(zip(names.tolist(), real.tolist(), strict=True)))
    for source in spots:
        for target in spots:
            if source[1] > target[1]:
                assert not reachable(topology, layout, source, target, blocks=30, rounds=30)


def test_time_is_real_and_waiting_is_allowed():
    regions = {"fast": (0, 6, 0, 1, 0, 1), "slow": RegionSpec((0, 2, 1, 2, 0, 1), period=4)}
    layout = CanvasLayout(6, 2, 1, d_model=4, regions=regions)
    topology = causal(layout, window=1)
    ask = functools.partial(influence_path, topology, layout, blocks=2, rounds=3)
    # Canvas frame 1 of the slow region is real frame 4.
    assert ask(("slow", 4), ("fast", 3)) is None
    assert ask(("slow", 4), ("fast", 4)) == (("slow", 4), ("fast", 4))
    assert ask(("slow", 4), ("slow", 4)) == (("slow", 4),)
    # A frame an application, and the slow region holds its first frame for three.
    expected = (("fast", 0), ("slow", 0), ("fast", 3), ("fast", 4), ("fast", 5))
    path = ask(("fast", 0), ("fast", 5))
    assert len(path) == len(expected) and path[0] == expected[0] and path[-1] == expected[-1]
    assert influence_path(topology, layout, ("fast", 0), ("fast", 5), blocks=3, rounds=1) is None


def test_streams_need_two_applications_through_the_thought():
    regions = {name: (0, 2, i, i + 1, 0, 1) for i, name in enumerate(("a", "b", "thought"))}
    layout = CanvasLayout(2, 3, 1, d_model=4, regions=regions)
    topology = central_thought(layout, streams=["a", "b"], thought="thought")
    assert not reachable(topology, layout, "a", "b", blocks=1, rounds=1)
    for blocks, rounds in ((2, 1), (1, 2)):
        path = influence_path(topology, layout, "a", "b", blocks=blocks, rounds=rounds)
        assert [name for name, _ in path] == ["a", "thought", "b"]
    # Edges that are disabled or weigh nothing carry nothing; other kinds do.
    for change, expected in (
        ({"weight": 0}, False),
        ({"fn": "none"}, False),
        ({"fn": "pooling"}, True),
    ):
        topology = CanvasTopology((Connection("b", "a", **change),))
        assert reachable(topology, layout, "a", "b", blocks=9, rounds=9) == expected
        assert not reachable(topology, layout, "b", "a", blocks=9, rounds=9)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"source": "vidoe"}, "unknown region 'vidoe': did you mean 'video'"),
        ({"target": ("vidoe", 0)}, "unknown region 'vidoe': did you mean 'video'"),
        (
            {"target": ("video", 3)},
            "region 'video' has no cells at real frame 3: expected one of 0, 2, 4",
        ),
        ({"blocks": 0}, "blocks 0: expected at least 1"),
        ({"rounds": 0}, "rounds 0: expected at least 1"),
        (
            {"topology": CanvasTopology.dense(["vidoe"])},
            "unknown region 'vidoe': did you mean 'video'",
        ),
    ],
)
def test_places_that_are_not_there_are_refused(changes, message):
    regions = {"video": RegionSpec((0, 3, 0, 1, 0, 1), period=2)}
    asked = {
        "topology": CanvasTopology.dense(["video"]),
        "layout": CanvasLayout(3, 1, 1, d_model=4, regions=regions),
        "source": "video",
        "target": "video",
        "blocks": 1,
        "rounds": 1,
    }
    with pytest.raises(ValueError, match=re.escape(message)):
        reachable(**(asked | changes))
