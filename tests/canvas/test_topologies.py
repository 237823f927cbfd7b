"""Topologies of the study: who reads whom, cell by cell, and what can never meet."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roam_jax.canvas.agents import join_layouts, multi_agent
from roam_jax.canvas.layout import CanvasLayout, RegionSpec
from roam_jax.canvas.topologies import (
    ACTION_REGION,
    JOINT_REGION,
    TOPOLOGIES,
    central_thought,
    cortical_hierarchy,
    kinematic_tree,
    thalamic_relay,
)
from roam_jax.canvas.topology import CanvasTopology, empty_edges
from roam_jax.morphology import ROOT, Joint, Morphology
from tests.canvas.canvases import allowed, influences, layouts, places

# Four regions of one clock on a canvas of 3 frames, the thought for one frame alone.
LAYOUT = CanvasLayout(
    3, 4, 2, d_model=4,
    regions={
        "video": (0, 3, 0, 1, 0, 2),
        "state": RegionSpec((0, 3, 1, 2, 0, 2), length=5),
        "action": (1, 3, 2, 3, 0, 1),
        "thought": (0, 1, 3, 4, 0, 2),
    },
)  # fmt: skip
STREAMS = ["video", ["state", "action"]]
GROUP = {"video": 0, "state": 1, "action": 1}


def test_the_list_names_all_of_them():
    assert list(TOPOLOGIES) == [
        "dense", "isolated", "hub_spoke", "causal_chain", "causal_temporal", "central_thought",
        "causal", "cortical_hierarchy", "thalamic_relay", "multi_agent", "local_window",
        "local_plus_sparse_global", "random_matched",
    ]  # fmt: skip
    assert TOPOLOGIES["dense"](["a", "b"]) == CanvasTopology.dense(["a", "b"])
    for name, make in TOPOLOGIES.items():
        assert make.__name__ == name and make.__doc__


def tree_canvas(body, *, lacking=(), beside=()):
    """Joints and actions of a body, a goal and thought cells in one row."""
    names = [form.format(n) for form in (JOINT_REGION, ACTION_REGION) for n in body.joint_names]
    names = [n for n in [*names, "goal", "thought", *beside] if n not in lacking]
    return CanvasLayout(
        1, 1, len(names), 8, {n: (0, 1, 0, 1, i, i + 1) for i, n in enumerate(names)}
    )


def test_joints_talk_along_the_links_of_a_tree():
    links = [("a", ROOT), ("b", 0), ("c", 1), ("d", 0), ("e", ROOT)]
    body = Morphology("b5", tuple(Joint(n, p, "hinge", -1.0, 1.0, 0.1) for n, p in links))
    layout, count = tree_canvas(body), len(links)
    tree = np.eye(count, dtype=bool)
    for place, (_, parent) in enumerate(links):
        if parent != ROOT:
            tree[place, parent] = tree[parent, place] = True
    expected = np.zeros((2 * count + 2,) * 2, bool)
    expected[:count, :count] = tree
    for one, other in ((0, 1), (1, 0), (1, 1)):  # actions meet their joint and themselves
        rows, columns = (slice(i * count, (i + 1) * count) for i in (one, other))
        expected[rows, columns] = np.eye(count, dtype=bool)
    expected[:, 2 * count :] = True
    np.testing.assert_array_equal(
        allowed(kinematic_tree(layout, morphology=body), layout), expected
    )
    edges = kinematic_tree(layout, morphology=body).connections
    assert len(edges) == len({(e.src, e.dst) for e in edges}) == expected.sum()


@pytest.mark.parametrize(
    "given, message",
    [
        ({"lacking": ["action_b"]}, r"lacks \['action_b'\] and has no region beside"),
        ({"beside": ["joint_c"]}, r"lacks no region and has \['joint_c'\] beside"),
    ],
)
def test_a_tree_that_does_not_match_the_canvas_is_refused(given, message):
    joints = (Joint("a", ROOT, "hinge", -1.0, 1.0, 0.1), Joint("b", 0, "hinge", -1.0, 1.0, 0.1))
    body = Morphology("pair", joints)
    with pytest.raises(ValueError, match=f"morphology 'pair' .* does not match the .*{message}"):
        kinematic_tree(tree_canvas(body, **given), morphology=body)


@pytest.mark.parametrize("hub", ["central_thought", "thalamic_relay"])
def test_streams_meet_in_the_thought_and_nowhere_else(hub):
    if hub == "central_thought":
        topology = central_thought(LAYOUT, streams=STREAMS, thought="thought")
    else:
        topology = thalamic_relay(LAYOUT, streams=STREAMS, relay="thought")
    names, _ = places(LAYOUT)
    reads = allowed(topology, LAYOUT)
    for q, reader in enumerate(names):
        for k, read in enumerate(names):
            same = GROUP.get(reader, reader) == GROUP.get(read, read)
            assert reads[q, k] == (same or "thought" in (reader, read))
    group = np.array([GROUP.get(name, -1) for name in names])
    across = (group[:, None] != group[None, :]) & (group >= 0)[:, None] & (group >= 0)[None, :]
    assert across.any() and not reads[across].any()
    assert influences(reads, 2)[across].all()
    # Without the thought, nothing crosses at any depth.
    reads[names == "thought"] = False
    assert not influences(reads, 50)[across].any()


def test_the_relay_is_read_by_gated_edges_alone():
    def gated(topology: CanvasTopology, kind: str) -> set[tuple[str, str]]:
        edges = topology.connections
        return {(e.src, e.dst) for e in edges if topology.resolve_fn(e, LAYOUT) == kind}

    expected = {("video", "thought"), ("state", "thought"), ("action", "thought")}
    topology = thalamic_relay(LAYOUT, streams=STREAMS, relay="thought")
    assert gated(topology, "gated") == expected
    assert (
        gated(topology, "cross_attention")
        == {(edge.src, edge.dst) for edge in topology.connections} - expected
    )
    # The lesion: nothing of a stream reaches another.
    lesion = thalamic_relay(LAYOUT, streams=STREAMS, relay="thought", gate="none")
    assert gated(lesion, "none") == expected
    reads = lesion.reads(LAYOUT).astype(int)
    assert not np.linalg.matrix_power(reads, 5)[:3, 3:].any()  # video reads nothing but video


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_levels_see_themselves_what_is_held_above_and_what_was_new_below(data):
    layout = data.draw(layouts(lengths=True))
    rising = sorted(layout.regions, key=lambda name: layout.regions[name].period)
    cut = data.draw(st.integers(1, len(rising)))
    levels = [rising[:cut], *rising[cut:]]  # the lowest may be a group
    topology = cortical_hierarchy(layout, levels=levels)
    assert_no_edge_is_empty(topology, layout)

    level = {name: 0 if name in levels[0] else levels.index(name) for name in rising}
    names, real = places(layout)
    reads = allowed(topology, layout)
    for q, reader in enumerate(names):
        for k, read in enumerate(names):
            up = level[read] - level[reader]
            if up == 0:
                expected = True
            elif up == 1:
                been = [r for r, n in zip(real, names, strict=True) if n == read and r <= real[q]]
                expected = real[k] == max(been, default=-1)
            elif up == -1:
                expected = real[q] - layout.regions[reader].period < real[k] <= real[q]
            else:
                expected = False
            assert reads[q, k] == expected, (reader, real[q], read, real[k])


def test_a_level_influences_one_k_levels_away_after_k_applications_no_sooner():
    regions = {f"r{i}": (0, 3, i, i + 1, 0, 1) for i in range(4)}
    layout = CanvasLayout(3, 4, 1, d_model=4, regions=regions)
    reads = allowed(cortical_hierarchy(layout, levels=list(regions)), layout)
    names, real = places(layout)
    last = real == 2
    for k in range(1, 4):
        cells = np.ix_((names == f"r{k}") & last, names == "r0")
        assert influences(reads, k)[cells].any() and not influences(reads, k - 1)[cells].any()
        cells = np.ix_((names == "r0") & last, names == f"r{k}")
        assert influences(reads, k)[cells].any() and not influences(reads, k - 1)[cells].any()


def test_joined_canvases_lie_below_each_other():
    other = CanvasLayout(
        4, 1, 3, d_model=4, regions={"video": RegionSpec((0, 4, 0, 1, 0, 3), period=2, length=7)}
    )
    joined = join_layouts({"left": LAYOUT, "right": other})
    assert (joined.T, joined.H, joined.W, joined.d_model) == (4, 5, 3, 4)
    assert list(joined.regions) == [*(f"left.{name}" for name in LAYOUT.regions), "right.video"]
    moved = RegionSpec((0, 4, 4, 5, 0, 3), period=2, length=7)
    assert joined.regions["right.video"] == moved
    for agent, layout in (("left", LAYOUT), ("right", other)):
        for name in layout.regions:
            assert joined.region_numel(f"{agent}.{name}") == layout.region_numel(name)
    assert joined.regions["left.state"].bounds == LAYOUT.regions["state"].bounds


def test_agents_hear_of_each_other_through_channels_alone():
    joined = join_layouts({"left": LAYOUT, "right": LAYOUT, "third": LAYOUT})
    channels = [("right.state", "left.thought"), ("third.video", "right.action")]
    topology = multi_agent(joined, channels=channels)
    names, _ = places(joined)
    agents = np.array([name.split(".")[0] for name in names])
    reads = allowed(topology, joined)
    for q, reader in enumerate(names):
        for k, read in enumerate(names):
            assert reads[q, k] == (agents[q] == agents[k] or (reader, read) in channels)
    # Influence runs along the channels, and in their direction.
    reached = influences(reads, 20)
    order = ["left", "right", "third"]
    for q, k in np.ndindex(reads.shape):
        assert reached[q, k] == (order.index(agents[k]) <= order.index(agents[q]))
    reads &= agents[:, None] == agents[None, :]
    assert not influences(reads, 50)[agents[:, None] != agents[None, :]].any()
    # The same on one layout whose regions are grouped into agents.
    groups = {a: [f"{a}.{name}" for name in LAYOUT.regions] for a in order}
    assert multi_agent(joined, agents=groups, channels=channels) == topology


def assert_no_edge_is_empty(topology: CanvasTopology, layout: CanvasLayout) -> None:
    assert not empty_edges(topology, layout)
    assert topology.matching(layout) == topology


SLOW_BELOW = CanvasLayout(
    2, 2, 1, d_model=4,
    regions={"a": RegionSpec((0, 2, 0, 1, 0, 1), period=2), "b": (0, 2, 1, 2, 0, 1)},
)  # fmt: skip
JOINED = join_layouts({"one": SLOW_BELOW, "two": SLOW_BELOW})


@pytest.mark.parametrize(
    "make, message",
    [
        (
            lambda: central_thought(LAYOUT, streams=["vidoe"], thought="thought"),
            "unknown region 'vidoe': did you mean 'video'",
        ),
        (
            lambda: central_thought(LAYOUT, streams=["video"], thought="though"),
            "unknown region 'though': did you mean 'thought'",
        ),
        (
            lambda: central_thought(LAYOUT, streams=["video", "thought"], thought="thought"),
            "region 'thought' is named twice",
        ),
        (
            lambda: central_thought(
                LAYOUT, streams=["video", ["state", "video"]], thought="action"
            ),
            "region 'video' is named twice",
        ),
        (
            lambda: central_thought(LAYOUT, streams=[], thought="thought"),
            "streams []: expected at least one, each with a region",
        ),
        (
            lambda: thalamic_relay(LAYOUT, streams=["video", []], relay="thought"),
            "streams ['video', []]: expected at least one, each with a region",
        ),
        (
            lambda: thalamic_relay(LAYOUT, streams=["video"], relay="thought", gate="gate"),
            "connection video -> thought: unknown kind 'gate': did you mean 'gated'",
        ),
        (
            lambda: thalamic_relay(LAYOUT, streams=["video"], relay="thought", gate="mamba"),
            "connection video -> thought: kind 'mamba' is kept in schema files but cannot be run",
        ),
        (
            lambda: cortical_hierarchy(SLOW_BELOW, levels=["a", "b"]),
            "level of 'b' has period 1, the level below, of 'a', has 2: expected no smaller period",
        ),
        (lambda: cortical_hierarchy(LAYOUT, levels=[]), "streams []: expected at least one"),
        (lambda: join_layouts({}), "no agents: expected at least one canvas"),
        (
            lambda: join_layouts({"a.b": LAYOUT}),
            "agent 'a.b': expected a name without '.'",
        ),
        (
            lambda: join_layouts({"a": LAYOUT, "b": CanvasLayout(1, 1, 1, d_model=8, regions={})}),
            "agent 'b' has d_model 8, agent 'a' has 4: expected the same",
        ),
        (
            lambda: multi_agent(LAYOUT, channels=[]),
            "region 'video' names no agent: expected agent.region, or `agents`",
        ),
        (
            lambda: multi_agent(JOINED, channels=[("one.a", "two.c")]),
            "unknown region 'two.c': did you mean 'two.b'",
        ),
        (
            lambda: multi_agent(JOINED, channels=[("one.a", "one.b")]),
            "channel ('one.a', 'one.b') stays within agent 'one'",
        ),
        (
            lambda: multi_agent(JOINED, channels=[("one.a", "two.b"), ("one.a", "two.b")]),
            "channel ('one.a', 'two.b') is given twice",
        ),
        (
            lambda: multi_agent(JOINED, agents={"x": ["one.a"], "y": []}, channels=[]),
            "agent 'y' has no regions",
        ),
        (
            lambda: multi_agent(
                JOINED, agents={"x": ["one.a"], "y": ["one.b"]}, channels=[("one.a", "two.b")]
            ),
            "channel ('one.a', 'two.b'): 'two.b' is of no agent",
        ),
        (
            lambda: multi_agent(JOINED, agents={"x": ["one.a"], "y": ["one.a"]}, channels=[]),
            "region 'one.a' is named twice",
        ),
    ],
)
def test_what_is_no_such_topology_is_refused_by_name(make, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make()
