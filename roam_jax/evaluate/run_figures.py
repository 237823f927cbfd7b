"""Figures of evaluations side by side: what several groups of runs have been measured for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from roam_jax.evaluate.run_records import Evaluated, Group, read_report
from roam_jax.evaluate.seeds import SEEDS, estimate_seeds, format_seeds
from roam_jax.viz.page import Table, number


def report_text(one: Evaluated) -> str:
    """A report as the table that `eval.py` prints; plain lines where its layout is older.

    Raises:
        ValueError: as `read_report`.
    """
    report = read_report(one)
    try:
        return format_seeds(report)
    except (KeyError, TypeError, ValueError):
        return "\n".join(f"{name:<60} {text}" for name, text in _figures(report).items())


def comparison(groups: Sequence[Group]) -> Iterator[tuple[str, Table]]:
    """Kind of report, and the figures that at least two groups have in the last one of this kind.

    Raises:
        ValueError: as `read_report`.
    """
    kinds: dict[str, dict[str, dict[str, str]]] = {}
    for group in groups:
        for kind, figures in _group_figures(group).items():
            kinds.setdefault(kind, {})[group.name] = figures
    for kind, by_group in kinds.items():
        names = dict.fromkeys(name for figures in by_group.values() for name in figures)
        rows = [[name, *(f.get(name, "") for f in by_group.values())] for name in names]
        rows = [row for row in rows if sum(map(bool, row[1:])) > 1]
        if rows:
            yield kind, Table([kind or "figure", *by_group], rows)


def _group_figures(group: Group) -> dict[str, dict[str, str]]:
    """Kind of report -> figure -> text; over seeds where they were not evaluated together."""
    if group.reports:
        return {
            one.kind.removeprefix(SEEDS).lstrip("_"): _figures(read_report(one))
            for one in group.reports
        }
    by_kind: dict[str, list[dict[str, Any]]] = {}
    for run in group.runs:
        for kind, one in {one.kind: one for one in run.reports}.items():
            by_kind.setdefault(kind, []).append(read_report(one))
    return {
        kind: _figures(found[0]) if len(found) == 1 else _over_seeds(found)
        for kind, found in by_kind.items()
    }


def _over_seeds(reports: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Means with intervals over seeds of what all of them have."""
    found = [
        {n: v["mean"] if isinstance(v, Mapping) else v for n, v in _leaves(report["splits"])}
        for report in reports
    ]
    figures = {}
    for name in found[0]:
        values = [each[name] for each in found if name in each]
        if len(set(values)) == 1 and len(values) == len(found):
            figures[name] = number(values[0])  # such as how many examples there were
        elif len(values) == len(found):
            figures[name] = _estimate(estimate_seeds(values).to_json())
    return figures


def _figures(report: Mapping[str, Any]) -> dict[str, str]:
    """Figure -> text, with the interval where it has one."""
    return {
        name: _estimate(value) if isinstance(value, Mapping) else number(value)
        for name, value in _leaves(report["splits"])
    }


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Numbers and estimates of a report, by the path to them; lists are left out."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and not {"mean", "interval"} <= set(value):
            yield from _leaves(value, f"{prefix}{key} / ")
        elif isinstance(value, Mapping | int | float) and not isinstance(value, bool):
            yield f"{prefix}{key}", value


def _estimate(estimate: Mapping[str, Any]) -> str:
    if estimate["interval"] is None:
        return number(float(estimate["mean"]))
    low, high = estimate["interval"]
    return f"{estimate['mean']:.4g} [{low:.4g}, {high:.4g}]"
