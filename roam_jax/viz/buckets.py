"""Velocity error by timestep, beside predicting zero."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from roam_jax.viz.figure import FAINT, SERIES, picture


def draw_buckets(
    path: pathlib.Path, panels: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]
) -> None:
    """A panel for each entry, in it a line for each series.

    Args:
        path: the PNG.
        panels: panel -> series -> buckets, each {"timesteps": [first, last], "mse": {"mean",
            "interval": [low, high] or None}, "zero_mse"}. The first series gives the zero line.
    """
    with picture(path, width=3.6 * len(panels) + 0.4, height=2.8) as figure:
        axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for panel, (title, series) in zip(axes, panels.items(), strict=True):
            buckets = next(iter(series.values()))
            places = np.arange(len(buckets))
            zeros = [bucket["zero_mse"] for bucket in buckets]
            panel.plot(places, zeros, color=FAINT, linestyle="--", label="predicting zero")
            for number, (name, found) in enumerate(series.items()):
                # Moved apart a little, so that the intervals can be told apart.
                shift = 0.08 * (number - (len(series) - 1) / 2)
                means, reach = _means_and_reach(found)
                panel.errorbar(
                    places + shift,
                    means,
                    yerr=reach,
                    color=SERIES[number % len(SERIES)],
                    marker="o",
                    markersize=3,
                    linewidth=1.1,
                    capsize=2,
                    label=name,
                )
            labels = ["{}-{}".format(*bucket["timesteps"]) for bucket in buckets]
            panel.set_xticks(places, labels, fontsize=7)
            panel.set_title(title, loc="left")
            panel.set_xlabel("timestep (0 = clean, 999 = pure noise)")
        axes[0].set_ylabel("mean squared velocity error")
        axes[0].set_ylim(bottom=0)
        axes[0].legend(fontsize=7)


def _means_and_reach(buckets: Sequence[Mapping[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """Mean of each bucket, and how far its interval reaches below and above, (2, buckets)."""
    means = np.array([bucket["mse"]["mean"] for bucket in buckets])
    ends = [bucket["mse"]["interval"] or [bucket["mse"]["mean"]] * 2 for bucket in buckets]
    return means, np.abs(np.array(ends).T - means)
