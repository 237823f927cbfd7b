"""Predicted against recorded action chunks, with the actions that came before them."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes

from roam_jax.viz.figure import FAINT, INK, OBSERVED, PREDICTED, picture

MARGIN = 0.08


def draw_action_chunks(
    path: pathlib.Path,
    *,
    past: Float[np.ndarray, "windows past dims"],
    recorded: Float[np.ndarray, "windows chunk dims"],
    predicted: Float[np.ndarray, "windows predicted dims"],
    names: Sequence[str],
    units: Sequence[str],
    titles: Sequence[str],
) -> None:
    """A row for each window, a panel for each dimension; panels of a dimension share their scale.

    Args:
        path: the PNG.
        past: actions before `t_current`.
        recorded: what was done from there on.
        predicted: what the model says; may be shorter.
        names, units: of the dimensions.
        titles: of the windows.
    """
    count, dims = len(recorded), recorded.shape[2]
    every = np.concatenate([past, recorded, predicted], axis=1)
    low, high = every.min(axis=(0, 1)), every.max(axis=(0, 1))
    margin = MARGIN * np.where(high > low, high - low, 1)
    with picture(path, width=1.9 * dims, height=1.75 * count + 0.4) as figure:
        rows = np.atleast_1d(figure.subfigures(count, 1))
        for i, row in enumerate(rows):
            row.suptitle(titles[i], fontsize=8.5, x=0.01, ha="left")
            panels = row.subplots(1, dims)
            for d, panel in enumerate(panels):
                _draw_panel(panel, past[i, :, d], recorded[i, :, d], predicted[i, :, d])
                panel.set_ylim(low[d] - margin[d], high[d] + margin[d])
                panel.set_title(f"{names[d]} [{units[d]}]")
            panels[dims // 2].set_xlabel("action i, from frame i to frame i + 1")
        rows[0].legend(*panels[0].get_legend_handles_labels(), loc="upper right", ncols=3)


def _draw_panel(panel: Axes, past: np.ndarray, recorded: np.ndarray, predicted: np.ndarray):
    start = len(past)
    panel.axvspan(-0.5, start - 0.5, color=OBSERVED, alpha=0.08, linewidth=0)
    panel.axvline(start - 0.5, color=OBSERVED, linewidth=0.8, linestyle=":")
    line = {"marker": "o", "markersize": 2.6, "linewidth": 1.1}
    if start:
        # Joined to the first recorded action, as one movement.
        joined = np.append(past, recorded[0])
        panel.plot(np.arange(start + 1), joined, color=FAINT, linewidth=1)
        panel.plot(np.arange(start), past, color=FAINT, label="past", **line)
    steps = np.arange(start, start + len(recorded))
    panel.plot(steps, recorded, color=INK, label="recorded", **line)
    panel.plot(steps[: len(predicted)], predicted, color=PREDICTED, label="predicted", **line)
    panel.set_xlim(-0.5, start + len(recorded) - 0.5)
    panel.xaxis.get_major_locator().set_params(integer=True)
    panel.tick_params(labelsize=6.5, length=2)
