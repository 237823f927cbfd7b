"""Which region owns which cell of a canvas, frame by frame."""

from __future__ import annotations

import pathlib

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.patches import Patch

from roam_jax.canvas.layout import CanvasLayout
from roam_jax.viz.figure import FAINT, OBSERVED, SERIES, picture

EMPTY = "#f1f3f4"


def draw_layout(path: pathlib.Path, layout: CanvasLayout) -> None:
    """A grid for each canvas frame, coloured by region; cells in no region stay pale.

    Args:
        path: the PNG.
        layout: the canvas.
    """
    owner = np.full(layout.num_positions, -1)
    for number, name in enumerate(layout.regions):
        owner[layout.region_indices(name)] = number % len(SERIES)
    grids = owner.reshape(layout.T, layout.H, layout.W)
    side = min(0.22, 8 / (layout.T * layout.W))
    width = max(1.6 * len(layout.regions), side * layout.T * (layout.W + 1.5) + 0.6)
    with picture(path, width=width, height=side * layout.H + 1.3) as figure:
        for t, axes in enumerate(figure.subplots(1, layout.T, squeeze=False)[0]):
            _draw_frame(axes, grids[t])
            seen = t < layout.t_current
            axes.set_title(f"frame {t}\n{'observed' if seen else 'predicted'}")
            axes.title.set_color(OBSERVED if seen else "black")
        legend = [
            Patch(color=SERIES[n % len(SERIES)], label=f"{name} ({layout.region_numel(name)})")
            for n, name in enumerate(layout.regions)
        ]
        figure.legend(handles=legend, loc="outside lower center", ncols=len(legend))


def _draw_frame(axes: Axes, grid: np.ndarray) -> None:
    colours = ListedColormap([EMPTY, *SERIES])
    axes.pcolormesh(
        grid + 1, cmap=colours, vmin=0, vmax=len(SERIES), edgecolor="white", linewidth=0.4
    )
    axes.invert_yaxis()
    axes.set_aspect("equal")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(True)
    axes.spines[:].set_color(FAINT)
