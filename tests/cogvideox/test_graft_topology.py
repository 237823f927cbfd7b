"""Topologies of the study on a graft: who reads whom, and what stays the backbone's."""

import dataclasses

import numpy as np
import pytest

from roam_jax.canvas import topologies
from roam_jax.canvas.schema import CanvasSchema
from roam_jax.canvas.topology import CanvasTopology, Connection, segment_sizes
from roam_jax.cogvideox.graft_canvas import BACKBONE_REGIONS, graft_topology
from roam_jax.cogvideox.graft_topology import KINDS, TopologyOptions, make_topology
from tests.cogvideox.diffusers_models import relative_error
from tests.cogvideox.graft_models import (
    ALL_REGIONS,
    VIEWS,
    backbone_output,
    make_graft,
    make_inputs,
    make_params,
    run,
)

LAYOUT = make_graft(regions={**ALL_REGIONS, **VIEWS}).layout
# A graft has no body of joints; a schema has a file.
NAMED = [kind for kind in KINDS if kind not in ("kinematic_tree", "schema")]


def reads(topology: CanvasTopology) -> np.ndarray:
    """(segments, segments) bool."""
    return topology.reads(LAYOUT)


def of_backbone() -> np.ndarray:
    return np.array(
        [name in BACKBONE_REGIONS for name, spec in LAYOUT.regions.items() for _ in spec.frames]
    )


def test_the_default_is_the_dense_graft():
    assert make_topology(LAYOUT, TopologyOptions()) == graft_topology(LAYOUT)
    options = TopologyOptions(backbone_reads_new=0.5)
    assert make_topology(LAYOUT, options) == graft_topology(LAYOUT, backbone_reads_new=0.5)


@pytest.mark.parametrize("kind", NAMED)
def test_the_backbone_reads_itself_alone_unless_told_otherwise(kind):
    own = of_backbone()
    found = reads(make_topology(LAYOUT, TopologyOptions(kind)))
    assert found[np.ix_(own, own)].all()
    assert not found[np.ix_(own, ~own)].any()


@pytest.mark.parametrize("kind", NAMED)
def test_new_regions_read_what_the_kind_declares(kind):
    """With backbone = declared and weight 1, nothing but the kind is left."""
    if kind == "thalamic_relay":
        pytest.skip("the backbone cannot read through a gate: refused below")
    if kind == "random_matched":
        pytest.skip("drawn for what the kind governs: tested below")
    options = TopologyOptions(kind, backbone="declared", backbone_reads_new=1.0)
    whole = reads(make_topology(LAYOUT, options))
    own = of_backbone()
    new = reads(make_topology(LAYOUT, TopologyOptions(kind)))[~own]
    np.testing.assert_array_equal(new, whole[~own])


def test_streams_meet_in_thought_alone():
    own = of_backbone()
    found = reads(make_topology(LAYOUT, TopologyOptions("central_thought")))
    owner = np.array([name for name, spec in LAYOUT.regions.items() for _ in spec.frames])
    action, thought = np.isin(owner, ["past_action", "future_action"]), owner == "thought"
    np.testing.assert_array_equal(found[action].all(axis=0), action | thought)
    np.testing.assert_array_equal(found[action].any(axis=0), action | thought)
    assert found[thought].all() and not found[own][:, thought].any()


@pytest.mark.parametrize("reads_new", [0.0, 0.5])
@pytest.mark.parametrize("backbone", ["own", "declared"])
@pytest.mark.parametrize("matches", ["central_thought", "causal"])
def test_the_control_allows_as_many_pairs_as_what_runs_of_its_match(matches, backbone, reads_new):
    sizes, new = segment_sizes(LAYOUT), ~of_backbone()
    options = {"backbone": backbone, "backbone_reads_new": reads_new}
    matched = reads(make_topology(LAYOUT, TopologyOptions(matches, **options)))
    governed = np.ones_like(matched)
    governed[np.ix_(~new, ~new)] = backbone == "declared"
    governed[np.ix_(~new, new)] = reads_new > 0
    expected = sizes @ (matched & governed) @ sizes
    for seed in range(3):
        control = TopologyOptions("random_matched", matches=matches, seed=seed, **options)
        found = reads(make_topology(LAYOUT, control))
        assert abs(sizes @ (found & governed) @ sizes - expected) <= 0.01 * expected
        np.testing.assert_array_equal((found & ~governed), (matched & ~governed))
        assert (found != matched)[governed].mean() > 0.1


def test_declared_causal_time_governs_the_backbone_too():
    options = TopologyOptions("causal", backbone="declared", backbone_reads_new=1.0, window=0)
    assert make_topology(LAYOUT, options).connections == topologies.causal(LAYOUT).connections


def test_edges_of_a_schema_file(tmp_path):
    edges = CanvasTopology((Connection("future_action", "visual", t_src=0, t_dst=-1),))
    spec = dataclasses.replace(LAYOUT.region_spec("future_action"), default_attn="gated")
    layout = dataclasses.replace(LAYOUT, regions={**LAYOUT.regions, "future_action": spec})
    CanvasSchema(layout, edges).to_json(tmp_path / "edges.json", for_ce="lossy")
    options = TopologyOptions("schema", schema=str(tmp_path / "edges.json"))
    made = make_topology(LAYOUT, options).connections
    assert made[-1] == dataclasses.replace(edges.connections[0], fn="gated")
    assert len(made) == 1 + len(BACKBONE_REGIONS) ** 2


@pytest.mark.parametrize(
    "kind, config",
    [
        ("central_thought", {"geometry": "relative"}),
        ("thalamic_relay", {"geometry": "rotary"}),
        ("random_matched", {"sharpening": "cosine", "final_inverse_temperature": 4.0}),
    ],
)
def test_kinds_geometry_and_sharpening_start_at_the_backbone(kind, config):
    model = make_graft(regions={**ALL_REGIONS, **VIEWS}, **config)
    model = dataclasses.replace(model, topology=make_topology(LAYOUT, TopologyOptions(kind)))
    inputs = make_inputs(model)
    params = make_params(model, inputs)
    learned = params["blocks"]["attn1"].pop("geometry", None)
    if learned is not None:
        params["blocks"]["attn1"]["geometry"] = {n: 0 * x for n, x in learned.items()}
    outputs, _ = run(model, params, inputs, rounds=3)
    assert relative_error(outputs["velocity"], backbone_output(own(params), inputs)) <= 1e-6


def own(params):
    """Without what stands beside the backbone's own attention."""
    attention = params["blocks"]["attn1"]
    kept = {n: x for n, x in attention.items() if n not in ("geometry", "edges")}
    return {**params, "blocks": {**params["blocks"], "attn1": kept}}


def test_bad_options_are_refused_by_key():
    def refused(message, **options):
        with pytest.raises(ValueError, match=message):
            make_topology(LAYOUT, TopologyOptions(**options))

    refused(
        "topology.kind = 'central_thougt'.*did you mean 'central_thought'", kind="central_thougt"
    )
    refused("topology.backbone = 'theirs'", backbone="theirs")
    refused("topology.backbone_reads_new = -1", backbone_reads_new=-1)
    refused("topology.window = -1", kind="causal", window=-1)
    refused("topology.schema = ''", kind="schema")
    refused("topology.schema = 'x.json'", schema="x.json")
    refused("looks ahead|interpolate", kind="causal", temporal_fill="interpolate")
    refused("kind 'gated'.*softmax attention alone", kind="thalamic_relay", backbone_reads_new=0.1)
    for matches in ("random_matched", "schema"):
        refused(f"topology.matches = '{matches}'", kind="random_matched", matches=matches)


def test_a_kind_without_its_thought_cells_is_refused():
    layout = make_graft().layout
    for kind in ("hub_spoke", "central_thought", "cortical_hierarchy", "thalamic_relay"):
        with pytest.raises(ValueError, match=f"{kind}.*canvas.thought_cells > 0"):
            make_topology(layout, TopologyOptions(kind))


def test_agents_are_the_views_and_a_body_whatever_the_cameras_names():
    views = {"cameras": ("body", "text"), "camera_weight": 1.0}
    layout = make_graft(regions=views).layout
    made = make_topology(layout, TopologyOptions("multi_agent")).connections
    read = {src: {edge.dst for edge in made if edge.src == src} for src in layout.regions}
    assert read["future_action"] == set(layout.regions)
    assert read["future_body"] == read["observed_body"] == {"observed_body", "future_body"}
    with pytest.raises(ValueError, match="multi_agent.*needs a body"):
        layout = make_graft(decoder="pooled", regions={"cameras": ("wrist",)}).layout
        make_topology(layout, TopologyOptions("multi_agent"))
