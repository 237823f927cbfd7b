"""One self-contained HTML page: tables, texts, pictures, videos, and curves that can be explored.

Style, script and media stand in the page itself, which so needs no network and can be mailed. It
follows the reader's light or dark setting.
"""

from __future__ import annotations

import base64
import dataclasses
import html
import importlib.resources
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

# What a page can show, by the ending of a file.
TYPES = {".png": "image/png", ".gif": "image/gif", ".mp4": "video/mp4"}
BANDS = {
    "range": "median, range of seeds",
    "interval": "mean, 95 % interval (Student)",
    "seeds": "every seed",
}


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of cells; a cell that is no string is a number, and stands on the right.

    Args:
        header: names of the columns.
        rows: cells; numbers are shown with four digits, None is empty.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str | float | int | None]]


@dataclasses.dataclass(frozen=True)
class Text:
    """A text whose columns are aligned.

    Args:
        text: lines.
    """

    text: str


@dataclasses.dataclass(frozen=True)
class Media:
    """Pictures and videos side by side.

    Args:
        files: caption -> a file whose ending is one of `TYPES`.
    """

    files: Mapping[str, pathlib.Path]


@dataclasses.dataclass(frozen=True)
class Fold:
    """Blocks that are shown when their title is clicked.

    Args:
        title: what they are.
        blocks: them.
    """

    title: str
    blocks: Sequence[Block]


@dataclasses.dataclass(frozen=True)
class Curves:
    """Panels with a curve for each group of runs; a page has at most one.

    Args:
        panels: title -> metrics, each of which has a panel.
        groups: {"name", "events": [{"step", "text"}], "runs": [{"seed", "steps", "metrics"}]}, the
            metrics being name -> a value or None for each of the steps.
        student: number of seeds -> Student's factor of a 95 % interval.
    """

    panels: Mapping[str, Sequence[str]]
    groups: Sequence[Mapping[str, Any]]
    student: Mapping[int, float]


Block = Table | Text | Media | Fold | Curves


def render(title: str, about: str, sections: Mapping[str, Sequence[Block]]) -> str:
    """The page.

    Args:
        title: of the page.
        about: a line below it.
        sections: title -> blocks; those without blocks are left out.
    """
    assets = importlib.resources.files("roam_jax") / "assets" / "page"
    style, script = ((assets / name).read_text("utf-8") for name in ("page.css", "page.js"))
    shown = {name: blocks for name, blocks in sections.items() if blocks}
    curves = [b for blocks in shown.values() for b in blocks if isinstance(b, Curves)]
    body = "\n".join(
        line
        for name, blocks in shown.items()
        for line in (f"<section><h2>{html.escape(name)}</h2>", *_blocks(blocks), "</section>")
    )
    tail = [f"<script>\n{script}</script>"] if curves else []
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{html.escape(title)}</title>
<style>
{style}</style>
</head>
<body>
<h1>{html.escape(title)}</h1>
<p class="about">{html.escape(about)}</p>
{body}
{"".join(tail)}
</body>
</html>
"""


def number(value: float) -> str:
    """Four digits, or the whole of a small integer."""
    if isinstance(value, int) and abs(value) < 10**7:
        return f"{value:,}"
    return f"{value:.4g}"


def _blocks(blocks: Sequence[Block]) -> Iterator[str]:
    for block in blocks:
        if isinstance(block, Table):
            yield from _table(block)
        elif isinstance(block, Text):
            yield f"<pre>{html.escape(block.text)}</pre>"
        elif isinstance(block, Media):
            yield from _media(block)
        elif isinstance(block, Fold):
            yield f"<details><summary>{html.escape(block.title)}</summary>"
            yield from _blocks(block.blocks)
            yield "</details>"
        else:
            yield from _curves(block)


def _table(table: Table) -> Iterator[str]:
    numeric = [
        any(not isinstance(row[i], str | None) for row in table.rows)
        for i in range(len(table.header))
    ]
    classes = [' class="number"' if right else "" for right in numeric]

    def cells(row: Sequence[Any], tag: str) -> str:
        shown = ("" if c is None else c if isinstance(c, str) else number(c) for c in row)
        pairs = zip(shown, classes, strict=True)
        return "".join(f"<{tag}{cls}>{html.escape(text)}</{tag}>" for text, cls in pairs)

    yield f'<div class="scroll"><table><thead><tr>{cells(table.header, "th")}</tr></thead><tbody>'
    for row in table.rows:
        yield f"<tr>{cells(row, 'td')}</tr>"
    yield "</tbody></table></div>"


def _media(media: Media) -> Iterator[str]:
    yield '<div class="media">'
    for caption, path in media.files.items():
        kind = TYPES[path.suffix]
        source = f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
        name = html.escape(caption)
        if kind.startswith("video"):
            shown = f'<video src="{source}" controls loop muted playsinline></video>'
        else:
            shown = f'<img src="{source}" alt="{name}">'
        yield f"<figure>{shown}<figcaption>{name}</figcaption></figure>"
    yield "</div>"


def _curves(curves: Curves) -> Iterator[str]:
    data = {"groups": curves.groups, "student": curves.student}
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    text = text.replace("<", "\\u003c")  # "</script>" or "<!--<script>" would change where it ends
    yield f'<script type="application/json" id="data">{text}</script>'
    yield '<div class="controls">'
    yield '<div class="legend">'
    for index, group in enumerate(curves.groups):
        key = f'<span class="key" style="background:var(--s{index % 7})"></span>'
        name = html.escape(group["name"])
        yield f'<button type="button" aria-pressed="true">{key}{name}</button>'
    yield "</div>"
    options = "".join(f'<option value="{key}">{text}</option>' for key, text in BANDS.items())
    yield f'<label>show <select id="band">{options}</select></label>'
    yield (
        '<label>smoothing <input id="smooth" type="range" min="0" max="0.98" step="0.02" value="0">'
        '<span id="smooth-value">0</span></label>'
    )
    yield '<label><input id="log" type="checkbox"> logarithmic</label>'
    yield '<button type="button" id="theme">light / dark</button>'
    yield "</div>"
    yield "<noscript><p>The curves are drawn by JavaScript, which is off here.</p></noscript>"
    for title, metrics in curves.panels.items():
        yield f"<h3>{html.escape(title)}</h3>"
        yield '<div class="charts">'
        for metric in metrics:
            yield f'<div class="chart" data-metric="{html.escape(metric)}"></div>'
        yield "</div>"
