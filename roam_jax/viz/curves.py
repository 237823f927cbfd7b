"""Curves of training, with a band where several seeds ran."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

from roam_jax.viz.figure import SERIES, picture

Curve = tuple[np.ndarray, Float[np.ndarray, "seeds steps"]]


def draw_curves(
    path: pathlib.Path, panels: Mapping[str, Mapping[str, Curve]], *, log: bool = False
) -> None:
    """A panel for each metric: for each run its mean over seeds, within the range of all seeds.

    Args:
        path: the PNG.
        panels: metric -> run -> (steps (n,), values (seeds, n)).
        log: whether the values' axis is logarithmic.
    """
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    with picture(path, width=3.2 * columns + 0.4, height=2.3 * rows + 0.4) as figure:
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        for unused in axes[len(panels) :]:
            unused.remove()
        for panel, (metric, runs) in zip(axes, panels.items(), strict=False):
            for number, (name, (steps, values)) in enumerate(runs.items()):
                colour = SERIES[number % len(SERIES)]
                label = f"{name} ({len(values)} seeds)" if len(values) > 1 else name
                panel.plot(steps, values.mean(axis=0), color=colour, linewidth=1.2, label=label)
                low, high = values.min(axis=0), values.max(axis=0)
                panel.fill_between(steps, low, high, color=colour, alpha=0.2, linewidth=0)
            panel.set_yscale("log" if log else "linear")
            panel.set_title(metric, loc="left")
            panel.set_xlabel("step")
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3)
