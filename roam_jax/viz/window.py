"""One window with its time alignment: what is seen when, and what is predicted of it.

All rows share one axis of time. Frames and robot states are moments, latent frames cover some of
them, and actions lead from one frame to the next, so that the line between what is observed and
what is predicted runs half a frame earlier through the actions.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.patches import Rectangle

from roam_jax.viz.figure import (
    INK,
    OBSERVED,
    PREDICTED,
    SERIES,
    add_axes,
    fit_text,
    picture,
    text_size,
)

GOAL = SERIES[0]
COLOURS = "RdBu_r"
# Inches: all frames together at most, a frame at most, a row of numbers, the latent frames, gaps
# between strips and between blocks, what stands above a block of numbers.
STRIP, FRAME, ROW, LATENT, GAP, BREAK, CAPTION = 11.5, 1.25, 0.17, 0.27, 0.06, 0.16, 0.2
# Inches: margin around, title and time axis above, notes below.
MARGIN, HEAD, FOOT = 0.15, 1.0, 0.55
# Longer windows show only the last frame of each latent frame, as wide as all that it covers.
MOST_FRAMES = 21
SMALL = 7.0  # points


@dataclasses.dataclass(frozen=True)
class WindowPicture:
    """What is drawn of a window, in the order of time.

    Args:
        strips: row -> frames, such as a camera or an augmented camera.
        goal: row -> its goal frame; empty without goals.
        goal_label: what the goal is.
        past_actions, action_chunk: normalised; from the first frame on, without a break.
        proprio: normalised robot state of each latent frame.
        reward: of each latent frame.
        action_names, proprio_names: of the dimensions.
        observed: frames that are observed.
        rate: frames a second.
    """

    strips: Mapping[str, UInt8[np.ndarray, "T _ _ 3"]]
    goal: Mapping[str, UInt8[np.ndarray, "_ _ 3"]]
    goal_label: str
    past_actions: Float[np.ndarray, "past A"]
    action_chunk: Float[np.ndarray, "chunk A"]
    proprio: Float[np.ndarray, "F S"]
    reward: Float[np.ndarray, " F"]
    action_names: Sequence[str]
    proprio_names: Sequence[str]
    observed: int
    rate: float

    @property
    def frames(self) -> int:
        """T."""
        return len(next(iter(self.strips.values())))

    @property
    def per_latent(self) -> int:
        """Frames that a latent frame covers, but for the first."""
        return (self.frames - 1) // (len(self.proprio) - 1)

    @property
    def shown(self) -> range:
        """Frames that are drawn."""
        return range(0, self.frames, 1 if self.frames <= MOST_FRAMES else self.per_latent)


def draw_window(path: pathlib.Path, window: WindowPicture, *, title: str) -> None:
    """Frames, latent frames, actions, robot state and reward of a window over one axis of time.

    Args:
        path: the PNG.
        window: what is drawn.
        title: of the picture.
    """
    every = window.shown.step
    second = min(FRAME / every, STRIP / window.frames)  # inches of a frame's time
    labels = [*window.strips, *window.action_names, *window.proprio_names, "latent frames"]
    # A picture ends where its frame does; the first begins before the first frame where it is wide.
    left = MARGIN + max(text_size(label)[0] for label in labels) + 0.15 + second * (every - 1)
    heights = {n: second * every * f.shape[1] / f.shape[2] for n, f in window.strips.items()}
    goal_width = second * every + 0.35 if window.goal else 0.0
    rows = len(window.action_names) + len(window.proprio_names) + 1
    body = sum(heights.values()) + GAP * len(heights) + LATENT + ROW * rows
    width = max(left + second * window.frames + max(goal_width, 0.8) + MARGIN, 6.5)
    height = HEAD + body + 2 * (BREAK + CAPTION) + FOOT
    with picture(path, width=width, height=height, layout="none") as figure:
        axes = add_axes(figure, 0, 0, width, height)
        axes.set_xlim(0, width)
        axes.set_ylim(height, 0)
        axes.axis("off")
        drawing = _Drawing(axes, window, left=left, scale=second)
        title = fit_text(title, width - 2 * MARGIN, points=9)
        axes.text(MARGIN, 0.22, title, fontsize=9, fontweight="bold", va="center")
        drawing.time_axis(HEAD)
        bottom = drawing.strips(HEAD, heights)
        top = drawing.latent_frames(bottom) + BREAK + CAPTION
        bottom = drawing.actions(top)
        bar = add_axes(
            figure, drawing.x(window.frames - 0.5) + 0.2, height - bottom, 0.1, bottom - top
        )
        bottom = drawing.rewards(drawing.states(bottom + BREAK + CAPTION))
        drawing.boundary(HEAD - 0.42, bottom)
        drawing.notes(bottom + 0.25)
        colours = ScalarMappable(Normalize(-1, 1), COLOURS)
        figure.colorbar(colours, cax=bar, ticks=[-1, 0, 1]).outline.set_visible(False)


class _Drawing:
    """Rows in inches from the top left; `x(frame)` is the middle of a frame."""

    def __init__(self, axes: Axes, window: WindowPicture, *, left: float, scale: float):
        self._axes, self._window = axes, window
        self._left, self._scale = left, scale
        # Where the pictures of frames begin; from the middle of a frame to that of its picture.
        self._edge = left - scale * (window.shown.step - 1)
        self._shift = scale * (window.shown.step - 1) / 2
        # The line between observed and predicted: (x, y) from top to bottom.
        self._line: list[tuple[float, float]] = []

    def x(self, frame: float) -> float:
        """Inches from the left to the middle of a frame's time."""
        return self._left + (frame + 0.5) * self._scale

    def time_axis(self, bottom: float) -> None:
        """Numbers and seconds of the frames, above `bottom`."""
        window = self._window
        for frame in window.shown:
            seen = frame < window.observed
            label = f"frame {frame}" if window.shown.step * self._scale > 0.55 else f"{frame}"
            self._axes.text(
                self.x(frame) - self._shift,
                bottom - 0.08,
                f"{label}\n{frame / window.rate:.3g} s",
                fontsize=SMALL,
                ha="center",
                va="bottom",
                color=OBSERVED if seen else PREDICTED,
            )

    def strips(self, top: float, heights: Mapping[str, float]) -> float:
        """Frames, and goals beside them, from `top` down; returns where they end, in inches."""
        window, half = self._window, self._window.shown.step * self._scale / 2 - 0.025
        for name, frames in window.strips.items():
            middle = top + heights[name] / 2
            self._label(name, middle, bold=True)
            for frame in window.shown:
                colour = OBSERVED if frame < window.observed else PREDICTED
                x = self.x(frame) - self._shift
                self._image(frames[frame], x, middle, half, heights[name], colour)
            if name in window.goal:
                place = self.x(window.frames - 0.5 + window.shown.step / 2) + 0.2
                self._image(window.goal[name], place, middle, half, heights[name], GOAL)
                below = top + heights[name] + 0.04
            top += heights[name] + GAP
        if window.goal:
            self._axes.text(
                place, below, window.goal_label, color=GOAL, ha="center", va="top", fontsize=SMALL
            )
        return top

    def _image(self, frame, x: float, y: float, half: float, height: float, colour: str) -> None:
        """A framed picture around (x, y), `half` its width to either side."""
        tall = height / 2 - 0.02
        extent = (x - half, x + half, y + tall, y - tall)
        self._axes.imshow(frame, extent=extent, interpolation="nearest", aspect="auto", zorder=2)
        self._box(x - half, y - tall, 2 * half, 2 * tall, edge=colour, linewidth=1.4)

    def latent_frames(self, top: float) -> float:
        """What each latent frame covers, from `top` down; returns where it ends, in inches."""
        window, each = self._window, self._window.per_latent
        self._label("latent frames", top + LATENT / 2)
        self._line.append((self.x(window.observed - 0.5), top + LATENT))
        for k in range(len(window.proprio)):
            first, last = (0, 0) if k == 0 else (each * (k - 1) + 1, each * k)
            colour = OBSERVED if last < window.observed else PREDICTED
            x = self.x(first - 0.5) + 0.025
            width = (last - first + 1) * self._scale - 0.05
            self._axes.add_patch(
                Rectangle((x, top), width, LATENT, color=colour, alpha=0.16, linewidth=0)
            )
            whole = f"latent {k}" if width > 0.55 else f"{k}"
            name = f"{whole} (frames {first} to {last})" if width > 1.9 else whole
            self._axes.text(
                x + width / 2, top + LATENT / 2, name, ha="center", va="center", fontsize=SMALL
            )
        return top + LATENT

    def actions(self, top: float) -> float:
        """A row for each action dimension, from `top` down; returns where they end, in inches."""
        window, past = self._window, len(self._window.past_actions)
        chunk = len(window.action_chunk)
        tall = ROW * len(window.action_names)
        for i, name in enumerate(window.action_names):
            self._label(name, top + ROW * (i + 0.5))
        rows = np.concatenate([window.past_actions, window.action_chunk])
        self._cells(rows, [self.x(i) for i in range(past + chunk)], self._scale, top)
        for first, count, colour, label in (
            (0, past, OBSERVED, "past actions: input"),
            (past, chunk, PREDICTED, "action chunk: predicted, its first is that at t_current"),
        ):
            if count:
                x = self.x(first) + 0.02
                self._box(x, top, count * self._scale - 0.04, tall, edge=colour, linewidth=1.6)
                self._axes.text(x, top - 0.04, label, color=colour, va="bottom", fontsize=SMALL)
        self._line += [(self.x(past), top - CAPTION), (self.x(past), top + tall + 0.04)]
        return top + tall

    def states(self, top: float) -> float:
        """A row for each state dimension, from `top` down; returns where they end, in inches."""
        window, each = self._window, self._window.per_latent
        for i, name in enumerate(window.proprio_names):
            self._label(name, top + ROW * (i + 0.5))
        wide = 0.8 * self._scale * min(1, each)
        places = [self.x(each * k) - wide / 2 for k in range(len(window.proprio))]
        self._cells(window.proprio, places, wide, top)
        tall = ROW * len(window.proprio_names)
        for k, x in enumerate(places):
            colour = OBSERVED if each * k < window.observed else PREDICTED
            self._box(x, top, wide, tall, edge=colour, linewidth=1.6)
        self._axes.text(
            places[0], top - 0.04, "robot state at latent frames", va="bottom", fontsize=SMALL
        )
        return top + tall

    def rewards(self, top: float) -> float:
        """Numbers in one row from `top` down; returns where it ends, in inches."""
        window, each = self._window, self._window.per_latent
        self._label("reward", top + ROW / 2)
        for k, reward in enumerate(window.reward.tolist()):
            colour = OBSERVED if each * k < window.observed else PREDICTED
            self._axes.text(
                self.x(each * k),
                top + ROW / 2,
                f"{reward:.3g}",
                ha="center",
                va="center",
                fontsize=SMALL,
                color=colour,
            )
        return top + ROW

    def boundary(self, top: float, bottom: float) -> None:
        """The line at t_current, a step to the left where it meets the actions."""
        window = self._window
        now = self.x(window.observed - 0.5)
        line = [(now, top), *self._line, (now, self._line[-1][1] + BREAK / 2), (now, bottom)]
        self._axes.plot(*zip(*line, strict=True), color=INK, linewidth=1.1, linestyle="--")
        self._axes.text(now, top - 0.03, "t_current", ha="center", va="bottom", fontsize=8)

    def notes(self, middle: float) -> None:
        """What the colours of frames and the numbers are."""
        x = self._edge
        notes = [("observed", OBSERVED), ("predicted", PREDICTED)]
        notes += [("a picture of the goal", GOAL)] if self._window.goal else []
        scale = "numbers in [-1, 1] by q01 and q99; grippers 1 open, 0 closed, 0.5 undecided"
        for text, colour in [*notes, (scale, INK)]:
            self._axes.text(x, middle, text, fontsize=SMALL, va="center", color=colour)
            x += text_size(text, points=SMALL)[0] + 0.25

    def _cells(self, rows: np.ndarray, places: Sequence[float], wide: float, top: float) -> None:
        """A column of coloured cells for each row of numbers, its left side at its place."""
        for values, x in zip(rows, places, strict=True):
            self._axes.pcolormesh(
                [x, x + wide],
                top + ROW * np.arange(len(values) + 1),
                values[:, None],
                cmap=COLOURS,
                vmin=-1,
                vmax=1,
                edgecolor="white",
                linewidth=0.5,
            )

    def _label(self, text: str, y: float, *, bold: bool = False) -> None:
        """The name of a row, left of the frames."""
        weight = "bold" if bold else "normal"
        self._axes.text(
            self._edge - 0.08, y, text, ha="right", va="center", fontsize=SMALL, fontweight=weight
        )

    def _box(self, x, y, width, height, *, edge: str, linewidth: float) -> None:
        """An empty box over what is drawn; (x, y) is its top left."""
        box = Rectangle((x, y), width, height, fill=False, edgecolor=edge, linewidth=linewidth)
        box.set_zorder(3)
        self._axes.add_patch(box)
