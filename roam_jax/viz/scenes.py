"""Examples of a scene at a glance: frames, what is asked and answered, and curves of the rest.

A scene is known by its streams, words and dimensions alone, so that any of them can be drawn.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Shaped, UInt8
from matplotlib.axes import Axes

from roam_jax.viz.figure import FAINT, OBSERVED, PREDICTED, SERIES, picture
from roam_jax.viz.frames import draw_frame_axis, draw_strip

# Inches: a frame, a panel of curves, a line of text, and what stands around the frames of a band.
FRAME, PANEL, LINE, AROUND = 1.15, 2.5, 0.19, 0.65
LOWEST_BAND = 1.75

Values = Mapping[str, Shaped[np.ndarray, "..."]]
# A name, and for each frame a word and whether it is bold.
Mark = tuple[str, list[tuple[str, bool]]]


@runtime_checkable
class Drawable(Protocol):
    """What a picture needs of a scene.

    Each stream has a name, a kind (patches, vectors, scalars or tokens), a shape, a role, and
    names of its cells; `words` says what tokens mean, `dimensions` what the numbers of vectors are.
    """

    streams: Sequence[Any]
    words: Sequence[str]
    dimensions: Mapping[str, Sequence[str]]

    def groups(self) -> Sequence[Sequence[str]]:
        """Names of streams that belong together, the earlier first."""


def draw_examples(
    path: pathlib.Path,
    scene: Drawable,
    examples: Values,
    titles: Sequence[str],
    *,
    predicted: Values | None = None,
) -> None:
    """A band for each example: its words, its frames, and a panel for every group of numbers.

    What a model is given is framed or shaded in green; predictions stand below frames, behind
    words and as crosses among curves.

    Args:
        path: the PNG.
        scene: whose examples they are.
        examples: stream -> values (B, *shape), as `scene.examples` makes them; streams may be left
            out.
        titles: of the examples.
        predicted: what a model makes of outputs, likewise; None draws the examples alone.
    """
    predicted = predicted or {}
    groups = [
        [stream for stream in scene.streams if stream.name in group and stream.name in examples]
        for group in scene.groups()
    ]
    groups = [group for group in groups if group]
    films = [group for group in groups if group[0].kind == "patches"]
    curves = [group for group in groups if group[0].kind in ("vectors", "scalars")]
    levels = 2 if any(stream.name in predicted for film in films for stream in film) else 1
    lines = 1 + sum(group[0].kind == "tokens" for group in groups)
    height = max(FRAME * levels + AROUND, LOWEST_BAND) + LINE * lines
    width = FRAME * sum(map(_length, films)) + PANEL * len(curves) + 0.3
    with picture(path, width=width, height=height * len(titles)) as figure:
        bands = np.atleast_1d(figure.subfigures(len(titles), 1))
        for i, (band, title) in enumerate(zip(bands, titles, strict=True)):
            true, made = ({name: np.asarray(v[i]) for name, v in of.items()} for of in
                          (examples, predicted))  # fmt: skip
            spoken = list(_spoken(groups, films, scene.words, true, made))
            band.suptitle("\n".join([title, *spoken]), x=0.01, ha="left", fontsize=8.5)
            marks = _marks(groups, films, scene.words, true, made)
            panels = band.subplots(
                1, len(films) + len(curves), squeeze=False,
                width_ratios=[*(FRAME * _length(film) for film in films), *[PANEL] * len(curves)],
            )[0]  # fmt: skip
            for panel, film in zip(panels, films, strict=False):
                _draw_film(panel, film, true, made, levels=levels, marks=marks)
            for panel, group in zip(panels[len(films) :], curves, strict=True):
                _draw_curves(panel, group, true, made, scene.dimensions)


def to_pixels(frames: Float[np.ndarray, "T H W 3"]) -> UInt8[np.ndarray, "T H W 3"]:
    """Values in [-1, 1] as uint8; what lies beyond is cut off."""
    return (np.clip(frames / 2 + 0.5, 0, 1) * 255 + 0.5).astype(np.uint8)


def _length(group: Sequence[Any]) -> int:
    return sum(stream.shape[0] for stream in group)


def _joined(group: Sequence[Any], *values: Values) -> np.ndarray:
    """A group's values in time; of each stream those of the last mapping that has it."""
    best = {name: value for of in values for name, value in of.items()}
    return np.concatenate([best[stream.name] for stream in group])


def _seen(group: Sequence[Any]) -> int:
    """How many of a group's steps are given to a model."""
    return sum(stream.shape[0] for stream in group if stream.role == "input")


def _draw_film(
    axes: Axes,
    film: Sequence[Any],
    true: Values,
    made: Values,
    *,
    levels: int,
    marks: Sequence[Mark],
) -> None:
    """Frames, predicted ones below, and under them the marks."""
    total = _length(film)
    draw_strip(axes, to_pixels(_joined(film, true)), bottom=levels - 1)
    if levels > 1:
        draw_strip(axes, to_pixels(_joined(film, true, made)), bottom=0)
    draw_frame_axis(axes, np.arange(total), observed=_seen(film), levels=levels)
    axes.set_yticks(
        np.arange(levels) + 0.5, ["predicted", "true"][-levels:] if levels > 1 else [""]
    )
    axes.set_aspect("equal")
    for row, (name, line) in enumerate(marks):
        place = {"xytext": (0, -22 - 11 * row), "textcoords": "offset points", "va": "center"}
        axes.annotate(name, (-0.55, 0), ha="right", annotation_clip=False, **place)
        for frame, (word, bold) in enumerate(line):
            look = {"color": PREDICTED, "fontweight": "bold"} if bold else {"color": FAINT}
            axes.annotate(word, (frame, 0), ha="center", **place, **look)


def _draw_curves(
    axes: Axes,
    group: Sequence[Any],
    true: Values,
    made: Values,
    dimensions: Mapping[str, Sequence[str]],
) -> None:
    """A line for each dimension, over all steps of the group."""
    whole = _joined(group, true)
    whole = whole.reshape(len(whole), -1)
    names = dimensions.get(group[0].name, [None] * whole.shape[1])
    if seen := _seen(group):
        axes.axvspan(-0.5, seen - 0.5, color=OBSERVED, alpha=0.1, linewidth=0)
    for d, name in enumerate(names):
        line = {"color": SERIES[d % len(SERIES)], "linewidth": 1}
        axes.plot(whole[:, d], marker="o", markersize=2.5, label=name, **line)
        start = 0
        for stream in group:
            if stream.name in made:
                values = made[stream.name].reshape(stream.shape[0], -1)[:, d]
                steps = np.arange(start, start + len(values))
                axes.plot(steps, values, marker="x", markersize=4, linestyle=":", **line)
            start += stream.shape[0]
    axes.set_xlim(-0.5, len(whole) - 0.5)
    axes.set_title(", ".join(stream.name for stream in group))
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.tick_params(labelsize=6.5, length=2)
    if names[0]:
        axes.legend(fontsize=6, ncols=2, handlelength=1.0, columnspacing=0.8, borderpad=0.1)


def _of_frames(stream: Any, films: Sequence[Sequence[Any]]) -> bool:
    """Whether a stream's tokens are each of one frame that is shown."""
    names = tuple(stream.cell_names)
    return any(names == tuple(f"frame {i}" for i in range(_length(film))) for film in films)


def _tokens(groups: Sequence[Sequence[Any]]) -> list[Any]:
    return [stream for group in groups for stream in group if stream.kind == "tokens"]


def _spoken(
    groups: Sequence[Sequence[Any]],
    films: Sequence[Sequence[Any]],
    words: Sequence[str],
    true: Values,
    made: Values,
) -> Iterator[str]:
    """A line for each stream of tokens that are not each of one frame."""
    for stream in _tokens(groups):
        if _of_frames(stream, films):
            continue
        said = [words[token] for token in true[stream.name]]
        if stream.name in made:
            guesses = [words[token] for token in made[stream.name]]
            said = [
                f"{word} (predicted {guess})" if word != guess else f"{word} (as predicted)"
                for word, guess in zip(said, guesses, strict=True)
            ]
        if not stream.cell_names:
            yield f"{stream.name}: {' '.join(said)}"
            continue
        named = [f"{n}: {w}" for n, w in zip(stream.cell_names, said, strict=True)]
        yield f"{stream.name}:   {',   '.join(named)}"


def _marks(
    groups: Sequence[Sequence[Any]],
    films: Sequence[Sequence[Any]],
    words: Sequence[str],
    true: Values,
    made: Values,
) -> list[Mark]:
    """Streams with a word a frame; bold are those of the vocabulary's last."""
    marks = []
    for stream in _tokens(groups):
        if not _of_frames(stream, films):
            continue
        for name, of in ((stream.name, true), ("predicted", made)):
            if stream.name in of:
                tokens = of[stream.name]
                line = [(words[t], bool(t == stream.vocabulary - 1)) for t in tokens]
                marks.append((name, line))
    return marks
