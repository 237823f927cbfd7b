"""Which region owns which cell of a canvas, frame by frame."""

from __future__ import annotations

import pathlib

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, to_hex, to_rgb
from matplotlib.patches import Patch, Rectangle

from roam_jax.canvas.layout import CanvasLayout
from roam_jax.viz.figure import FAINT, INK, OBSERVED, SERIES, picture

EMPTY = "#f1f3f4"
# Inches: the largest cell, the largest frame, and the width that frames are wrapped at.
CELL, FRAME, PAGE = 0.22, 2.6, 12.0


def region_colours(layout: CanvasLayout) -> dict[str, str]:
    """A colour for each region; the second seven are tints of the first, then shades."""
    colours = {}
    for number, name in enumerate(layout.regions):
        cycle, place = divmod(number, len(SERIES))
        other = np.array(to_rgb("white" if cycle % 2 else INK))
        share = 0.5 if cycle else 0.0
        colours[name] = to_hex((1 - share) * np.array(to_rgb(SERIES[place])) + share * other)
    return colours


def draw_layout(path: pathlib.Path, layout: CanvasLayout) -> None:
    """A grid for each canvas frame, coloured by region; cells in no region stay pale.

    Of a region whose box has more cells than tokens, the whole box is hatched. Below a frame stand
    the real frames of regions with a period above 1.

    Args:
        path: the PNG.
        layout: the canvas.
    """
    side = min(CELL, FRAME / max(layout.H, layout.W))
    frame_width, frame_height = max(side * (layout.W + 1.5), 1.0), side * layout.H + 0.65
    columns = min(layout.T, max(1, int(PAGE / frame_width)))
    rows = -(-layout.T // columns)
    slow = [name for name, spec in layout.regions.items() if spec.period > 1]
    width = max(columns * frame_width + 0.3, 6.0)
    entries = max(1, int(width / 2.4))
    legend_height = 0.19 * -(-len(layout.regions) // entries) + 0.25
    height = rows * (frame_height + 0.16 * len(slow)) + legend_height
    with picture(path, width=width, height=height) as figure:
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
        for t, axes in enumerate(panels[: layout.T]):
            _draw_frame(axes, layout, t)
        for axes in panels[layout.T :]:
            axes.set_axis_off()
        legend = [
            Patch(color=colour, label=_legend_label(layout, name))
            for name, colour in region_colours(layout).items()
        ]
        figure.legend(handles=legend, loc="outside lower center", ncols=entries)


def _legend_label(layout: CanvasLayout, name: str) -> str:
    spec, cells = layout.regions[name], layout.region_numel(name)
    of_box = "" if cells == spec.volume else f" of {spec.volume}"
    period = "" if spec.period == 1 else f", every {spec.period} frames"
    return f"{name}: {cells:,}{of_box} cells{period}"


def _draw_frame(axes: Axes, layout: CanvasLayout, t: int) -> None:
    colours = region_colours(layout)
    owner = np.zeros(layout.num_positions, np.int32)
    for number, name in enumerate(layout.regions, start=1):
        owner[layout.region_indices(name)] = number
    axes.pcolormesh(
        owner.reshape(layout.T, layout.H, layout.W)[t],
        cmap=ListedColormap([EMPTY, *colours.values()]),
        vmin=0,
        vmax=len(colours),
        edgecolor="white",
        linewidth=min(0.4, 5 / max(layout.H, layout.W)),
    )
    real_frames = []
    for name, spec in layout.regions.items():
        t0, t1, h0, h1, w0, w1 = spec.bounds
        if not t0 <= t < t1:
            continue
        box = (w0, h0), w1 - w0, h1 - h0
        if len(layout.region_indices_at_t(name, t)) < (h1 - h0) * (w1 - w0):
            axes.add_patch(
                Rectangle(*box, fill=False, hatch="/////", edgecolor=colours[name], linewidth=0)
            )
        if spec.period > 1:
            real_frames.append(f"{name}: real frame {layout.real_frame(name, t)}")
    axes.set_xlabel("\n".join(real_frames), fontsize=7)
    seen = t < layout.t_current
    axes.set_title(f"frame {t}\n{'observed' if seen else 'predicted'}")
    axes.title.set_color(OBSERVED if seen else "black")
    axes.invert_yaxis()
    axes.set_aspect("equal")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(True)
    axes.spines[:].set_color(FAINT)
