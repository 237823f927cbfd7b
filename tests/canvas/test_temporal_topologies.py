"""Topologies in real time against their definitions, cell by cell; none of them sees the future."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roam_jax.canvas.layout import CanvasLayout, RegionSpec
from roam_jax.canvas.temporal_topologies import causal, local_window
from roam_jax.canvas.topology import CanvasTopology, TemporalFill, empty_edges
from tests.canvas.canvases import allowed, influences, layouts, places

CAUSAL_FILLS = [TemporalFill.HOLD, TemporalFill.DROP]


def taking_part(data, layout: CanvasLayout) -> list[str] | None:
    names = st.lists(st.sampled_from(list(layout.regions)), min_size=1, unique=True)
    return data.draw(st.none() | names)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_causal_reads_the_window_and_holds_what_is_slower(data):
    layout = data.draw(layouts(lengths=True))
    regions = taking_part(data, layout)
    window = data.draw(st.none() | st.integers(0, 5))
    fill = data.draw(st.sampled_from(CAUSAL_FILLS))
    topology = causal(layout, regions=regions, window=window, temporal_fill=fill)
    assert not empty_edges(topology, layout) and topology.matching(layout) == topology

    names, real = places(layout)
    expected = np.zeros((len(names),) * 2, bool)
    for q, reader in enumerate(names):
        for read in layout.regions if regions is None else regions:
            past = {r for r, n in zip(real, names, strict=True) if n == read and r <= real[q]}
            wanted = {r for r in past if window is None or r >= real[q] - window}
            if not wanted and fill == TemporalFill.HOLD and past:
                wanted = {max(past)}
            if regions is None or reader in regions:
                expected[q] |= (names == read) & np.isin(real, list(wanted))
    np.testing.assert_array_equal(allowed(topology, layout), expected)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_no_chain_of_reads_leads_from_the_future_to_the_past(data):
    layout = data.draw(layouts(lengths=True))
    fill = data.draw(st.sampled_from(CAUSAL_FILLS))
    window = data.draw(st.none() | st.integers(0, 5))
    _, real = places(layout)
    later = real[None, :] > real[:, None]
    for topology in (
        causal(layout, window=window, temporal_fill=fill),
        CanvasTopology.causal_temporal(list(layout.regions), temporal_fill=fill),
    ):
        assert not influences(allowed(topology, layout), len(real))[later].any()


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_window_reads_what_is_near_both_ways(data):
    layout = data.draw(layouts(lengths=True))
    regions, frames = taking_part(data, layout), data.draw(st.integers(0, 5))
    topology = local_window(layout, regions=regions, frames=frames)
    assert not empty_edges(topology, layout) and topology.matching(layout) == topology
    names, real = places(layout)
    inside = np.ones(len(names), bool) if regions is None else np.isin(names, regions)
    distance = np.abs(real[:, None] - real[None, :])
    expected = (distance <= frames) & inside[:, None] & inside[None, :]
    reads = allowed(topology, layout)
    np.testing.assert_array_equal(reads, expected)
    # Influence travels `frames` real frames with an application.
    assert not influences(reads, 2)[distance > 2 * frames].any()


def test_edges_that_join_all_frames_are_plain():
    """So that their schema files mean the same in canvas-engineering."""
    regions = {"a": (0, 1, 0, 1, 0, 2), "b": RegionSpec((0, 1, 1, 2, 0, 2), length=1)}
    layout = CanvasLayout(1, 2, 2, d_model=4, regions=regions)
    assert causal(layout) == CanvasTopology.dense(["a", "b"]) == local_window(layout, frames=0)


LAYOUT = CanvasLayout(2, 1, 1, d_model=4, regions={"video": (0, 2, 0, 1, 0, 1)})


@pytest.mark.parametrize(
    "make, message",
    [
        (
            lambda: causal(LAYOUT, temporal_fill=TemporalFill.INTERPOLATE),
            "temporal_fill 'interpolate' looks ahead: expected hold or drop",
        ),
        (
            lambda: causal(LAYOUT, temporal_fill="hld"),
            "temporal_fill = 'hld': expected one of drop, hold, interpolate; did you mean 'hold'",
        ),
        (lambda: causal(LAYOUT, window=-1), "window -1: expected at least 0"),
        (lambda: causal(LAYOUT, regions="video"), "regions 'video': expected a list of names"),
        (lambda: causal(LAYOUT, regions=[]), "no regions: expected at least one"),
        (
            lambda: causal(LAYOUT, regions=["vidoe"]),
            "unknown region 'vidoe': did you mean 'video'",
        ),
        (
            lambda: local_window(LAYOUT, regions=["video", "video"], frames=1),
            "region 'video' is named twice",
        ),
        (lambda: local_window(LAYOUT, frames=-2), "frames -2: expected at least 0"),
    ],
)
def test_what_is_no_such_topology_is_refused_by_name(make, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make()
