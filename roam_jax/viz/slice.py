"""What has to be computed for some wanted outputs, application by application."""

from __future__ import annotations

import pathlib

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.patches import Patch

from roam_jax.canvas.layout import CanvasLayout
from roam_jax.canvas.slicing import CanvasSlice
from roam_jax.canvas.topology import segment_keys
from roam_jax.viz.canvas import EMPTY, region_colours
from roam_jax.viz.cells import GAP, TITLE, CellAxis, add_rows
from roam_jax.viz.figure import FAINT, add_legend, fit_text, legend_shape, picture, text_size

# Inches: the smallest and the largest width of a state, of all, and the numbers below.
STATE, LARGE_STATE, WIDTH, NUMBERS = 0.05, 0.35, 5.0, 0.45
DROPPED = "left out"


def draw_slice(path: pathlib.Path, layout: CanvasLayout, sliced: CanvasSlice) -> None:
    """A row for each (region, frame), a column for the input and for each application after it.

    What is kept has its region's colour, what is left out is pale.

    Args:
        path: the PNG.
        layout: the canvas.
        sliced: of it.
    """
    keys = segment_keys(layout)
    rows = CellAxis(layout, np.arange(len(keys)))
    colours = region_colours(layout)
    image = np.tile(np.array(to_rgb(EMPTY)), (len(keys), len(sliced.kept), 1))
    for state, kept in enumerate(sliced.kept):
        for segment in kept:
            image[segment, state] = to_rgb(colours[keys[segment][0]])
    wanted = ", ".join(dict.fromkeys(keys[segment][0] for segment in sliced.kept[-1]))
    shares = (
        f"{sliced.computed_share:.1%} of the cells and {sliced.pair_share:.1%} of the pairs remain"
    )
    left, states = GAP + rows.name_width, len(sliced.kept)
    plane = states * np.clip(WIDTH / states, STATE, LARGE_STATE)
    width = max(left + plane, text_size(shares)[0] + GAP) + GAP
    title = f"{fit_text(f'wanted: {wanted}', width - GAP)}\n{shares}"
    columns, below = legend_shape([DROPPED], width=width)
    below += NUMBERS
    height = 2 * TITLE + rows.side + below
    with picture(path, width=width, height=height, layout="none") as figure:
        figure.text(
            width / 2, height - TITLE, title, ha="center", va="center",
            transform=figure.dpi_scale_trans,
        )  # fmt: skip
        axes = add_rows(figure, rows, left=left, bottom=below, width=plane)
        axes.imshow(
            image, extent=(-0.5, states - 0.5, len(keys), 0), aspect="auto",
            interpolation="nearest",
        )  # fmt: skip
        every = -(-states // 10)
        axes.set_xticks(range(0, states, every))
        axes.set_xlabel("applications of a block; 0 is the input")
        if plane >= states * 0.1:
            for state in range(1, states):
                axes.axvline(state - 0.5, color=FAINT, linewidth=0.3)
        add_legend(figure, [Patch(color=EMPTY, label=DROPPED)], columns=columns)
