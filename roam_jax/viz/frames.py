"""Strips of frames below each other: what was seen, what came back, what was predicted."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Integer, UInt8
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from roam_jax.viz.figure import OBSERVED, picture

# Frames of a strip; a longer window is thinned out evenly.
SHOWN = 9
GAP = 0.06


def draw_frame_strips(
    path: pathlib.Path,
    strips: Mapping[str, UInt8[np.ndarray, "windows T H W 3"]],
    *,
    titles: Sequence[str],
    observed: int,
) -> None:
    """For each window one strip of each kind, frame by frame in time.

    Args:
        path: the PNG.
        strips: name -> frames, all of one shape.
        titles: of the windows.
        observed: how many frames the model was shown; they are framed in green.
    """
    count, total, height, width, _ = next(iter(strips.values())).shape
    shown = np.unique(np.linspace(0, total - 1, min(SHOWN, total)).round().astype(int))
    row_inches = len(strips) * height / width + 0.45
    with picture(path, width=len(shown) + 1.2, height=count * row_inches + 0.2) as figure:
        for i, row in enumerate(np.atleast_1d(figure.subfigures(count, 1))):
            axes = row.subplots()
            axes.set_title(titles[i], loc="left")
            for level, frames in enumerate(reversed(strips.values())):
                draw_strip(axes, frames[i, shown], bottom=level)
            draw_frame_axis(axes, shown, observed=observed, levels=len(strips))
            axes.set_yticks(np.arange(len(strips)) + 0.5, list(reversed(strips)))
            axes.set_aspect(height / width)


def draw_strip(axes: Axes, frames: UInt8[np.ndarray, "T H W 3"], *, bottom: float) -> None:
    """Frames side by side, frame i around x = i, one unit wide and high."""
    for i, frame in enumerate(frames):
        half = (1 - GAP) / 2
        extent = (i - half, i + half, bottom + GAP / 2, bottom + 1 - GAP / 2)
        axes.imshow(frame, extent=extent, interpolation="nearest")


def draw_frame_axis(
    axes: Axes, shown: Integer[np.ndarray, " frames"], *, observed: int, levels: int
) -> None:
    """Frame numbers below strips, and a green frame around those that were observed."""
    seen = int((shown < observed).sum())
    axes.add_patch(
        Rectangle(
            (-0.5, 0), seen, levels, fill=False, edgecolor=OBSERVED, linewidth=2, clip_on=False
        )
    )
    axes.set_xticks(
        np.arange(len(shown)),
        [f"{'observed' if frame < observed else 'frame'} {frame}" for frame in shown],
    )
    axes.set_xlim(-0.5, len(shown) - 0.5)
    axes.set_ylim(0, levels)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
