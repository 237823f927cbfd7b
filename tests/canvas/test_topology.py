"""Masks against canvas-engineering on random layouts, and the tables that attention runs on."""

import canvas_engineering as ce
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roam_jax.canvas.layout import CanvasLayout, RegionSpec
from roam_jax.canvas.topology import CanvasTopology, Connection, TemporalFill

T, H = 4, 3


@st.composite
def layouts(draw) -> dict[str, RegionSpec]:
    """Up to three regions, one canvas row each, so that they never overlap."""
    regions = {}
    for row in range(draw(st.integers(1, H))):
        t0 = draw(st.integers(0, T - 1))
        bounds = (t0, draw(st.integers(t0 + 1, T)), row, row + 1, 0, draw(st.integers(1, 2)))
        regions[f"r{row}"] = RegionSpec(bounds, period=draw(st.integers(1, 3)))
    return regions


def edges(names) -> st.SearchStrategy:
    offset = st.none() | st.integers(-2, 2)
    return st.lists(
        st.builds(
            Connection,
            src=st.sampled_from(names),
            dst=st.sampled_from(names),
            weight=st.sampled_from([0.0, 0.25, 1.0, 2.0]),
            t_src=offset,
            t_dst=offset,
            temporal_fill=st.sampled_from(list(TemporalFill)),
            interpolation_order=st.integers(1, 3),
        ),
        max_size=5,
    )


def ce_mask(regions: dict[str, RegionSpec], topology: CanvasTopology) -> np.ndarray:
    layout = ce.CanvasLayout(
        T=T, H=H, W=2, d_model=4,
        regions={n: ce.RegionSpec(bounds=r.bounds, period=r.period) for n, r in regions.items()},
    )  # fmt: skip
    connections = [
        ce.Connection(
            src=e.src, dst=e.dst, weight=e.weight, t_src=e.t_src, t_dst=e.t_dst,
            temporal_fill=ce.TemporalFill(e.temporal_fill.value),
            interpolation_order=e.interpolation_order,
        )
        for e in topology.connections
    ]  # fmt: skip
    return ce.CanvasTopology(connections=connections).to_attention_mask(layout).numpy()


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_mask_equals_canvas_engineering(data):
    regions = data.draw(layouts())
    topology = CanvasTopology(tuple(data.draw(edges(sorted(regions)))))
    layout = CanvasLayout(T=T, H=H, W=2, d_model=4, regions=regions)
    np.testing.assert_allclose(
        topology.to_attention_mask(layout), ce_mask(regions, topology), atol=1e-6
    )


@pytest.mark.parametrize("name", ["dense", "isolated", "causal_chain", "causal_temporal"])
def test_constructors_equal_canvas_engineering(name):
    regions = {f"r{i}": RegionSpec((0, T, i, i + 1, 0, 2)) for i in range(H)}
    ours = getattr(CanvasTopology, name)(sorted(regions))
    layout = CanvasLayout(T=T, H=H, W=2, d_model=4, regions=regions)
    theirs = getattr(ce.CanvasTopology, name)(sorted(regions)).to_attention_mask(
        ce.CanvasLayout(T=T, H=H, W=2, d_model=4, regions={n: r.bounds for n, r in regions.items()})
    )
    np.testing.assert_array_equal(ours.to_attention_mask(layout), theirs.numpy())


def test_hub_spoke_reads():
    topology = CanvasTopology.hub_spoke("hub", ["a", "b"], bidirectional=False)
    assert {(e.src, e.dst) for e in topology.connections} == {
        ("hub", "hub"), ("a", "a"), ("b", "b"), ("hub", "a"), ("hub", "b"),
    }  # fmt: skip


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


def test_bad_edges_are_refused_by_name():
    layout = CanvasLayout(T=1, H=1, W=1, d_model=4, regions={"visual": (0, 1, 0, 1, 0, 1)})
    with pytest.raises(ValueError, match="unknown region 'visul': did you mean 'visual'"):
        CanvasTopology((Connection("visual", "visul"),)).segment_table(layout)
    with pytest.raises(ValueError, match="a -> b: weight -1"):
        Connection("a", "b", weight=-1.0)
