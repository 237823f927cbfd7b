"""Which region owns which cell of a canvas, frame by frame."""

from __future__ import annotations

import functools
import pathlib

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, to_hex, to_rgb
from matplotlib.patches import Patch, Rectangle

from roam_jax.canvas.layout import CanvasLayout
from roam_jax.viz.figure import (
    FAINT,
    INK,
    OBSERVED,
    SERIES,
    add_axes,
    add_legend,
    legend_shape,
    picture,
    text_size,
)

EMPTY = "#f1f3f4"
# Inches: the largest cell, the largest frame, the width that frames are wrapped at, the gap between
# frames and around all, and the title above a frame.
CELL, FRAME, PAGE, GAP, TITLE = 0.22, 2.6, 12.0, 0.2, 0.42
SMALL = 7.0  # points
# Linear RGB -> cone responses -> OKLab, in which distances are about as the eye sees them
# (Ottosson 2020, "A perceptual color space for image processing").
TO_CONES = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
TO_OKLAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)


def region_colours(layout: CanvasLayout) -> dict[str, str]:
    """A colour for each region, no two alike."""
    return dict(zip(layout.regions, palette(len(layout.regions)), strict=True))


@functools.lru_cache
def palette(count: int) -> tuple[str, ...]:
    """`SERIES`, then again and again the colour that is furthest from all before and the ground."""
    levels = np.linspace(0.1, 0.85, 12)
    candidates = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(-1, 3)
    places = _oklab(candidates)
    chosen = [np.array(to_rgb(colour)) for colour in (EMPTY, INK, *SERIES)]
    while len(chosen) < count + 2:
        distances = places[:, None] - _oklab(np.array(chosen))
        chosen.append(candidates[np.linalg.norm(distances, axis=-1).min(axis=1).argmax()])
    return tuple(to_hex(colour) for colour in chosen[2 : count + 2])


def _oklab(rgb: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3"]:
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return np.cbrt(linear @ TO_CONES.T) @ TO_OKLAB.T


def draw_layout(path: pathlib.Path, layout: CanvasLayout) -> None:
    """A grid for each canvas frame, coloured by region; cells in no region stay pale.

    Cells of a region's box that carry no token are hatched. Below a frame stand the real frames of
    regions with a period above 1.

    Args:
        path: the PNG.
        layout: the canvas.
    """
    side = min(CELL, FRAME / max(layout.H, layout.W))
    below = [text_size(_real_frames(layout, t), points=SMALL) for t in range(layout.T)]
    title_width, _ = text_size("predicted", points=8.5)
    frame_width = GAP + max(side * layout.W, title_width, *(width for width, _ in below))
    frame_height = GAP + TITLE + side * layout.H + max(height for _, height in below)
    columns = min(layout.T, max(1, int(PAGE / frame_width)))
    rows = -(-layout.T // columns)
    labels = [_legend_label(layout, name) for name in layout.regions]
    width = max(columns * frame_width + GAP, 6.0)
    legend_columns, legend_height = legend_shape(labels, width=width - GAP)
    height = rows * frame_height + legend_height
    left = (width - columns * frame_width) / 2
    with picture(path, width=width, height=height, layout="none") as figure:
        for t in range(layout.T):
            row, column = divmod(t, columns)
            axes = add_axes(
                figure,
                left + (column + 0.5) * frame_width - side * layout.W / 2,
                height - row * frame_height - TITLE - side * layout.H,
                side * layout.W,
                side * layout.H,
            )
            _draw_frame(axes, layout, t)
        colours = region_colours(layout).values()
        handles = [Patch(color=c, label=label) for c, label in zip(colours, labels, strict=True)]
        add_legend(figure, handles, columns=legend_columns)


def _legend_label(layout: CanvasLayout, name: str) -> str:
    spec, cells = layout.regions[name], layout.region_numel(name)
    of_box = "" if cells == spec.volume else f" of {spec.volume}"
    period = "" if spec.period == 1 else f", every {spec.period} frames"
    return f"{name}: {cells:,}{of_box} cells{period}"


def _real_frames(layout: CanvasLayout, t: int) -> str:
    """Real frames of the slow regions of a canvas frame, one a line."""
    return "\n".join(
        f"{name}: real frame {layout.real_frame(name, t)}"
        for name, spec in layout.regions.items()
        if spec.period > 1 and spec.bounds[0] <= t < spec.bounds[1]
    )


def _draw_frame(axes: Axes, layout: CanvasLayout, t: int) -> None:
    colours = region_colours(layout)
    owner = np.zeros(layout.num_positions, np.int32)
    for number, name in enumerate(layout.regions, start=1):
        owner[layout.region_indices(name)] = number
    owner = owner.reshape(layout.T, layout.H, layout.W)[t]
    axes.pcolormesh(
        owner,
        cmap=ListedColormap([EMPTY, *colours.values()]),
        vmin=0,
        vmax=len(colours),
        edgecolor="white",
        linewidth=min(0.4, 5 / max(layout.H, layout.W)),
    )
    for name, spec in layout.regions.items():
        t0, t1, h0, h1, w0, w1 = spec.bounds
        for h in range(h0, h1) if t0 <= t < t1 else ():
            # Tokens fill a row from the left.
            if empty := np.count_nonzero(owner[h, w0:w1] == 0):
                box = Rectangle((w1 - empty, h), empty, 1, fill=False, hatch="/////", linewidth=0)
                box.set_edgecolor(colours[name])
                axes.add_patch(box)
    axes.set_xlabel(_real_frames(layout, t), fontsize=SMALL)
    seen = t < layout.t_current
    axes.set_title(f"frame {t}\n{'observed' if seen else 'predicted'}")
    axes.title.set_color(OBSERVED if seen else "black")
    axes.invert_yaxis()
    axes.set_aspect("equal")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(True)
    axes.spines[:].set_color(FAINT)
