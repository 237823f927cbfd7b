"""Masks against canvas-engineering on random canvases, and the tables that attention runs on."""

import dataclasses
import itertools
import re
import time

import canvas_engineering as ce
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roam_jax.canvas.kinds import KINDS
from roam_jax.canvas.layout import CanvasLayout, RegionSpec
from roam_jax.canvas.topology import (
    CanvasTopology,
    Connection,
    TemporalFill,
    empty_edges,
    frame_weights,
)
from tests.canvas.canvases import ce_layout, ce_mask, ce_topology, edges, layouts

T, H = 4, 3


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_mask_equals_canvas_engineering(data):
    layout = data.draw(layouts())
    topology = CanvasTopology(tuple(data.draw(edges(layout))))
    np.testing.assert_allclose(
        topology.to_attention_mask(layout), ce_mask(layout, topology), rtol=1e-6
    )


@pytest.mark.parametrize(
    "fill, order", [("drop", 1), ("hold", 1), *(("interpolate", order) for order in (1, 2, 3))]
)
def test_every_pair_of_offsets_and_periods_equals_canvas_engineering(fill, order):
    without_keys, shares = 0, 0
    offsets = (None, -2, 0, 1)
    for t_src, t_dst, period, slow in itertools.product(offsets, offsets, (1, 2), (1, 3)):
        layout = CanvasLayout(
            T=T, H=1, W=2, d_model=4,
            regions={
                "a": RegionSpec((0, T, 0, 1, 0, 1), period=period),
                "b": RegionSpec((1, T - 1, 0, 1, 1, 2), period=slow),
            },
        )  # fmt: skip
        edge = Connection(
            "a", "b", weight=0.5, t_src=t_src, t_dst=t_dst,
            temporal_fill=TemporalFill(fill), interpolation_order=order,
        )  # fmt: skip
        topology = CanvasTopology((edge,))
        mask = topology.to_attention_mask(layout)
        np.testing.assert_allclose(mask, ce_mask(layout, topology), rtol=1e-6)
        without_keys += (mask[layout.region_indices("a")].sum(axis=1) == 0).any()
        shares += ((mask > 0) & (mask < 0.5)).any()
    # The sweep reaches queries that read nothing, and keys that are shared.
    assert without_keys > 0
    assert (shares > 0) == (fill == TemporalFill.INTERPOLATE)


@pytest.mark.parametrize("period", [100, 30_000])
def test_far_interpolation_fades_as_in_canvas_engineering(period):
    layout = CanvasLayout(
        T=3, H=1, W=2, d_model=4,
        regions={"a": (1, 2, 0, 1, 0, 1), "b": RegionSpec((1, 3, 0, 1, 1, 2), period=period)},
    )  # fmt: skip
    edge = Connection("a", "b", t_src=0, t_dst=0, interpolation_order=3)
    topology = CanvasTopology((dataclasses.replace(edge, temporal_fill=TemporalFill.INTERPOLATE),))
    mask = topology.to_attention_mask(layout)
    np.testing.assert_allclose(mask, ce_mask(layout, topology), rtol=1e-6)
    assert mask.sum() == pytest.approx(1.0 if period == 100 else 0.0)


def test_frames_left_empty_by_a_length_are_no_frames_to_read():
    """Canvas-engineering has no length; whole frames of one are a shorter box."""

    def mask(slow: RegionSpec, topology: CanvasTopology) -> np.ndarray:
        regions = {"fast": RegionSpec((0, 4, 0, 1, 0, 1)), "slow": slow}
        return topology.to_attention_mask(CanvasLayout(4, 2, 2, d_model=4, regions=regions))

    box = RegionSpec((0, 4, 1, 2, 0, 2))
    cut = dataclasses.replace(box, length=4)
    shorter = dataclasses.replace(box, bounds=(0, 2, 1, 2, 0, 2))
    for fill in TemporalFill:
        edge = Connection("fast", "slow", t_src=0, t_dst=0, temporal_fill=fill)
        topology = CanvasTopology((edge, Connection("slow", "slow", t_src=0, t_dst=-1)))
        np.testing.assert_array_equal(mask(cut, topology), mask(shorter, topology))


@pytest.mark.parametrize("name", ["dense", "isolated", "causal_chain", "causal_temporal"])
def test_constructors_equal_canvas_engineering(name):
    regions = {f"r{i}": RegionSpec((0, T, i, i + 1, 0, 2)) for i in range(H)}
    ours = getattr(CanvasTopology, name)(sorted(regions))
    layout = CanvasLayout(T=T, H=H, W=2, d_model=4, regions=regions)
    theirs = getattr(ce.CanvasTopology, name)(sorted(regions)).to_attention_mask(
        ce.CanvasLayout(T=T, H=H, W=2, d_model=4, regions={n: r.bounds for n, r in regions.items()})
    )
    np.testing.assert_array_equal(ours.to_attention_mask(layout), theirs.numpy())


@pytest.mark.parametrize("bidirectional", [True, False])
def test_hub_spoke_equals_canvas_engineering(bidirectional):
    bounds = {f"r{i}": (0, T, i, i + 1, 0, 2) for i in range(H)}
    sizes = dict(T=T, H=H, W=2, d_model=4, regions=bounds)
    ours, theirs = (
        topology.hub_spoke("r1", ["r0", "r2"], bidirectional=bidirectional)
        for topology in (CanvasTopology, ce.CanvasTopology)
    )
    np.testing.assert_array_equal(
        ours.to_attention_mask(CanvasLayout(**sizes)),
        theirs.to_attention_mask(ce.CanvasLayout(**sizes)).numpy(),
    )


def test_causal_temporal_does_not_look_ahead():
    message = "temporal_fill 'interpolate' looks ahead: expected hold or drop"
    with pytest.raises(ValueError, match=message):
        CanvasTopology.causal_temporal(["a"], temporal_fill=TemporalFill.INTERPOLATE)
    with pytest.raises(ValueError, match="temporal_fill = 'hld': .*; did you mean 'hold'"):
        CanvasTopology.causal_temporal(["a"], temporal_fill="hld")


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_listed_pairs_are_joined_and_nothing_else(data):
    layout = data.draw(layouts(lengths=True))
    drawn = data.draw(edges(layout, pairs=True))
    for edge in (edge for edge in drawn if edge.pairs is not None):
        expected = np.zeros((layout.num_positions,) * 2)
        for s, d in edge.pairs:
            cells = layout.region_indices_at_t(edge.src, s), layout.region_indices_at_t(edge.dst, d)
            expected[np.ix_(*cells)] = edge.weight
        mask = CanvasTopology((edge,)).to_attention_mask(layout)
        np.testing.assert_allclose(mask, expected, rtol=1e-6)
    # A topology is the union of its edges, by the largest weight.
    parts = [CanvasTopology((edge,)).to_attention_mask(layout) for edge in drawn]
    mask = CanvasTopology(tuple(drawn)).to_attention_mask(layout)
    np.testing.assert_array_equal(mask, np.max([np.zeros_like(mask), *parts], axis=0))


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_edges_that_match_no_frame_are_found_and_left_out(data):
    layout = data.draw(layouts(lengths=True))
    topology = CanvasTopology(tuple(data.draw(edges(layout))))
    matching, meant = [], []
    for edge in topology.connections:
        plain = CanvasTopology((dataclasses.replace(edge, weight=1.0),))
        if plain.to_attention_mask(layout).any():
            matching.append(edge)
        elif edge.weight > 0 and topology.resolve_fn(edge, layout) != "none":
            meant.append(edge)
    assert topology.matching(layout).connections == tuple(matching)
    assert empty_edges(topology, layout) == tuple(meant)
    # And what is read does not depend on them, nor on disabled edges.
    running = [edge for edge in matching if topology.resolve_fn(edge, layout) != "none"]
    np.testing.assert_array_equal(topology.reads(layout), frame_weights(tuple(running), layout) > 0)


@pytest.mark.usefixtures("no_annotation_checks")
def test_two_thousand_edges_with_offsets_take_under_a_tenth_of_a_second():
    regions = {f"r{i}": RegionSpec((0, 13, i, i + 1, 0, 1), period=1 + i % 3) for i in range(13)}
    layout = CanvasLayout(13, 13, 1, d_model=4, regions=regions)
    declared = tuple(
        Connection(f"r{i}", f"r{(i + a) % 13}", t_src=a - 6, t_dst=b - 6)
        for i, a, b in itertools.product(range(13), repeat=3)
    )
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        frame_weights(declared, layout)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.1


def test_equal_topologies_are_one_key():
    made = [CanvasTopology.causal_temporal(["a", "b"]) for _ in range(2)]
    assert made[0] == made[1] and hash(made[0]) == hash(made[1])
    other = CanvasTopology.causal_temporal(["a", "b"], temporal_fill=TemporalFill.DROP)
    assert len({*made, other}) == 2


def test_segment_table_is_small_and_covers_partial_regions():
    layout = CanvasLayout(
        T=3, H=2, W=4, d_model=4,
        regions={
            "text": RegionSpec((0, 1, 1, 2, 0, 4), length=3),
            "video": RegionSpec((0, 3, 0, 1, 0, 4)),
        },
    )  # fmt: skip
    table, cells = CanvasTopology((Connection("video", "text"),)).segment_table(layout)
    np.testing.assert_array_equal(cells, [4, 5, 6, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19])
    np.testing.assert_array_equal(table.segments, [0] * 3 + [1] * 4 + [2] * 4 + [3] * 4)
    expected = np.zeros((15, 15), bool)
    expected[3:, :3] = True
    np.testing.assert_array_equal(table.mask(), expected)


def test_edges_of_kind_none_show_in_the_mask_but_never_run():
    layout = CanvasLayout(
        T=1, H=1, W=2, d_model=4,
        regions={"a": RegionSpec((0, 1, 0, 1, 0, 1), default_attn="none"), "b": (0, 1, 0, 1, 1, 2)},
    )  # fmt: skip
    topology = CanvasTopology(
        (
            Connection("a", "a"),  # by the region's default
            Connection("a", "b", fn="cogvideox"),  # the edge's own kind comes first
            Connection("b", "a", fn="none"),
            Connection("b", "b"),
        )
    )
    theirs = ce_topology(topology)
    assert [topology.resolve_fn(edge, layout) for edge in topology.connections] == [
        theirs.resolve_fn(edge, ce_layout(layout)) for edge in theirs.connections
    ]
    np.testing.assert_array_equal(topology.to_attention_mask(layout), np.ones((2, 2)))
    np.testing.assert_array_equal(topology.segment_table(layout)[0].mask(), [[0, 1], [0, 1]])


def test_kinds_are_those_of_canvas_engineering():
    assert sorted(KINDS) == sorted(ce.ATTENTION_REGISTRY)


def test_bad_edges_are_refused_by_name():
    layout = CanvasLayout(T=1, H=1, W=1, d_model=4, regions={"visual": (0, 1, 0, 1, 0, 1)})
    with pytest.raises(ValueError, match="unknown region 'visul': did you mean 'visual'"):
        CanvasTopology((Connection("visual", "visul", fn="none"),)).segment_table(layout)
    with pytest.raises(ValueError, match="unknown region 'visul': did you mean 'visual'"):
        CanvasTopology((Connection("visul", "visual"),)).to_attention_mask(layout)
    with pytest.raises(ValueError, match="visual -> visual: kind 'gated' cannot be run"):
        CanvasTopology((Connection("visual", "visual", fn="gated"),)).segment_table(layout)
    for method in ("segment_table", "reads"):
        edge = Connection("visual", "visual", fn="gatted")
        with pytest.raises(ValueError, match="unknown kind 'gatted': did you mean 'gated'"):
            getattr(CanvasTopology((edge,)), method)(layout)
    with pytest.raises(ValueError, match="kind 'mamba' is kept in schema files but cannot be run"):
        CanvasTopology((Connection("visual", "visual", fn="mamba"),)).segment_table(layout)
    for weight in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"a -> b: weight {weight}"):
            Connection("a", "b", weight=weight)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"t_src": 0.5, "t_dst": 0}, "t_src 0.5: expected a whole number"),
        ({"t_dst": "0"}, "t_dst '0': expected a whole number"),
        ({"interpolation_order": 1.5}, "interpolation_order 1.5: expected a whole number"),
        ({"interpolation_order": None}, "interpolation_order None: expected a whole number"),
        ({"interpolation_order": 0}, "interpolation_order 0, expected at least 1"),
        (
            {"temporal_fill": "hodl"},
            "temporal_fill = 'hodl': expected one of drop, hold, interpolate; did you mean 'hold'?",
        ),
        ({"pairs": ()}, "pairs (): expected at least one"),
        ({"pairs": ((0, 1), (1, 1), (0, 1))}, "pairs: (0, 1) is given twice"),
        ({"pairs": ((0, 1, 2),)}, "pairs: (0, 1, 2): expected (frame of src, frame of dst)"),
        ({"pairs": ((0, 1.5),)}, "pairs: (0, 1.5): frame 1.5: expected a whole number"),
        ({"pairs": ((0, 1),), "t_src": 0}, "pairs beside t_src = 0, t_dst = None: expected one or"),
    ],
)
@pytest.mark.usefixtures("no_annotation_checks")
def test_wrong_types_and_fills_are_refused_with_their_edge(fields, message):
    with pytest.raises(ValueError, match=re.escape(f"connection a -> b: {message}")):
        Connection("a", "b", **fields)


@pytest.mark.usefixtures("no_annotation_checks")
def test_numpy_offsets_and_names_of_fills_are_taken():
    edge = Connection("a", "b", t_src=np.int64(0), t_dst=np.int32(-1), temporal_fill="drop")
    plain = Connection("a", "b", t_src=0, t_dst=-1, temporal_fill=TemporalFill.DROP)
    assert edge == plain and repr(edge) == repr(plain)
    listed = Connection("a", "b", pairs=[[np.int64(3), 0], (1, np.int32(2))])
    plain = Connection("a", "b", pairs=((1, 2), (3, 0)))
    assert listed == plain and hash(listed) == hash(plain) and repr(listed) == repr(plain)


@pytest.mark.parametrize("pair, name, frame", [((3, 0), "slow", 3), ((1, 4), "fast", 4)])
def test_pairs_with_frames_that_have_no_tokens_are_refused(pair, name, frame):
    regions = {"fast": (0, 4, 0, 1, 0, 1), "slow": RegionSpec((1, 4, 1, 2, 0, 1), length=2)}
    layout = CanvasLayout(5, 2, 1, d_model=4, regions=regions)
    expected = {"slow": "1..2", "fast": "0..3"}[name]
    message = (
        f"connection slow -> fast: pairs: region '{name}' has no tokens in canvas frame {frame}: "
        f"expected {expected}"
    )
    topology = CanvasTopology((Connection("slow", "fast", pairs=((1, 0), pair)),))
    with pytest.raises(ValueError, match=re.escape(message)):
        topology.to_attention_mask(layout)
