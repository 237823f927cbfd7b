"""Reports on the data of a config as aligned text of at most 100 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from roam_jax.cli.describe_text import WIDTH

FIGURES = {
    "mean": "mean",
    "std": "std",
    "minimum": "min",
    "maximum": "max",
    "q01": "q01",
    "q99": "q99",
}
NAME, UNIT, KIND, FIGURE, CLIPPED = 12, 9, 9, 10, 8
INSTRUCTIONS_PRINTED = 5


def data_lines(report: Mapping[str, Any]) -> Iterator[str]:
    """The report of `describe --what data`, member by member."""
    window, members = report["window"], report["members"]
    height, width = window["image_size"]
    yield f"{report['name']}: {len(members)} dataset{'s' if len(members) > 1 else ''}"
    yield from _wrapped(
        f"a window: {window['frames']} frames of {height} x {width} pixels, "
        f"{window['observed_frames']} of them observed; cameras {', '.join(window['cameras'])}; "
        f"goal {window['goal']}; text {window['text'] or 'not named yet (data.text is empty)'}"
    )
    if window["augment"]:
        settings = ", ".join(f"{name} {value:g}" for name, value in window["augment"].items())
        yield from _wrapped(f"augmented in training: {settings}")
    yield f"  a run of this config draws {report['windows']:,} windows"
    if len(members) > 1:
        yield ""
        yield from mixture_lines(members)
    for member in members:
        yield ""
        yield from member_lines(member)


def mixture_lines(members: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """A line for each member: its share, and how often it is seen."""
    width = 2 + max(6, *(len(member["name"]) for member in members))
    slowest = min(member["epochs"] for member in members)
    yield (
        f"  {'member':<{width}}{'weight':>8}{'windows':>14}{'passes in a run':>18}"
        f"{'to the fewest':>16}"
    )
    for member in members:
        yield (
            f"  {member['name']:<{width}}{member['weight']:>8.1%}"
            f"{member['splits']['train']['windows']:>14,}{member['epochs']:>18.3g}"
            f"{member['epochs'] / slowest:>15.3g}x"
        )


def member_lines(member: Mapping[str, Any]) -> Iterator[str]:
    """Episodes, what was left out, instructions and scaling of one dataset."""
    splits, statistics = member["splits"], member["statistics"]
    train = splits["train"]
    name = f"{member['name']}: " if member["name"] else ""
    yield f"{name}{train['dataset']}, read as {train['declaration']}"
    yield f"  root: {train['root']}"
    sizes = ", ".join(_camera(*item) for item in train["stored_frames"].items())
    yield from _wrapped(f"stored frames: {sizes}")
    yield f"  rate: {train['rate']:g} frames a second"
    if not member["name"]:
        yield f"  passes through its windows in a run: {member['epochs']:.3g}"
    yield from split_lines(splits)
    for split, figures in splits.items():
        for found in figures["left_out"]:
            more = found["episodes"] - len(found["names"])
            names = ", ".join(found["names"]) + (f" and {more:,} more" if more else "")
            text = f"left out of {split}: {found['episodes']:,} of {figures['stored']:,} episodes"
            yield from _wrapped(f"{text}, {found['reason']}: {names}")
    for split, figures in splits.items():
        yield from instruction_lines(split, figures["instructions"])
    yield from statistics_lines(statistics)


def _camera(name: str, shape: Sequence[int | None]) -> str:
    return f"{name} {' x '.join('any' if n is None else str(n) for n in shape[:2])}"


def split_lines(splits: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """A line for each split: how much there is, and how long its episodes are."""
    yield (
        f"  {'split':<8}{'episodes':>10}{'with windows':>14}{'windows':>12}{'steps':>13}"
        f"{'min':>8}{'median':>8}{'mean':>9}{'max':>8}"
    )
    for name, split in splits.items():
        lengths = split["lengths"]
        yield (
            f"  {name:<8}{split['stored']:>10,}{split['episodes']:>14,}{split['windows']:>12,}"
            f"{split['steps']:>13,}{lengths['minimum']:>8,}{lengths['median']:>8g}"
            f"{lengths['mean']:>9.1f}{lengths['maximum']:>8,}"
        )
    span = next(iter(splits.values()))["span"]
    yield (
        f"  (min to max: stored steps of an episode, dropped first ones included; a window needs "
        f"{span})"
    )


def instruction_lines(split: str, instructions: Mapping[str, Any]) -> Iterator[str]:
    """How many instructions there are, and the most frequent ones."""
    yield (
        f"  instructions of {split}: {instructions['distinct']:,} distinct; "
        f"{instructions['empty']:.1%} of the episodes have none"
    )
    for text, count in instructions["frequent"][:INSTRUCTIONS_PRINTED]:
        shown = " ".join(text.split()) or "(no instruction)"
        yield f"    {count:>8,}  {textwrap.shorten(shown, WIDTH - 16, placeholder=' ...')}"


def statistics_lines(statistics: Mapping[str, Any]) -> Iterator[str]:
    """The figures of every dimension, beside known ones, and where they are kept."""
    sampled = statistics["sampled"]["train"]
    yield (
        f"  scaling, from all {statistics['episodes']:,} train episodes at "
        f"{statistics['rate']:g} actions a second"
    )
    head = "".join(f"{title:>{FIGURE}}" for title in FIGURES.values())
    for kind in ("actions", "states"):
        found = statistics[kind]
        title = f"{kind}, {found['count']:,}"
        yield f"  {title:<{NAME + UNIT + KIND}}{head}{'clipped':>{CLIPPED}}"
        for dimension in found["dimensions"]:
            yield _dimension(dimension)
    yield from _wrapped(
        "all but grippers goes to [-1, 1] by q01 and q99, grippers stay in 0..1; clipped: share of "
        f"the numbers of {sampled:,} train episodes outside of that"
    )
    if statistics["published"]:
        yield from _published(statistics["published"])
    yield f"  kept in: {statistics['cache']}"
    yield from _wrapped(statistics["measured"])


def _dimension(dimension: Mapping[str, Any]) -> str:
    figures = "".join(f"{dimension[figure]:>{FIGURE}.3g}" for figure in FIGURES)
    share = dimension["clipped"]["train"]
    clipped = f"{share:.1%}" if share or dimension["kind"] != "gripper" else "-"
    texts = (
        (dimension["name"], NAME),
        (dimension["unit"], UNIT),
        (dimension["kind"], KIND),
    )
    labels = "".join(f"{_shortened(text, width - 1):<{width}}" for text, width in texts)
    return f"  {labels}{figures}{clipped:>{CLIPPED}}"


def _published(published: Mapping[str, Any]) -> Iterator[str]:
    quantiles, names = published["quantiles"], ", ".join(published["datasets"])
    outside = [check for check in quantiles if check["outside"]]
    if not outside:
        yield from _wrapped(
            f"all {len(quantiles)} quantiles of actions lie within 1/3 to 3 times the published "
            f"ones ({names})"
        )
        return
    listed = ", ".join(
        f"{c['name']} {c['quantile']} {c['measured']:.3g} (published {c['published']:.3g})"
        for c in outside
    )
    yield from _wrapped(
        f"{len(outside)} of {len(quantiles)} quantiles of actions lie outside of 1/3 to 3 times "
        f"the published ones ({names}): {listed}"
    )


def _shortened(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 2]}.."


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(
        text, WIDTH, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False
    )
