"""Quality of predicted frames against how far ahead they lie."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from roam_jax.viz.figure import SERIES, picture

UNITS = {"psnr": "PSNR [dB]", "ssim": "SSIM"}
Estimates = Sequence[Mapping[str, Any]]


def draw_horizons(
    path: pathlib.Path,
    panels: Mapping[str, Mapping[str, Mapping[str, Estimates]]],
    *,
    frames: Sequence[int],
) -> None:
    """A column for each split, a row for each metric, a line with intervals for each series.

    Args:
        path: the PNG.
        panels: split -> metric -> series -> {"mean", "interval": [low, high] or None} of each
            frame; all splits with the same metrics.
        frames: numbers of the frames.
    """
    metrics = list(next(iter(panels.values())))
    with picture(path, width=3.6 * len(panels) + 0.4, height=2.4 * len(metrics) + 0.4) as figure:
        grid = figure.subplots(len(metrics), len(panels), sharey="row", squeeze=False)
        for column, (split, by_metric) in enumerate(panels.items()):
            for row, metric in enumerate(metrics):
                panel = grid[row, column]
                for number, (name, found) in enumerate(by_metric[metric].items()):
                    means, low, high = _ends(found)
                    colour = SERIES[number % len(SERIES)]
                    panel.plot(frames, means, color=colour, marker="o", markersize=3, label=name)
                    panel.fill_between(frames, low, high, color=colour, alpha=0.15, linewidth=0)
                panel.set_xticks(frames)
                panel.set_title(split if row == 0 else "", loc="left")
            grid[-1, column].set_xlabel("predicted frame")
        for row, metric in enumerate(metrics):
            grid[row, 0].set_ylabel(UNITS.get(metric, metric))
        handles, labels = grid[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3)


def _ends(found: Estimates) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Means with the lower and upper ends of their intervals; the mean where there is none."""
    ends = [one["interval"] or [one["mean"]] * 2 for one in found]
    low, high = np.array(ends, float).T
    return np.array([one["mean"] for one in found], float), low, high
