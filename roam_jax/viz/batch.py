"""What a model is fed: frames and actions of a few windows, aligned in time."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.figure import SubFigure

from roam_jax.viz.figure import OBSERVED, picture
from roam_jax.viz.frames import draw_frame_axis, draw_strip


def draw_windows(
    path: pathlib.Path,
    *,
    frames: Mapping[str, UInt8[np.ndarray, "windows T H W 3"]],
    actions: Sequence[Float[np.ndarray, "transitions _"]],
    observed: int,
    names: Sequence[Sequence[str]],
    titles: Sequence[str],
) -> None:
    """For each window its frames, and below them its actions between the frames they lead through.

    Args:
        path: the PNG.
        frames: camera -> frames of the windows.
        actions: of each window T - 1 normalised actions, those of observed frames first.
        observed: frames that the model may see; the actions between them are inputs, all others
            targets.
        names: of each window's action dimensions; robots may differ.
        titles: of the windows.
    """
    count, total, height, width, _ = next(iter(frames.values())).shape
    row_inches = len(frames) * height / width + 1.9
    with picture(path, width=min(1.0 * total, 18) + 1.6, height=count * row_inches) as figure:
        for i, row in enumerate(np.atleast_1d(figure.subfigures(count, 1))):
            row.suptitle(titles[i], fontsize=9, x=0.01, ha="left")
            strips = {camera: videos[i] for camera, videos in frames.items()}
            _draw_window(row, strips, actions[i], observed=observed, names=names[i])


def _draw_window(
    row: SubFigure,
    strips: Mapping[str, np.ndarray],
    actions: np.ndarray,
    *,
    observed: int,
    names: Sequence[str],
) -> None:
    total = len(actions) + 1
    strip, heat = row.subplots(2, 1, height_ratios=[len(strips), 1.1])
    for level, frames in enumerate(reversed(strips.values())):
        draw_strip(strip, frames, bottom=level)
    strip.set_aspect("auto")
    draw_frame_axis(strip, np.arange(total), observed=observed, levels=len(strips))
    strip.set_yticks(np.arange(len(strips)) + 0.5, list(reversed(strips)))
    # Column i lies between frame i and frame i + 1.
    edges = np.arange(total)
    image = heat.pcolormesh(
        edges,
        np.arange(len(names) + 1),
        actions.T,
        cmap="RdBu_r",
        vmin=-1,
        vmax=1,
        edgecolor="white",
        linewidth=0.5,
    )
    heat.set_xlim(strip.get_xlim())
    heat.axvline(observed - 1, color=OBSERVED, linewidth=2)
    heat.set_yticks(np.arange(len(names)) + 0.5, names)
    heat.invert_yaxis()
    heat.set_xticks(edges[:-1] + 0.5, [f"action {i}" for i in range(total - 1)])
    heat.tick_params(length=0)
    heat.spines[:].set_visible(False)
    heat.set_xlabel(
        f"actions left of the green line are inputs ({observed - 1}), the others targets "
        f"({total - observed}); in [-1, 1] by q01 and q99, grippers 1 = open"
    )
    row.colorbar(image, ax=[strip, heat], shrink=0.6, pad=0.01)
