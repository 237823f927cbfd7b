"""Several versions of the same clips beside each other, as the frames of one video."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, UInt8
from matplotlib.colors import to_rgb
from PIL import Image, ImageDraw

from roam_jax.viz.figure import INK, OBSERVED, PREDICTED

# Tiles are enlarged by a whole number to at least so many pixels of height.
TILE = 128
BORDER, HEADER, LINE = 3, 6, 12


def side_by_side(
    strips: Mapping[str, UInt8[np.ndarray, "windows T H W 3"]], *, observed: int
) -> UInt8[np.ndarray, "T rows columns 3"]:
    """A row for each window and a column, with its name on top, for each version.

    Args:
        strips: name -> frames, all of one shape; a newline in a name begins a line.
        observed: how many frames were shown to the model; the border is green while they run and
            red after.

    Returns:
        Frames of an even number of rows and columns, as video coders want them.
    """
    count, total = next(iter(strips.values())).shape[:2]
    seen = np.broadcast_to(np.arange(total) < observed, (count, total))
    return bordered(strips, dict.fromkeys(strips, seen))


def bordered(
    strips: Mapping[str, UInt8[np.ndarray, "windows T H W 3"]],
    green: Mapping[str, Bool[np.ndarray, "windows T"]],
) -> UInt8[np.ndarray, "T rows columns 3"]:
    """As `side_by_side`, with borders by frame.

    Args:
        strips: as there.
        green: name -> frames whose border is green; that of the others is red.
    """
    count, total, height, width, _ = next(iter(strips.values())).shape
    scale = max(1, -(-TILE // height))
    tall, wide = height * scale + 2 * BORDER, width * scale + 2 * BORDER
    lines = max(name.count("\n") + 1 for name in strips)
    top = HEADER + LINE * lines
    size = top + count * tall, len(strips) * wide
    video = np.full((total, *(side + side % 2 for side in size), 3), 255, np.uint8)
    video[:, :top] = _header(list(strips), height=top, width=video.shape[2], wide=wide)
    for t in range(total):
        for column, (name, frames) in enumerate(strips.items()):
            for row in range(count):
                colour = to_rgb(OBSERVED if green[name][row, t] else PREDICTED)
                tile = np.empty((tall, wide, 3), np.uint8)
                tile[:] = np.round(np.array(colour) * 255).astype(np.uint8)
                enlarged = frames[row, t].repeat(scale, axis=0).repeat(scale, axis=1)
                tile[BORDER:-BORDER, BORDER:-BORDER] = enlarged
                y, x = top + row * tall, column * wide
                video[t, y : y + tall, x : x + wide] = tile
    return video


def _header(
    names: list[str], *, height: int, width: int, wide: int
) -> UInt8[np.ndarray, "rows columns 3"]:
    """The names, each above its column."""
    image = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(image)
    for column, name in enumerate(names):
        draw.multiline_text((column * wide + BORDER, 2), name, fill=INK, spacing=1)
    return np.asarray(image)
