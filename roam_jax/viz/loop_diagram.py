"""One loop as a picture: what a round reads, where it may end, and where gradients stop.

The picture of docs/loops.md; `draw_loop(path)` makes it.
"""

from __future__ import annotations

import pathlib

from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch

from roam_jax.viz.figure import FAINT, INK, SERIES, picture

# Inches: a round and the gap to the next one; a box; the heights of what is drawn.
STEP, BOX_WIDTH, BOX_HEIGHT = 1.95, 1.05, 0.5
BLOCK_Y, SKIP_Y, EXIT_Y = 1.5, 2.3, 0.55
LOOP, REINJECT, HALT, STUDENT, CUT = SERIES[0], SERIES[2], SERIES[5], SERIES[3], FAINT


def draw_loop(path: pathlib.Path, *, rounds: int = 4, backprop_rounds: int = 2) -> None:
    """One block of a model with all that may be asked of its loop.

    Args:
        path: the PNG.
        rounds: how many are drawn.
        backprop_rounds: of how many of the last gradients flow.
    """
    width, height = STEP * rounds + 2.3, 3.2
    with picture(path, width=width, height=height, layout="none") as figure:
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        axes.set_xlim(0, width)
        axes.set_ylim(0, height)
        first = 1.15
        _box(axes, first - 0.72, BLOCK_Y, "$h_0$", width=0.5, colour=INK)
        for number in range(rounds):
            _round(axes, first + STEP * number, number + 1, last=number + 1 == rounds)
        end = first + STEP * rounds
        _box(axes, end + 0.52, EXIT_Y, "$\\sum_r w_r h_r$", width=1.0, colour=HALT)
        axes.annotate(
            "",
            (end, EXIT_Y),
            (first + BOX_WIDTH + 0.32, EXIT_Y),
            arrowprops={"arrowstyle": "->", "color": HALT},
        )
        axes.plot((first - 0.72, end - STEP + 0.55), (SKIP_Y, SKIP_Y), color=REINJECT, lw=1.2)
        axes.plot((first - 0.72,) * 2, (BLOCK_Y + 0.27, SKIP_Y), color=REINJECT, lw=1.2)
        axes.text(first - 0.8, SKIP_Y + 0.08, "loop.reinject: $+\\,s_r h_0$", color=REINJECT)
        border = first + STEP * (rounds - backprop_rounds) - 0.3
        axes.axvline(border, 0.07, 0.92, color=CUT, linestyle=":", lw=1.2)
        axes.text(
            border + 0.06, height - 0.28, f"loop.backprop_rounds = {backprop_rounds}", color=INK
        )
        _arrow(axes, (border + 2.3, height - 0.36), (border + 0.06, height - 0.36), INK)
        axes.text(
            0.1,
            0.08,
            "loop.halting: after round r a cell stops with $w_r$",
            color=HALT,
            va="bottom",
        )
        axes.text(
            width - 0.1,
            0.08,
            "loop.self_distillation: the last round teaches an exit",
            color=STUDENT,
            va="bottom",
            ha="right",
        )


def _round(axes: Axes, left: float, number: int, *, last: bool) -> None:
    """A round: the block behind its gate, and how it may end."""
    centre = left + BOX_WIDTH / 2
    _box(axes, centre, BLOCK_Y, f"block$(h + e_{number})$", width=BOX_WIDTH, colour=LOOP)
    _arrow(axes, (left - 0.45, BLOCK_Y), (left, BLOCK_Y), INK)
    _arrow(axes, (centre, SKIP_Y), (centre, BLOCK_Y + BOX_HEIGHT / 2), REINJECT)
    state = left + BOX_WIDTH + 0.32
    _arrow(axes, (left + BOX_WIDTH, BLOCK_Y), (state - 0.08, BLOCK_Y), INK)
    axes.text(state, BLOCK_Y, f"$h_{number}$", va="center", ha="center", color=INK)
    axes.text(left + BOX_WIDTH + 0.05, BLOCK_Y + 0.06, f"$a_{number}$", color=LOOP, va="bottom")
    _arrow(axes, (state, BLOCK_Y - 0.14), (state, EXIT_Y + 0.06), HALT)
    axes.text(state + 0.05, (BLOCK_Y + EXIT_Y) / 2, f"$w_{number}$", color=HALT, va="center")
    if last:
        axes.annotate(
            "",
            (state - STEP + 0.06, BLOCK_Y - 0.14),
            (state - 0.04, BLOCK_Y - 0.14),
            arrowprops={
                "arrowstyle": "->",
                "color": STUDENT,
                "linestyle": "--",
                "connectionstyle": "arc3,rad=-0.42",
            },
        )


def _box(axes: Axes, x: float, y: float, text: str, *, width: float, colour: str) -> None:
    corner = (x - width / 2, y - BOX_HEIGHT / 2)
    style = "round,pad=0,rounding_size=0.08"
    axes.add_patch(
        FancyBboxPatch(corner, width, BOX_HEIGHT, boxstyle=style, fc="white", ec=colour, lw=1.2)
    )
    axes.text(x, y, text, ha="center", va="center", color=colour)


def _arrow(axes: Axes, begin: tuple[float, float], end: tuple[float, float], colour: str) -> None:
    axes.annotate("", end, begin, arrowprops={"arrowstyle": "->", "color": colour})
