"""Which schema files are refused, and with what words; how files are written."""

import dataclasses
import json
import os
import re

import pytest

from roam_jax.canvas.schema import CanvasSchema
from tests.canvas.canvases import FILE, edited

NOTE = {"index": 1, "src": "action", "dst": "visual", "t_src": 0, "t_dst": -1}
LENGTH = {"length": 5, "bounds": [0, 2, 3, 4, 0, 4]}


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
            {"regions": {"action": LENGTH | {"lenght": 1}}},
            "regions.action: metadata.roam: unknown field 'lenght'",
        ),
        ("metadata/roam", {"topology": [NOTE | {"fill": "drop"}]}, "unknown field 'fill': known"),
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
        (
            "metadata/roam",
            {"topology": [NOTE | {"pairs": [[0, 1, 2]]}]},
            "pairs [[0, 1, 2]]: expected a list of two integers for each pair of frames",
        ),
        # Notes that contradict each other, or the file that they are in.
        (
            "metadata/roam",
            {"topology": [NOTE | {"temporal_fill": fill} for fill in ("drop", "interpolate")]},
            "metadata.roam.topology[1]: index 1 has a note already: expected one for an edge",
        ),
        (
            "metadata/roam",
            {"regions": {"action": LENGTH | {"bounds": [0, 2, 3, 4, 0, 3]}}},
            "regions.action: metadata.roam: length 5 was written for the box [0, 2, 3, 4, 0, 3], "
            "the region has [0, 2, 3, 4, 0, 4]: expected the same",
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
        ("metadata/roam", {"regions": {"action": {"length": 5}}}, "metadata.roam: missing bounds"),
        (
            "metadata/roam",
            {"regions": {"action": LENGTH | {"length": 9}}},
            "regions.action: length 9: the box (0, 2, 3, 4, 0, 4) has 8 cells",
        ),
        (
            "metadata/roam",
            {"topology": [NOTE | {"temporal_fill": "interpolate", "interpolation_order": 0}]},
            "metadata.roam.topology[0]: connection action -> visual: interpolation_order 0",
        ),
        (
            "metadata/roam",
            {"topology": [NOTE | {"pairs": [[0, 1]]}]},
            "metadata.roam.topology[0]: connection action -> visual: pairs beside t_src = 0",
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
