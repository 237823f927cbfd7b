"""What every number of rounds is worth: errors by exit, and the measures of each round."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from roam_jax.viz.figure import FAINT, SERIES, picture

# Panels side by side.
COLUMNS = 3
PANEL_WIDTH, PANEL_HEIGHT = 2.7, 2.1
Estimate = Mapping[str, Any]


def draw_exits(
    path: pathlib.Path,
    panels: Mapping[str, Mapping[str, Mapping[int, Estimate]]],
    *,
    baselines: Mapping[str, float],
    trained: int,
    ylabel: str = "error",
) -> None:
    """A panel for each region: its error against the number of rounds, with intervals.

    Args:
        path: the PNG.
        panels: region -> series -> rounds -> {"mean", "interval": [low, high] or None}.
        baselines: region -> error of what knows nothing, a dashed line; may lack regions.
        trained: number of rounds of the training, a dotted line.
        ylabel: of all panels.
    """
    with _grid(path, len(panels)) as axes:
        for panel, (region, series) in zip(axes, panels.items(), strict=True):
            panel.axvline(trained, color=FAINT, linestyle=":", linewidth=1, label="trained")
            if region in baselines:
                panel.axhline(baselines[region], color=FAINT, linestyle="--", label="baseline")
            for number, (name, by_rounds) in enumerate(series.items()):
                _band(panel, by_rounds, colour=SERIES[number % len(SERIES)], label=name)
            panel.set_title(region, loc="left")
            panel.set_xlabel("rounds")
            panel.set_xticks(sorted({n for found in series.values() for n in found}))
        axes[0].set_ylabel(ylabel)
        _legend(axes[0])


def draw_round_measures(
    path: pathlib.Path, measures: Mapping[str, Mapping[str, Sequence[float]]]
) -> None:
    """A panel for each measure: a line for each region, a point for each round.

    Args:
        path: the PNG.
        measures: measure -> region -> its value after each round.
    """
    with _grid(path, len(measures)) as axes:
        for panel, (measure, regions) in zip(axes, measures.items(), strict=True):
            for number, (region, values) in enumerate(regions.items()):
                rounds = np.arange(1, len(values) + 1)
                style = ("-", "--", ":")[number // len(SERIES) % 3]
                colour = SERIES[number % len(SERIES)]
                panel.plot(rounds, values, style, color=colour, marker="o", ms=3, label=region)
                panel.set_xticks(rounds)
            panel.set_title(measure, loc="left")
            panel.set_xlabel("round")
        _legend(axes[0])


def draw_cosines(path: pathlib.Path, matrix: np.ndarray, names: Sequence[str]) -> None:
    """Whether regions pull shared weights the same way: their gradients' cosines as a table.

    Args:
        path: the PNG.
        matrix: (regions, regions), symmetric.
        names: of the regions.
    """
    size = 0.75 * len(names) + 1.8
    with picture(path, width=size + 0.6, height=size) as figure:
        panel = figure.subplots()
        image = panel.imshow(matrix, cmap="RdBu", vmin=-1, vmax=1)
        for (row, column), value in np.ndenumerate(matrix):
            colour = "white" if abs(value) > 0.6 else "black"
            panel.text(column, row, f"{value:.2f}", ha="center", va="center", color=colour)
        places = np.arange(len(names))
        panel.set_xticks(places, names, rotation=45, ha="right")
        panel.set_yticks(places, names)
        panel.set_title("cosine of loss gradients at the blocks", loc="left")
        figure.colorbar(image, ax=panel, shrink=0.7)


@contextlib.contextmanager
def _grid(path: pathlib.Path, count: int) -> Iterator[np.ndarray]:
    """Panels in rows of `COLUMNS`; those of the last row that are not used are left out."""
    columns, rows = min(COLUMNS, count), -(-count // COLUMNS)
    width, height = PANEL_WIDTH * columns + 0.5, PANEL_HEIGHT * rows + 0.4
    with picture(path, width=width, height=height) as figure:
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        for unused in axes[count:]:
            unused.remove()
        yield axes[:count]


def _band(panel: Any, by_rounds: Mapping[int, Estimate], *, colour: str, label: str) -> None:
    rounds = sorted(by_rounds)
    means = np.array([by_rounds[n]["mean"] for n in rounds], float)
    ends = [by_rounds[n]["interval"] or [by_rounds[n]["mean"]] * 2 for n in rounds]
    low, high = np.array(ends, float).T
    panel.plot(rounds, means, color=colour, marker="o", markersize=3, label=label)
    panel.fill_between(rounds, low, high, color=colour, alpha=0.15, linewidth=0)


def _legend(panel: Any) -> None:
    handles, labels = panel.get_legend_handles_labels()
    panel.figure.legend(handles, labels, loc="outside lower center", ncols=4)
