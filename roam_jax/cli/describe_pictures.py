"""What `describe --out` writes: the report as JSON, and pictures of a canvas."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from roam_jax.canvas.layout import CanvasLayout
from roam_jax.canvas.plan import compile_plan
from roam_jax.canvas.slicing import slice_canvas
from roam_jax.canvas.topology import CanvasTopology
from roam_jax.files import write_atomically
from roam_jax.viz.canvas import draw_layout
from roam_jax.viz.mask import draw_mask
from roam_jax.viz.plan import draw_plan
from roam_jax.viz.slice import draw_slice
from roam_jax.viz.topology import draw_topology


def write_json(out: pathlib.Path, report: Mapping[str, Any]) -> None:
    """Writes describe.json into a folder, and prints its path."""
    write_atomically(out / "describe.json", json.dumps(report, indent=2) + "\n")
    print(f"report:  {out / 'describe.json'}")


def draw_canvas(
    out: pathlib.Path,
    layout: CanvasLayout,
    topology: CanvasTopology | None,
    report: Mapping[str, Any],
) -> None:
    """Draws a canvas into a folder, and prints the pictures' paths.

    Args:
        out: the folder.
        layout: the canvas.
        topology: its edges; without, there is one picture.
        report: with its "plan" and, of a graft, "slices"; the slice that leaves least is drawn.
    """
    pictures = {"canvas.png": lambda path: draw_layout(path, layout)}
    if topology is not None:
        pictures["topology.png"] = lambda path: draw_topology(path, layout, topology)
        pictures["mask.png"] = lambda path: draw_mask(path, layout, topology)
        plan, slices = report["topology"]["plan"], report["topology"].get("slices")
        if "refused" not in plan:
            compiled = compile_plan(layout, topology)
            pictures["plan.png"] = lambda path: draw_plan(path, layout, compiled)
        if slices and slices["wanted"]:
            least = min(slices["wanted"], key=lambda row: row["cell_share"])["regions"]
            times = slices["applications"]
            sliced = slice_canvas(topology, layout, least, applications=times)
            pictures["slice.png"] = lambda path: draw_slice(path, layout, sliced)
    for name, draw in pictures.items():
        draw(out / name)
        print(f"picture: {out / name}")
