"""`describe --schema`: the same report for a canvas that no config has, from its file alone."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from roam_jax.canvas.layout import CanvasLayout
from roam_jax.canvas.schema import CanvasSchema
from roam_jax.cli.describe_pictures import draw_canvas, write_json
from roam_jax.cli.describe_text import region_lines, topology_lines
from roam_jax.evaluate.canvas_cost import describe_canvas, describe_topology
from roam_jax.evaluate.plan_cost import describe_plan, describe_slices

HEAD_WIDTH = 64


def describe_schema(
    path: str,
    out: pathlib.Path | None,
    *,
    heads: int | None,
    width: int | None,
    applications: int,
) -> None:
    """Prints what a schema file declares and costs; with a folder, writes it and pictures there.

    Args:
        path: the file, of this package or of canvas-engineering.
        out: the folder, or None.
        heads, width: number of heads and width of one, see `head_sizes`.
        applications: of a block, for what slices leave.

    Raises:
        FileNotFoundError, ValueError: as `CanvasSchema.from_json`; the canvas has no regions, or a
            number is out of range.
    """
    schema = CanvasSchema.from_json(path)
    layout, topology = schema.layout, schema.topology
    if not layout.regions:
        raise ValueError(f"--schema {path}: the canvas has no regions: expected at least one")
    if applications < 1:
        raise ValueError(f"--applications {applications}: expected at least 1")
    heads, width = head_sizes(layout, heads=heads, width=width)
    report: dict[str, Any] = {"name": path, "canvas": describe_canvas(layout)}
    if topology is not None:
        report["topology"] = {
            **describe_topology(layout, topology),
            "plan": describe_plan(layout, topology, heads=heads, width=width),
            "slices": describe_slices(layout, topology, wanted(layout), applications=applications),
        }
    print("\n".join(_lines(report)))
    if out:
        write_json(out, report)
        draw_canvas(out, layout, topology, report)


def _lines(report: Mapping[str, Any]) -> Iterator[str]:
    yield report["name"]
    yield from region_lines(report["canvas"])
    yield ""
    if "topology" in report:
        yield from topology_lines(report)
    else:
        yield "topology: the file declares none"


def wanted(layout: CanvasLayout) -> dict[str, tuple[str, ...]]:
    """All regions whose loss weighs something, and each of them alone."""
    names = [name for name, spec in layout.regions.items() if spec.is_output and spec.loss_weight]
    alone = {name: (name,) for name in names if len(names) > 1}
    return {"all outputs": tuple(names), **alone} if names else {}


def head_sizes(layout: CanvasLayout, *, heads: int | None, width: int | None) -> tuple[int, int]:
    """Number of heads and width of one; what is not given follows from the canvas' width.

    Without either, heads are 64 wide, or as wide as a narrower canvas.

    Raises:
        ValueError: a number is below 1, or does not divide the width.
    """
    for name, value in (("--heads", heads), ("--width", width)):
        if value is not None and value < 1:
            raise ValueError(f"{name} {value}: expected at least 1")
    if heads is not None and width is not None:
        return heads, width
    if heads is None and width is None:
        width = min(HEAD_WIDTH, layout.d_model)
    name, given = ("--heads", heads) if width is None else ("--width", width)
    other, rest = divmod(layout.d_model, given)
    if rest:
        raise ValueError(
            f"{name} {given} does not divide the canvas' width {layout.d_model}: expected both "
            "--heads and --width"
        )
    return (given, other) if width is None else (other, given)
