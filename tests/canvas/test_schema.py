"""Schema files through canvas-engineering and back, and what is refused of them."""

import copy
import dataclasses
import json
import os
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
    REGION_EXTRAS,
    ce_layout,
    ce_topology,
    edges,
    layouts,
    some_of,
)

METADATA = st.dictionaries(
    st.sampled_from(["model", "data", "note"]), st.text(max_size=5) | st.lists(st.integers())
)
FILE = {
    "schema_version": "0.2.0",
    "layout": {"T": 4, "spatial_shape": [4, 4], "d_model": 8, "t_current": 1},
    "regions": {
        "visual": {"bounds": [0, 4, 0, 3, 0, 4]},
        "action": {"bounds": [0, 2, 3, 4, 0, 4], "period": 2, "carrier": "diffusive"},
    },
    "topology": [
        {"src": "visual", "dst": "visual"},
        {"src": "action", "dst": "visual", "t_src": 0, "t_dst": -1},
    ],
    "metadata": {"model": "demo"},
}
NOTE = {"index": 1, "src": "action", "dst": "visual", "t_src": 0, "t_dst": -1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("schema")


def draw_topology(data, layout: CanvasLayout) -> CanvasTopology | None:
    drawn = data.draw(st.none() | edges(layout))
    return None if drawn is None else CanvasTopology(tuple(drawn))


def draw_extras(data, layout: CanvasLayout, topology: CanvasTopology | None):
    """What canvas-engineering declares of each region and edge and nothing here reads."""
    count = 0 if topology is None else len(topology.connections)
    regions = {name: data.draw(some_of(REGION_EXTRAS)) for name in layout.regions}
    return regions, [data.draw(some_of(EDGE_EXTRAS)) for _ in range(count)]


def edited(path: str, value) -> dict:
    """`FILE` with one value changed, or taken out by None."""
    made = copy.deepcopy(FILE)
    *parents, last = [int(name) if name.isdigit() else name for name in path.split("/")]
    target = made
    for name in parents:
        target = target[name]
    if value is None:
        del target[last]
    else:
        target[last] = value
    return made


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
    topology = draw_topology(data, layout)
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
def test_exactly_the_fills_that_change_what_an_edge_reads_are_refused(folder, data):
    layout = data.draw(layouts())
    drawn = data.draw(edges(layout))
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
        )
    )  # fmt: skip
    schema = CanvasSchema(layout, topology)
    path = tmp_path / "canvas.json"
    changed = (
        "regions.slow.length = 5 (read as 6); "
        "topology[1] video -> slow: temporal_fill = drop (read as hold); "
        "topology[2] video -> slow: temporal_fill = interpolate, interpolation_order = 2 "
        "(read as hold)"
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
    theirs, ours = re.findall(r"```python\n(.*?)```", page.read_text(), re.S)[-2:]
    monkeypatch.chdir(tmp_path)
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


@pytest.mark.parametrize(
    "version, message",
    [
        ("0.3.0", "schema_version '0.3.0' is newer than this package reads: expected 0.2 or older"),
        ("1.0", "schema_version '1.0' is newer"),
        ("two", "schema_version 'two': expected text such as '0.2.0'"),
        (2, "schema_version 2: expected text"),
    ],
)
def test_newer_and_broken_versions_are_refused_before_their_fields(version, message):
    newer = edited("schema_version", version) | {"a field of the future": 1}
    with pytest.raises(ValueError, match=re.escape(message)):
        CanvasSchema.from_dict(newer)


@pytest.mark.parametrize("version", ["0.2.7", "0.2", "0.1.0", None])
def test_older_versions_patches_and_none_at_all_are_read(version):
    schema = CanvasSchema.from_dict(edited("schema_version", version))
    assert schema.version == (version or "0.2.0")


@pytest.mark.parametrize(
    "path, value, message",
    [
        # Unknown names, at every level.
        ("layuot", {}, "unknown field 'layuot': did you mean 'layout'?"),
        ("layout/spatial_shpae", [4, 4], "layout: unknown field 'spatial_shpae': did you mean"),
        ("regions/visual/perod", 2, "visual: unknown field 'perod': did you mean 'period'?"),
        ("topology/1/wieght", 2, "topology[1]: unknown field 'wieght': did you mean 'weight'?"),
        ("topology/1/dst", "visul", "topology[1] action -> visul: unknown region 'visul': did you"),
        ("metadata/roam", {"region": {}}, "metadata.roam: unknown field 'region': did you mean"),
        ("metadata/roam", {"regions": {"acton": {}}}, "unknown region 'acton': did you"),
        (
            "metadata/roam",
            {"regions": {"action": {"lenght": 1}}},
            "regions.action: metadata.roam: unknown field 'lenght'",
        ),
        ("metadata/roam", {"topology": [NOTE | {"fill": "drop"}]}, "[0]: unknown field 'fill': known"),
        # Missing fields.
        ("layout", None, "missing layout"),
        ("layout/T", None, "layout: missing T"),
        ("layout/spatial_shape", None, "layout: missing spatial_shape, or H and W"),
        ("regions/visual/bounds", None, "regions.visual: missing bounds"),
        ("topology/0/src", None, "topology[0]: missing src"),
        # Wrong types.
        ("layout/d_model", "8", "layout: d_model '8': expected an integer"),
        ("layout/spatial_shape", [4, 4.0], "layout: spatial_shape [4, 4.0]: expected a list"),
        ("regions/visual", [0, 4, 0, 3, 0, 4], "regions.visual: [0, 4, 0, 3, 0, 4]: expected an"),
        ("regions/visual/bounds", [0, 4], "bounds [0, 4]: expected six integers"),
        ("regions/visual/is_output", 1, "regions.visual: is_output 1: expected true or false"),
        ("regions/visual/loss_weight", "2", "regions.visual: loss_weight '2': expected a number"),
        ("topology", {}, "topology {}: expected a list"),
        ("topology/1/t_dst", 0.5, "topology[1]: t_dst 0.5: expected an integer or null"),
        ("topology/1/weight", True, "topology[1]: weight True: expected a number"),
        (
            "metadata/roam",
            {"topology": [NOTE | {"temporal_fill": "hodl"}]},
            "temporal_fill 'hodl': expected one of drop, hold, interpolate",
        ),
        # Values out of range.
        ("regions/action/period", 0, "regions.action: period 0: expected at least 1"),
        ("regions/action/period", 2.5, "regions.action: period 2.5: expected an integer"),
        ("regions/action/period", True, "regions.action: period True: expected an integer"),
        ("regions/visual/loss_weight", float("nan"), "loss_weight nan: expected a finite number"),
        ("topology/0/weight", -1, "topology[0]: connection visual -> visual: weight -1"),
        ("layout/T", 0, "T 0: expected at least 1"),
        ("layout/T", 3, "'visual' with bounds (0, 4, 0, 3, 0, 4) leaves the canvas (3, 4, 4)"),
        ("layout/spatial_shape", [16], "spatial_shape [16]: expected two dimensions, H and W"),
        ("layout/spatial_shape", [], "spatial_shape []: expected two dimensions"),
        ("layout/H", 4, "layout: has both spatial_shape and H: expected one form"),
        ("regions/action/bounds", [0, 2, 2, 4, 0, 4], "regions 'visual' and 'action' overlap"),
        ("metadata/roam", {"regions": {"action": {"length": 9}}}, "action: length 9: the box"),
        (
            "metadata/roam",
            {"topology": [NOTE | {"temporal_fill": "interpolate", "interpolation_order": 0}]},
            "metadata.roam.topology[0]: connection action -> visual: interpolation_order 0",
        ),
    ],
)  # fmt: skip
def test_bad_files_are_refused_with_the_place(tmp_path, path, value, message):
    file = tmp_path / "canvas.json"
    file.write_text(json.dumps(edited(path, value)))
    with pytest.raises(ValueError, match=re.escape(message)) as info:
        CanvasSchema.from_json(file)
    assert str(info.value).startswith(f"{file}: ")


@pytest.mark.parametrize(
    "text, message",
    [
        (b'{\n  "layout": {,}\n}', "line 2 column 14"),
        (b"", "line 1 column 1"),
        (b'{"regions": {"a": 1, "a": 2}}', "'a' is given twice"),
        (b'{"layout": "\xff"}', "position 12"),
    ],
)
def test_what_is_no_json_is_refused_with_line_and_column(tmp_path, text, message):
    file = tmp_path / "canvas.json"
    file.write_bytes(text)
    with pytest.raises(ValueError, match=f"cannot be read as JSON: .*{message}") as info:
        CanvasSchema.from_json(file)
    assert str(info.value).startswith(f"{file}: ")
    with pytest.raises(FileNotFoundError, match="none.json"):
        CanvasSchema.from_json(tmp_path / "none.json")
    with pytest.raises(ValueError, match=re.escape("[1]: expected an object")):
        CanvasSchema.from_dict([1])


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


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"version": "0.9"}, "schema_version '0.9' is newer"),
        ({"metadata": {"roam": {}}}, "metadata.roam is written by this package"),
        ({"topology": CanvasTopology.dense(["visul"])}, "unknown region 'visul': did you mean"),
        ({"region_extras": {"visul": {}}}, "unknown region 'visul': did you mean 'visual'?"),
        ({"region_extras": {"visual": {"carier": 1}}}, "region_extras['visual']: unknown field"),
        ({"edge_extras": ({},)}, "1 edge_extras for 2 connections"),
        ({"edge_extras": ({}, {"weight": 1})}, "edge_extras[1]: unknown field 'weight'"),
    ],
)
def test_schemas_that_no_file_could_hold_are_refused(changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        dataclasses.replace(CanvasSchema.from_dict(FILE), **changes)


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "canvas.json"
    schema = CanvasSchema.from_dict(FILE)
    schema.to_json(path)

    def full(descriptor: int) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space left"):
        dataclasses.replace(schema, metadata={}).to_json(path)
    assert CanvasSchema.from_json(path) == schema
