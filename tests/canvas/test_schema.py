"""Schema files through canvas-engineering and back."""

import dataclasses
import pathlib
import re

import canvas_engineering as ce
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roam_jax.canvas.layout import CanvasLayout, RegionSpec
from roam_jax.canvas.schema import CanvasSchema
from roam_jax.canvas.topology import CanvasTopology, Connection, TemporalFill
from tests.canvas.canvases import (
    EDGE_EXTRAS,
    FILE,
    REGION_EXTRAS,
    ce_layout,
    ce_topology,
    edges,
    edited,
    layouts,
    some_of,
)

METADATA = st.dictionaries(
    st.sampled_from(["model", "data", "note"]), st.text(max_size=5) | st.lists(st.integers())
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("schema")


def draw_topology(data, layout: CanvasLayout, **options) -> CanvasTopology | None:
    drawn = data.draw(st.none() | edges(layout, **options))
    return None if drawn is None else CanvasTopology(tuple(drawn))


def draw_extras(data, layout: CanvasLayout, topology: CanvasTopology | None):
    """What canvas-engineering declares of each region and edge and nothing here reads."""
    count = 0 if topology is None else len(topology.connections)
    regions = {name: data.draw(some_of(REGION_EXTRAS)) for name in layout.regions}
    return regions, [data.draw(some_of(EDGE_EXTRAS)) for _ in range(count)]


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_a_file_of_canvas_engineering_is_read_and_given_back_byte_for_byte(folder, data):
    layout = data.draw(layouts())
    topology = draw_topology(data, layout)
    region_extras, edge_extras = draw_extras(data, layout, topology)
    theirs = ce.CanvasSchema(
        layout=ce_layout(layout, region_extras),
        topology=None if topology is None else ce_topology(topology, edge_extras),
        metadata=data.draw(METADATA),
    )
    theirs.to_json(folder / "theirs.json")
    # Their format drops the fills, so the meaning of the file is what they read back.
    theirs = ce.CanvasSchema.from_json(folder / "theirs.json")

    ours = CanvasSchema.from_json(folder / "theirs.json")
    np.testing.assert_array_equal(
        ours.layout.loss_weight_mask(), theirs.layout.loss_weight_mask().numpy()
    )
    np.testing.assert_array_equal(ours.layout.output_mask(), theirs.layout.output_mask())
    assert (ours.topology is None) == (theirs.topology is None)
    if topology is not None:
        np.testing.assert_allclose(
            ours.topology.to_attention_mask(ours.layout),
            theirs.topology.to_attention_mask(theirs.layout).numpy(),
            rtol=1e-6,
        )
        assert [
            ours.topology.resolve_fn(edge, ours.layout) for edge in ours.topology.connections
        ] == [
            theirs.topology.resolve_fn(edge, theirs.layout) for edge in theirs.topology.connections
        ]

    ours.to_json(folder / "ours.json")
    assert (folder / "ours.json").read_bytes() == (folder / "theirs.json").read_bytes()


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_our_schema_comes_back_whole_through_canvas_engineering(folder, data):
    layout = data.draw(layouts(lengths=True))
    topology = draw_topology(data, layout, pairs=True)
    region_extras, edge_extras = draw_extras(data, layout, topology)
    ours = CanvasSchema(
        layout=layout,
        topology=topology,
        metadata=data.draw(METADATA),
        region_extras={name: extras for name, extras in region_extras.items() if extras},
        edge_extras=tuple(edge_extras) if any(edge_extras) else (),
    )
    ours.to_json(folder / "first.json", for_ce="lossy")
    ce.CanvasSchema.from_json(folder / "first.json").to_json(folder / "second.json")
    back = CanvasSchema.from_json(folder / "second.json")
    assert back == ours
    assert list(back.layout.regions) == list(ours.layout.regions)
    back.to_json(folder / "third.json", for_ce="lossy")
    first, second, third = (
        (folder / f"{n}.json").read_bytes() for n in ("first", "second", "third")
    )
    assert first == second == third


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_exactly_the_fills_and_pairs_that_change_what_an_edge_reads_are_refused(folder, data):
    layout = data.draw(layouts())
    drawn = data.draw(edges(layout, pairs=True))
    single = [CanvasSchema(layout, CanvasTopology((edge,))) for edge in drawn]
    for schema in single:
        schema.to_json(folder / "single.json", for_ce="lossy")
        read = ce.CanvasSchema.from_json(folder / "single.json")
        theirs = read.topology.to_attention_mask(read.layout).numpy()
        ours = schema.topology.to_attention_mask(layout)
        assert bool(schema.changed_for_ce()) != np.allclose(ours, theirs, rtol=1e-6)
    whole = CanvasSchema(layout, CanvasTopology(tuple(drawn)))
    assert len(whole.changed_for_ce()) == sum(len(schema.changed_for_ce()) for schema in single)


def test_a_schema_that_canvas_engineering_would_read_otherwise_needs_lossy(tmp_path):
    layout = CanvasLayout(
        4, 2, 4, d_model=8,
        regions={
            "video": RegionSpec((0, 4, 0, 1, 0, 4)),
            "slow": RegionSpec((0, 2, 1, 2, 0, 3), period=3, length=5),
            "text": RegionSpec((2, 4, 1, 2, 0, 4), length=8),
        },
    )  # fmt: skip
    topology = CanvasTopology(
        (
            # Reads all frames, so that the fill says nothing.
            Connection("video", "text", temporal_fill=TemporalFill.DROP),
            Connection("video", "slow", t_src=0, t_dst=0, temporal_fill=TemporalFill.DROP),
            Connection(
                "video", "slow", t_src=0, t_dst=-1,
                temporal_fill=TemporalFill.INTERPOLATE, interpolation_order=2,
            ),
            Connection("slow", "text", pairs=((0, 2), (0, 3), (1, 2), (1, 3))),  # all there are
            Connection("slow", "video", pairs=((1, 3), (0, 0))),
        )
    )  # fmt: skip
    schema = CanvasSchema(layout, topology)
    path = tmp_path / "canvas.json"
    changed = (
        "regions.slow.length = 5 (read as 6); "
        "topology[1] video -> slow: temporal_fill = drop (read as hold); "
        "topology[2] video -> slow: temporal_fill = interpolate, interpolation_order = 2 "
        "(read as hold); topology[4] slow -> video: 2 pairs of frames (read as all)"
    )
    with pytest.raises(
        ValueError, match=re.escape(f"{path}: canvas-engineering would read")
    ) as info:
        schema.to_json(path)
    assert changed in str(info.value) and "for_ce='lossy'" in str(info.value)
    assert not path.exists()
    with pytest.raises(ValueError, match="for_ce = 'losy': expected None or 'lossy'"):
        schema.to_json(path, for_ce="losy")

    schema.to_json(path, for_ce="lossy")
    assert CanvasSchema.from_json(path) == schema
    theirs = ce.CanvasSchema.from_json(path)
    assert theirs.layout.region_numel("slow") == 6
    assert {edge.temporal_fill for edge in theirs.topology.connections} == {ce.TemporalFill.HOLD}


def test_the_page_does_what_it_says(tmp_path, monkeypatch):
    page = pathlib.Path(__file__).parents[2] / "docs" / "canvas.md"
    declared, pictures, theirs, ours = re.findall(r"```python\n(.*?)```", page.read_text(), re.S)
    monkeypatch.chdir(tmp_path)
    exec(compile(declared + pictures, page.name, "exec"), {})
    for picture in tmp_path.glob("*.png"):
        assert (page.parent / "images" / picture.name).is_file()
    assert len(list(tmp_path.glob("*.png"))) == 2
    exec(compile(theirs, page.name, "exec"), {})
    before = pathlib.Path("robot.json").read_bytes()
    names: dict = {}
    exec(compile(ours, page.name, "exec"), names)
    assert pathlib.Path("robot.json").read_bytes() == before
    assert names["schema"].region_extras == {"visual": {"semantic_type": "RGB video, 5 Hz"}}
    assert names["smooth"].changed_for_ce() == [
        "topology[0] action -> visual: temporal_fill = interpolate (read as hold)"
    ]
    with pytest.raises(ValueError, match="smooth.json: canvas-engineering would read"):
        names["smooth"].to_json("smooth.json")
    assert CanvasSchema.from_json("smooth.json") == names["smooth"]


def test_disabled_edges_survive_and_stay_disabled(tmp_path):
    disabled = edited("topology/1/fn", "none")
    schema = CanvasSchema.from_dict(disabled)
    assert schema.to_dict() == disabled
    schema.to_json(tmp_path / "canvas.json")
    theirs = ce.CanvasSchema.from_json(tmp_path / "canvas.json")
    assert theirs.topology.attention_ops(theirs.layout)[1][-1] == "none"
    table, cells = schema.topology.segment_table(schema.layout)
    action = np.isin(cells, schema.layout.region_indices("action"))
    assert not table.mask()[action].any()
    assert schema.topology.to_attention_mask(schema.layout)[cells[action]].any()


def test_the_old_form_of_a_layout_is_read_and_written_anew():
    old = edited("layout", {"T": 4, "H": 4, "W": 4, "d_model": 8, "t_current": 1})
    assert CanvasSchema.from_dict(old).to_dict() == FILE


def test_metadata_may_hold_numpy_numbers_but_no_arrays(tmp_path):
    schema = CanvasSchema.from_dict(FILE)
    first = schema.layout.region_indices("action")[0]
    dataclasses.replace(schema, metadata={"first": first}).to_json(tmp_path / "canvas.json")
    assert CanvasSchema.from_json(tmp_path / "canvas.json").metadata == {"first": 12}
    with pytest.raises(TypeError, match=r"array\(\[1\]\) cannot be written: expected JSON values"):
        dataclasses.replace(schema, metadata={"a": np.array([1])}).to_json(tmp_path / "other.json")
    assert not (tmp_path / "other.json").exists()


def test_edges_that_another_program_moved_are_refused_not_misread(tmp_path):
    layout = CanvasSchema.from_dict(FILE).layout
    topology = CanvasTopology.causal_temporal(["action"], temporal_fill=TemporalFill.DROP)
    CanvasSchema(layout, topology).to_json(tmp_path / "canvas.json", for_ce="lossy")
    theirs = ce.CanvasSchema.from_json(tmp_path / "canvas.json")
    del theirs.topology.connections[0]
    theirs.to_json(tmp_path / "canvas.json")
    with pytest.raises(
        ValueError, match=r"metadata.roam.topology\[0\]: topology\[0\] is .*t_dst': -1"
    ):
        CanvasSchema.from_json(tmp_path / "canvas.json")
    theirs.topology.connections.clear()
    theirs.to_json(tmp_path / "canvas.json")
    with pytest.raises(ValueError, match=r"topology\[0\] is missing: expected .*'src': 'action'"):
        CanvasSchema.from_json(tmp_path / "canvas.json")


@pytest.mark.parametrize("other", [{"weight": 0.5}, {"fn": "none"}])
def test_edges_that_differ_in_weight_or_kind_alone_do_not_swap_fills(tmp_path, other):
    plain = Connection("action", "visual", t_src=0, t_dst=-1)
    dropping = dataclasses.replace(plain, temporal_fill=TemporalFill.DROP, **other)
    schema = CanvasSchema(CanvasSchema.from_dict(FILE).layout, CanvasTopology((plain, dropping)))
    path = tmp_path / "canvas.json"
    schema.to_json(path, for_ce="lossy")
    assert CanvasSchema.from_json(path) == schema
    theirs = ce.CanvasSchema.from_json(path)
    theirs.topology.connections.reverse()
    theirs.to_json(path)
    with pytest.raises(ValueError, match=r"metadata.roam.topology\[0\]: topology\[1\] is "):
        CanvasSchema.from_json(path)


def test_a_length_holds_for_the_box_that_it_was_written_for(tmp_path):
    regions = {"text": RegionSpec((0, 1, 0, 2, 0, 4), length=5)}
    path = tmp_path / "canvas.json"
    CanvasSchema(CanvasLayout(2, 2, 4, d_model=8, regions=regions)).to_json(path, for_ce="lossy")
    theirs = ce.CanvasSchema.from_json(path)
    theirs.layout.regions["text"] = (0, 2, 0, 2, 0, 4)
    theirs.to_json(path)
    with pytest.raises(ValueError, match=r"regions.text: metadata.roam: length 5 was written for"):
        CanvasSchema.from_json(path)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"version": "0.9"}, "schema_version '0.9' is newer"),
        ({"metadata": {"roam": {}}}, "metadata.roam is written by this package"),
        ({"topology": CanvasTopology.dense(["visul"])}, "unknown region 'visul': did you mean"),
        (
            {"topology": CanvasTopology((Connection("action", "visual", pairs=((2, 0),)),))},
            "topology[0] action -> visual: connection action -> visual: pairs: region 'action' has "
            "no tokens in canvas frame 2: expected 0..1",
        ),
        ({"region_extras": {"visul": {}}}, "unknown region 'visul': did you mean 'visual'?"),
        ({"region_extras": {"visual": {"carier": 1}}}, "region_extras['visual']: unknown field"),
        ({"edge_extras": ({},)}, "1 edge_extras for 2 connections"),
        ({"edge_extras": ({}, {"weight": 1})}, "edge_extras[1]: unknown field 'weight'"),
    ],
)
def test_schemas_that_no_file_could_hold_are_refused(changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        dataclasses.replace(CanvasSchema.from_dict(FILE), **changes)
