"""Pairs against the mask itself; when a graft equals its backbone."""

import numpy as np
import pytest

from roam_jax.canvas.layout import CanvasLayout, RegionSpec
from roam_jax.canvas.topology import CanvasTopology, Connection, TemporalFill
from roam_jax.cogvideox.graft_canvas import (
    BACKBONE_REGIONS,
    NewRegions,
    graft_layout,
    graft_topology,
)
from roam_jax.contracts import TimeSpec
from roam_jax.evaluate.canvas_cost import (
    allowed_pairs,
    changes_to_backbone,
    describe_canvas,
    describe_edges,
    describe_regions,
    describe_topology,
)
from tests.cogvideox.graft_models import (
    backbone_output,
    make_graft,
    make_inputs,
    make_params,
    run,
)

LAYOUT = CanvasLayout(
    T=4,
    H=4,
    W=3,
    d_model=8,
    t_current=2,
    regions={
        "video": RegionSpec((0, 4, 0, 2, 0, 3), loss_weight=2.0),
        "text": RegionSpec((0, 1, 2, 4, 0, 3), is_output=False, length=5),
        "thought": RegionSpec((1, 3, 3, 4, 0, 2), is_output=False, period=2),
    },
)
TOPOLOGY = CanvasTopology(
    (
        Connection("video", "video", t_src=0, t_dst=-1),
        Connection("video", "text", weight=0.5),
        Connection("thought", "video", t_src=0, t_dst=0, temporal_fill=TemporalFill.DROP),
        Connection("thought", "thought"),
    )
)


def pairs_of(*edges: Connection) -> int:
    return int(np.count_nonzero(CanvasTopology(edges).to_attention_mask(LAYOUT)))


def test_pairs_are_those_of_the_mask():
    assert allowed_pairs(LAYOUT, TOPOLOGY) == pairs_of(*TOPOLOGY.connections)
    edges = describe_edges(LAYOUT, TOPOLOGY)
    assert [edge["pairs"] for edge in edges] == [pairs_of(e) for e in TOPOLOGY.connections]
    cells = 24 + 5 + 4
    assert edges[1]["pairs"] == 24 * 5 and edges[1]["share"] == 120 / cells**2
    assert [edge["fill"] for edge in edges] == ["hold", None, "drop", None]
    assert edges[1]["weight"] == 0.5 and edges[0]["t_dst"] == -1
    assert [edge["times"] for edge in edges] == [
        "t reads t-1", "all frames", "t reads t", "all frames",
    ]  # fmt: skip
    whole = describe_topology(LAYOUT, TOPOLOGY)
    assert whole["edges"] == edges and whole["share"] == whole["pairs"] / cells**2
    assert describe_canvas(LAYOUT)["cells"] == cells


def test_edges_of_any_kind_are_counted_and_disabled_ones_join_nothing():
    edges = (
        Connection("video", "text", fn="gated"),
        Connection("text", "text", fn="mamba"),
        Connection("video", "video", fn="none"),
        Connection("thought", "video", pairs=((1, 0), (1, 2), (2, 3))),
        Connection("video", "text", weight=0.0),
    )
    described = describe_edges(LAYOUT, CanvasTopology(edges))
    assert [edge["pairs"] for edge in described] == [24 * 5, 25, 0, 3 * 2 * 6, 0]
    assert [edge["kind"] for edge in described[:3]] == ["gated", "mamba", "none"]
    assert [edge["frame_pairs"] for edge in described] == [None, None, None, 3, None]
    assert allowed_pairs(LAYOUT, CanvasTopology(edges)) == 120 + 25 + 36


def test_regions():
    video, text, thought = describe_regions(LAYOUT)
    assert video["cells"] == 24 and video["predicted_frames"] == [2, 3]
    assert video["loss_weight"] == 2.0
    assert text["cells"] == 5 and text["predicted_frames"] == [] and text["loss_weight"] == 0
    assert thought["real_frames"] == [2, 4] and thought["bounds"] == [1, 3, 3, 4, 0, 2]


@pytest.fixture
def layout():
    return graft_layout(
        time=TimeSpec(9, 2),
        rows=2,
        columns=2,
        width=8,
        text_length=3,
        new=NewRegions(proprio=True, thought_cells=2),
    )


def changes(layout, topology, gate="identity", rounds=3):
    return changes_to_backbone(
        layout, topology, gate=gate, rounds=rounds, backbone=BACKBONE_REGIONS
    )


def test_the_default_graft_changes_nothing(layout):
    assert changes(layout, graft_topology(layout)) == []


def test_what_changes_the_backbone_is_named(layout):
    assert changes(layout, graft_topology(layout), gate="sigmoid") == [
        "loop.gate = sigmoid with loop.rounds = 3 does not start at the backbone"
    ]
    new = ", ".join(name for name in layout.regions if name not in BACKBONE_REGIONS)
    assert changes(layout, graft_topology(layout, backbone_reads_new=0.01)) == [
        f"text reads {new} (weight up to 0.01)",
        f"visual reads {new} (weight up to 0.01)",
    ]
    gated = [*graft_topology(layout).connections, Connection("visual", "thought", fn="gated")]
    assert changes(layout, CanvasTopology(tuple(gated))) == ["visual reads thought by gated"]
    disabled = [*gated[:-1], Connection("visual", "thought", fn="none")]
    assert changes(layout, CanvasTopology(tuple(disabled))) == []
    causal = [e for e in graft_topology(layout).connections if (e.src, e.dst) != ("visual",) * 2]
    causal.append(Connection("visual", "visual", t_src=0, t_dst=0))
    assert changes(layout, CanvasTopology(tuple(causal))) == [
        "visual does not read all of visual with weight 1"
    ]


@pytest.mark.parametrize(
    "gate, rounds, reads_new, equal",
    [
        ("identity", 2, 0.0, True),
        ("identity", 2, 0.1, False),
        ("off", 1, 0.0, True),
        ("off", 2, 0.0, False),
        ("sigmoid", 1, 0.0, False),
    ],
)
def test_the_verdict_is_that_of_the_models_themselves(gate, rounds, reads_new, equal):
    model = make_graft(gate=gate, rounds=rounds, reads_new=reads_new)
    inputs = make_inputs(model)
    params = make_params(model, inputs)
    video = run(model, params, inputs, rounds=rounds)[0]["velocity"]
    same = np.allclose(video, backbone_output(params, inputs), rtol=1e-4, atol=1e-5)
    assert same == equal
    assert (changes(model.layout, model.topology, gate=gate, rounds=rounds) == []) == equal
