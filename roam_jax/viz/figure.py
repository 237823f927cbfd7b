"""Pictures drawn without a display or global state, and written whole or not at all."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Iterator, Sequence

import matplotlib
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

DPI = 130
INK, FAINT = "#22252b", "#9aa0a6"
# What the model was shown, and what it says.
OBSERVED, PREDICTED = "#1b7f5f", "#d1495b"
# Series that are told apart by the colour-blind too (Okabe & Ito 2008).
SERIES = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#999999")
# Bold letters are wider than others, by at most this factor.
BOLD = 1.15
# Inches: what stands beside the text of a legend's entry, and one of its lines.
LEGEND_HANDLE, LEGEND_LINE = 0.6, 0.18
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
def picture(
    path: pathlib.Path, *, width: float, height: float, layout: str = "constrained"
) -> Iterator[Figure]:
    """A figure to draw on, saved as PNG at the end; an older file stays until the new is whole.

    Args:
        path: where to; its folder is made.
        width, height: in inches.
        layout: matplotlib's; "none" where everything is placed by hand.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout=layout)
        FigureCanvasAgg(figure)
        yield figure
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        figure.savefig(partial, format="png", dpi=DPI)
        partial.replace(path)


def text_size(text: str, *, points: float = STYLE["font.size"]) -> tuple[float, float]:
    """Width and height of a text in inches; lines are parted by newlines."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(dpi=DPI)
        renderer = FigureCanvasAgg(figure).get_renderer()
        box = figure.text(0, 0, text, fontsize=points).get_window_extent(renderer)
    return box.width / DPI, box.height / DPI


def fit_text(text: str, width: float, *, points: float = STYLE["font.size"]) -> str:
    """A text from data as one line of bold letters that fits into a width in inches, cut if not.

    A dollar sign does not start a formula.
    """
    text = " ".join(text.split())
    share = width / (BOLD * max(text_size(text.replace("$", "S"), points=points)[0], 1e-6))
    if share < 1:
        text = f"{text[: max(0, int(share * len(text)) - 4)]}..."
    return text.replace("$", r"\$")


def add_axes(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """Axes at a place of the figure in inches."""
    whole_width, whole_height = figure.get_size_inches()
    return figure.add_axes(
        (left / whole_width, bottom / whole_height, width / whole_width, height / whole_height)
    )


def legend_shape(labels: Sequence[str], *, width: float) -> tuple[int, float]:
    """Columns, and height in inches, of a legend that fits into a width."""
    entry = max(text_size(label)[0] for label in labels) + LEGEND_HANDLE
    columns = min(len(labels), max(1, int(width / entry)))
    return columns, LEGEND_LINE * (-(-len(labels) // columns) + 0.7)


def add_legend(figure: Figure, handles: Sequence[Artist], *, columns: int) -> None:
    """A legend at the foot of the figure."""
    figure.legend(handles=handles, loc="lower center", ncols=columns)
