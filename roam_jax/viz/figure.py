"""Pictures drawn without a display or global state, and written whole or not at all."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Iterator

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

DPI = 130
INK, FAINT = "#22252b", "#9aa0a6"
# What the model was shown, and what it says.
OBSERVED, PREDICTED = "#1b7f5f", "#d1495b"
# Series that are told apart by the colour-blind too (Okabe & Ito 2008).
SERIES = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#999999")
STYLE = {
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 8.5,
    "font.size": 8,
    "legend.frameon": False,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}


@contextlib.contextmanager
def picture(path: pathlib.Path, *, width: float, height: float) -> Iterator[Figure]:
    """A figure to draw on, saved as PNG at the end; an older file stays until the new is whole.

    Args:
        path: where to; its folder is made.
        width, height: in inches.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        figure.savefig(partial, format="png", dpi=DPI)
        partial.replace(path)
