"""Whole episodes at a glance: a few frames of each, camera below camera."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import UInt8

from roam_jax.viz.figure import add_axes, fit_text, picture, text_size
from roam_jax.viz.frames import GAP, draw_strip

# Inches: a frame's width, a title with its gap above, the labels below, the margin around.
FRAME, TITLE, LABELS, MARGIN = 1.3, 0.34, 0.2, 0.12


def draw_episodes(
    path: pathlib.Path,
    episodes: Sequence[Mapping[str, UInt8[np.ndarray, "T _ _ 3"]]],
    *,
    titles: Sequence[str],
    labels: Sequence[Sequence[str]],
) -> None:
    """Strips of frames, one a camera and episode.

    Args:
        path: the PNG.
        episodes: camera -> frames in time, as many of each; cameras may differ in size.
        titles: of the episodes.
        labels: of the frames of each episode.
    """
    cameras = list(episodes[0])
    left = MARGIN + max(text_size(camera)[0] for camera in cameras) + 0.1
    heights = {name: FRAME * _aspect(frames) for name, frames in episodes[0].items()}
    block = TITLE + sum(heights.values()) + LABELS
    width = left + FRAME * max(map(len, labels)) + MARGIN
    height = block * len(episodes) + MARGIN
    with picture(path, width=width, height=height, layout="none") as figure:
        for number, episode in enumerate(episodes):
            top = height - block * number - TITLE
            title = fit_text(titles[number], width - left - MARGIN)
            figure.text(left / width, (top + 0.07) / height, title, fontweight="bold")
            for camera, frames in episode.items():
                top -= heights[camera]
                axes = add_axes(figure, left, top, FRAME * len(frames), heights[camera])
                draw_strip(axes, frames, bottom=0)
                axes.set_xlim(-0.5, len(frames) - 0.5)
                axes.set_ylim(0, 1)
                axes.set_aspect("auto")
                axes.set_yticks([0.5], [camera])
                axes.set_xticks([])
                axes.tick_params(length=0)
                axes.spines[:].set_visible(False)
            axes.set_xticks(np.arange(len(frames)), labels[number], fontsize=7)


def _aspect(frames: np.ndarray) -> float:
    """Height of a frame in units of its width; the gap around it is the same on all sides."""
    height, width = frames.shape[1:3]
    return (height / width) * (1 - GAP) + GAP
