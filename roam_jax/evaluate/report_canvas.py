"""The part of a report on a canvas model, as a table for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from roam_jax.evaluate.report_rounds import measure_lines, rounds_used_lines
from roam_jax.evaluate.report_video import interval
from roam_jax.evaluate.rounds import round_title

ERRORS = {
    "diffusion": "velocity error at pure noise",
    "regression": "squared error",
    "classification": "cross-entropy",
}
BASELINES = {
    "diffusion": "predicting zero",
    "regression": "predicting zero",
    "classification": "most frequent",
}
NAME, ESTIMATE = 17, 28


def canvas_lines(figures: Mapping[str, Any]) -> Iterator[str]:
    """Lines of one split; docs/evaluate.md says what its figures mean."""
    rounds = {round_title(n, one, mark=" *"): one for n, one in figures["rounds"].items()}
    for region, about in figures["regions"].items():
        rows = {title: one["regions"][region] for title, one in rounds.items()}
        rows[BASELINES[about["objective"]]] = figures["baselines"][region]
        yield from _region_lines(region, about, rows)
    title, one = list(rounds.items())[-1]
    yield from measure_lines(title, one["measures"])
    if "rounds_used" in one:
        yield from rounds_used_lines({title: one["rounds_used"] for title, one in rounds.items()})
    yield from _gradient_lines(figures["gradients"])
    if any(one["extrapolated"] for one in rounds.values()):
        yield "  * more rounds than were trained: they reuse the last one's parameters"


def _region_lines(
    region: str, about: Mapping[str, Any], rows: Mapping[str, Mapping[str, Any]]
) -> Iterator[str]:
    objective, first = about["objective"], next(iter(rows.values()))
    yield f"  {region}: {ERRORS[objective]} [95 %]"
    head, columns = "", {title: "" for title in rows}
    if objective == "diffusion":
        buckets = first["timesteps"]["buckets"]
        head = "".join(f"{'t {}-{}'.format(*b['timesteps']):>11}" for b in buckets)
        for title, row in rows.items():
            means = (b["mse"]["mean"] for b in row["timesteps"]["buckets"])
            columns[title] = "".join(f"{mean:>11.4f}" for mean in means)
    elif objective == "classification":
        cells = first["cells"]
        widths = [max(9, len(cell["name"]) + 2) for cell in cells]
        names = (f"{cell['name']:>{w}}" for cell, w in zip(cells, widths, strict=True))
        head = f"{'accuracy':<{ESTIMATE}}{''.join(names)}"
        if "f1" in first:
            head = f"{'accuracy':<{ESTIMATE}}{'F1':<{ESTIMATE}}{'precision':>10}{'recall':>9}"
            named = zip((cell["name"] for cell in cells), widths, strict=True)
            head += "".join(f"{'F1 ' + name:>{w + 3}}" for name, w in named)
        for title, row in rows.items():
            columns[title] = f"{interval(row['accuracy']):<{ESTIMATE}}"
            if "f1" in row:
                columns[title] += (
                    f"{interval(row['f1']):<{ESTIMATE}}{row['precision']['mean']:>10.4f}"
                    f"{row['recall']['mean']:>9.4f}"
                )
                values = zip((c["f1"]["mean"] for c in row["cells"]), widths, strict=True)
                columns[title] += "".join(f"{value:>{w + 3}.3f}" for value, w in values)
            else:
                values = zip((c["accuracy"]["mean"] for c in row["cells"]), widths, strict=True)
                columns[title] += "".join(f"{value:>{w}.1%}" for value, w in values)
    yield f"    {'':<{NAME}}{'error':<{ESTIMATE}}{head}".rstrip()
    for title, row in rows.items():
        yield f"    {title:<{NAME}}{interval(row['error']):<{ESTIMATE}}{columns[title]}".rstrip()


def _gradient_lines(gradients: Mapping[str, Any]) -> Iterator[str]:
    """What regions do to each other's losses at the shared weights."""
    if not gradients["cosines"]:
        return
    yield "  cosine of loss gradients at the blocks (below 0: one undoes the other)"
    width = 2 + max(map(len, gradients["cosines"]))
    for pair, cosine in gradients["cosines"].items():
        yield f"    {pair:<{width}}{cosine:>8.3f}"
