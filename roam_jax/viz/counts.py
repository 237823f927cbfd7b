"""How long episodes are, what they are told to do, and which of them are left out."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from roam_jax.viz.figure import INK, PREDICTED, SERIES, add_axes, fit_text, picture, text_size

USED, LEFT_OUT, OTHER = SERIES[0], PREDICTED, SERIES[4]
GROUND = "#f1f3f4"
# Inches: a histogram of lengths; a bar with its gap; the longest bar; the longest text beside it;
# the margin around.
PANEL_WIDTH, PANEL_HEIGHT, BAR, LONGEST, LONGEST_TEXT, MARGIN = 4.2, 1.9, 0.24, 4.6, 4.0, 0.15
LONGEST_NAME = 40  # characters
NAMES_SHOWN = 2


def draw_lengths(path: pathlib.Path, splits: Mapping[str, Mapping[str, Any]]) -> None:
    """A histogram of episode lengths for each split; what gives no window is in another colour.

    Args:
        path: the PNG.
        splits: title -> {"lengths": {"edges", "used", "left_out", "median", "mean"}, "span"}.
    """
    columns = min(2, len(splits))
    rows = -(-len(splits) // columns)
    size = {"width": PANEL_WIDTH * columns, "height": PANEL_HEIGHT * rows + 0.4}
    with picture(path, **size) as figure:
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
        for panel, (title, split) in zip(panels, splits.items(), strict=False):
            _draw_lengths(panel, split)
            panel.set_title(title, loc="left", fontweight="bold")
        for panel in panels[len(splits) :]:
            panel.set_visible(False)
        handles = [
            Patch(color=USED, label="episodes with windows"),
            Patch(color=LEFT_OUT, label="episodes left out"),
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=2)


def _draw_lengths(panel: Axes, split: Mapping[str, Any]) -> None:
    lengths = split["lengths"]
    edges = np.array(lengths["edges"]) - 0.5  # a bar stands around its whole number
    used, left_out = np.array(lengths["used"]), np.array(lengths["left_out"])
    panel.stairs(used, edges, fill=True, color=USED)
    panel.stairs(used + left_out, edges, baseline=used, fill=True, color=LEFT_OUT)
    top = 1.3 * max(1, (used + left_out).max())
    panel.set_ylim(0, top)
    low, high = min(edges[0], split["span"] - 1), edges[-1]
    margin = max(1.0, 0.02 * (high - low))
    panel.set_xlim(low - margin, high + margin)
    for place, label, level in (
        (split["span"], f"a window needs {split['span']}", 0.99),
        (lengths["median"], f"median {lengths['median']:g}", 0.88),
    ):
        panel.axvline(place, ymax=level, color=INK, linewidth=0.8, linestyle=":")
        right = place > (low + high) / 2
        panel.text(
            place,
            level * top,
            f"{label} " if right else f" {label}",
            fontsize=7,
            ha="right" if right else "left",
            va="top",
        )
    panel.set_xlabel("stored steps")
    panel.set_ylabel("episodes")
    panel.xaxis.get_major_locator().set_params(integer=True)
    panel.yaxis.get_major_locator().set_params(integer=True)


def draw_instructions(
    path: pathlib.Path, counts: Mapping[str, Sequence[tuple[str, int]]], *, title: str
) -> None:
    """Horizontal bars: how many episodes have each instruction.

    Args:
        path: the PNG.
        counts: split -> (instruction, episodes), most frequent first; an empty text is none.
        title: of the picture.
    """
    blocks = [(f"{split}, episodes", list(found)) for split, found in counts.items()]
    labels = [_instruction(text) for _, found in blocks for text, _ in found]
    left = MARGIN + max(text_size(label)[0] for label in labels) + 0.1
    width = left + LONGEST + 0.6
    height = 0.3 + sum(BAR * len(found) + 0.5 for _, found in blocks)
    most = max(count for _, found in blocks for _, count in found)
    with picture(path, width=width, height=height, layout="none") as figure:
        figure.text(MARGIN / width, 1 - 0.25 / height, title, fontsize=9)
        top = height - 0.2
        for split, found in blocks:
            top -= 0.4
            tall = BAR * len(found)
            axes = add_axes(figure, left, top - tall, LONGEST, tall)
            axes.set_title(split, loc="left", fontweight="bold")
            _draw_bars(axes, [_instruction(text) for text, _ in found], [n for _, n in found])
            for tick, (text, _) in zip(axes.get_yticklabels(), found, strict=True):
                tick.set_color(INK if text.strip() else LEFT_OUT)
            axes.set_xlim(0, most)
            top -= tall + 0.1


def _instruction(text: str) -> str:
    return fit_text(text, LONGEST_TEXT) or "(no instruction)"


def _draw_bars(axes: Axes, labels: Sequence[str], counts: Sequence[int]) -> None:
    places = np.arange(len(labels))
    axes.barh(places, counts, height=0.72, color=USED)
    for place, count in zip(places, counts, strict=True):
        axes.annotate(
            f"{count:,}",
            (count, place),
            xytext=(3, 0),
            textcoords="offset points",
            va="center",
            fontsize=7,
        )
    axes.set_yticks(places, labels)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def draw_left_out(path: pathlib.Path, splits: Mapping[str, Mapping[str, Any]]) -> None:
    """For each split its episodes in one bar, used and left out, and below it why.

    Args:
        path: the PNG.
        splits: title -> {"stored", "episodes" (with windows), "windows", "left_out": [{"reason",
            "episodes", "names"}]}.
    """
    lines = {title: _reasons(split) for title, split in splits.items()}
    texts = [text for found in lines.values() for text, _ in found]
    width = MARGIN * 2 + max(LONGEST + 2, *(text_size(text, points=7)[0] for text in texts))
    heights = {title: 0.62 + 0.17 * len(found) for title, found in lines.items()}
    height = sum(heights.values()) + MARGIN
    with picture(path, width=width, height=height, layout="none") as figure:
        top = height - 0.05
        for title, split in splits.items():
            axes = add_axes(figure, MARGIN, top - 0.5, width - 2 * MARGIN, 0.2)
            _draw_shares(axes, split)
            head = f"{split['stored']:,} episodes, {split['windows']:,} windows"
            axes.set_title(f"{title}: {head}", loc="left", fontweight="bold")
            for number, (text, colour) in enumerate(lines[title]):
                place = (top - 0.64 - 0.17 * number) / height
                figure.text(MARGIN / width, place, text, fontsize=7, color=colour)
            top -= heights[title]


def _reasons(split: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Lines below a bar, each with its colour."""
    used = split["episodes"]
    lines = [(f"{used:,} with windows ({used / split['stored']:.1%})", USED)]
    for found in split["left_out"]:
        shown = found["names"][:NAMES_SHOWN]
        names = ", ".join(_tail(name) for name in shown)
        more = found["episodes"] - len(shown)
        names += f" and {more:,} more" if more else ""
        share = found["episodes"] / split["stored"]
        text = f"{found['episodes']:,} left out ({share:.1%}), {found['reason']}: {names}"
        lines.append((text, LEFT_OUT))
    if not split["left_out"]:
        lines.append(("nothing was left out", INK))
    return lines


def _tail(name: str) -> str:
    """The end of a long name, which is often a path."""
    name = name.replace("$", r"\$")
    return name if len(name) <= LONGEST_NAME else f"...{name[3 - LONGEST_NAME :]}"


def _draw_shares(axes: Axes, split: Mapping[str, Any]) -> None:
    begin = split["episodes"]
    axes.barh(0, begin, color=USED)
    for number, found in enumerate(split["left_out"]):
        hatch = ("", "////", "....")[number % 3]
        axes.barh(0, found["episodes"], left=begin, color=LEFT_OUT, hatch=hatch, edgecolor="white")
        begin += found["episodes"]
    axes.set_xlim(0, split["stored"])
    axes.set_ylim(-0.4, 0.4)
    axes.set_facecolor(GROUND)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
