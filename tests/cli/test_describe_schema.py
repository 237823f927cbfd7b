"""`describe --schema`: reports on canvas files, ours and canvas-engineering's, and bad input."""

import json

import canvas_engineering as ce
import numpy as np
import pytest

from roam_jax.__main__ import main
from roam_jax.canvas.layout import CanvasLayout, RegionSpec
from roam_jax.canvas.schema import CanvasSchema
from roam_jax.canvas.topologies import thalamic_relay
from roam_jax.canvas.topology import CanvasTopology, Connection
from roam_jax.cli.describe_schema import head_sizes
from tests.canvas.canvases import allowed
from tests.test_commands import command

LAYOUT = CanvasLayout(
    T=4,
    H=18,
    W=16,
    d_model=128,
    t_current=2,
    regions={
        "video": (0, 4, 0, 16, 0, 16),
        "action": RegionSpec((0, 4, 16, 17, 0, 4), loss_weight=2.0),
        "state": RegionSpec((0, 4, 16, 17, 4, 8), is_output=False),
        "thought": RegionSpec((0, 2, 17, 18, 0, 16), period=2, loss_weight=0.0),
    },
)
RELAY = thalamic_relay(LAYOUT, streams=["video", ("action", "state")], relay="thought")
PICTURES = ["canvas.png", "topology.png", "mask.png", "plan.png", "slice.png"]


@pytest.fixture
def described(tmp_path, capsys):
    """Lines and report of a canvas, written to a file first."""

    def run(layout, topology, *options) -> tuple[list[str], dict]:
        CanvasSchema(layout, topology).to_json(tmp_path / "c.json", for_ce="lossy")
        out = tmp_path / "out"
        arguments = ["--schema", tmp_path / "c.json", "--out", out, *options]
        assert command(main, "describe", *arguments) == 0
        lines = capsys.readouterr().out.splitlines()
        assert max(len(line) for line in lines if str(tmp_path) not in line) <= 100
        for path in out.glob("*.png"):
            assert path.read_bytes()[:4] == b"\x89PNG" and f"picture: {path}" in lines
        return lines, json.loads((out / "describe.json").read_text())

    return run


def test_a_canvas_with_edges_of_two_kinds(described, tmp_path):
    lines, report = described(LAYOUT, RELAY, "--applications", "3")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(
        [*PICTURES, "describe.json"]
    )
    cells = 1024 + 16 + 16 + 32
    assert report["canvas"]["cells"] == cells and report["canvas"]["width"] == 128
    topology = report["topology"]
    assert topology["pairs"] == np.count_nonzero(allowed(RELAY, LAYOUT))
    plan = topology["plan"]
    assert (plan["heads"], plan["width"]) == (2, 64)
    assert [edge["kind"] for edge in plan["edges"]] == ["gated"] * 3
    assert sum(edge["pairs"] for edge in plan["edges"]) == (1024 + 32) * 32
    assert plan["pairs"] == topology["pairs"] - (1024 + 32) * 32
    assert f"  gated: 3 edges beside them, {(1024 + 32) * 32:,} pairs" in lines
    assert any("thought (all frames, gated)" in line for line in lines)
    assert not any("backbone" in line for line in lines)
    slices = topology["slices"]
    assert slices["applications"] == 3
    assert [row["regions"] for row in slices["wanted"]] == [
        ["video", "action"], ["video"], ["action"],
    ]  # fmt: skip
    # Before the last application the action, its stream and the thought; before that all.
    acting = (cells + (16 + 16 + 32) + 16) / (3 * cells)
    assert slices["wanted"][2]["cell_share"] == pytest.approx(acting)


def test_a_file_of_canvas_engineering(tmp_path, capsys):
    layout = ce.CanvasLayout(
        T=4,
        H=4,
        W=4,
        d_model=48,
        regions={
            "visual": ce.RegionSpec((0, 4, 0, 3, 0, 4)),
            "action": ce.RegionSpec((0, 2, 3, 4, 0, 4), period=2, loss_weight=2.0),
        },
    )
    topology = ce.CanvasTopology.causal_temporal(["visual", "action"])
    ce.CanvasSchema(layout=layout, topology=topology).to_json(str(tmp_path / "c.json"))
    assert command(main, "describe", "--schema", tmp_path / "c.json") == 0
    lines = capsys.readouterr().out.splitlines()
    pairs = int((topology.to_attention_mask(layout) > 0).sum())
    (line,) = [line for line in lines if line.startswith("  allowed in all")]
    assert line.split()[3] == f"{pairs:,}"
    assert any("attention, 1 head x 48, a window" in line for line in lines)


def test_without_topology_there_is_the_canvas_alone(described, tmp_path):
    lines, report = described(LAYOUT, None)
    assert list(report) == ["name", "canvas"]
    assert "topology: the file declares none" in lines
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "canvas.png", "describe.json",
    ]  # fmt: skip


def test_what_cannot_run_is_described_all_the_same(described, tmp_path):
    edges = (Connection("video", "video"), Connection("action", "video", fn="mamba"))
    lines, report = described(LAYOUT, CanvasTopology(edges))
    assert "plan: none, attention cannot run this topology:" in lines
    assert any("kind 'mamba' is kept in schema files" in line for line in lines)
    assert report["topology"]["pairs"] == 1024**2 + 16 * 1024
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {*PICTURES, "describe.json"} - {"plan.png"}


def test_without_outputs_nothing_is_sliced(described, tmp_path):
    regions = {"seen": RegionSpec((0, 2, 0, 4, 0, 4), is_output=False)}
    layout = CanvasLayout(T=2, H=4, W=4, d_model=64, regions=regions)
    lines, report = described(layout, CanvasTopology.dense(["seen"]))
    assert report["topology"]["slices"]["wanted"] == []
    assert any(line.startswith("nothing is left out") for line in lines)
    assert not (tmp_path / "out" / "slice.png").exists()


@pytest.mark.parametrize(
    "given, expected",
    [
        ({}, (8, 64)),
        ({"heads": 4}, (4, 128)),
        ({"width": 32}, (16, 32)),
        ({"heads": 3, "width": 7}, (3, 7)),
    ],
)
def test_numbers_of_heads(given, expected):
    layout = CanvasLayout(T=1, H=1, W=1, d_model=512, regions={"a": (0, 1, 0, 1, 0, 1)})
    assert head_sizes(layout, **{"heads": None, "width": None, **given}) == expected


@pytest.mark.parametrize(
    "options, message",
    [
        (["--heads", "3"], "--heads 3 does not divide the canvas' width 128"),
        (["--width", "0"], "--width 0: expected at least 1"),
        (["--applications", "0"], "--applications 0: expected at least 1"),
        (["--config", "x.py"], "not allowed with argument"),
        (["--config.loop.rounds=2"], "--config.loop.rounds=2: --schema has no config"),
        (["--what", "data"], "--what data is about a config"),
        (["--compile"], "--compile is about a config"),
        (["--head", "3"], "unknown argument '--head'"),
    ],
)
def test_bad_input_ends_with_one_message(tmp_path, capsys, options, message):
    CanvasSchema(LAYOUT, RELAY).to_json(tmp_path / "c.json")
    assert command(main, "describe", "--schema", tmp_path / "c.json", *options) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("error:") == 1 and message in printed.err


@pytest.mark.parametrize(
    "options, message",
    [
        (["--schema", "none.json"], "none.json"),
        ([], "one of the arguments --config --schema is required"),
        (["--config", "configs/bridge_3loop.py", "--heads", "2"], "--heads is for --schema"),
    ],
)
def test_other_bad_input(capsys, options, message):
    assert command(main, "describe", *options) == 2
    assert message in capsys.readouterr().err


def test_a_canvas_without_regions_is_refused(tmp_path, capsys):
    empty = CanvasLayout(T=1, H=1, W=1, d_model=8, regions={})
    CanvasSchema(empty, CanvasTopology(())).to_json(tmp_path / "c.json")
    assert command(main, "describe", "--schema", tmp_path / "c.json") == 2
    assert "the canvas has no regions" in capsys.readouterr().err
