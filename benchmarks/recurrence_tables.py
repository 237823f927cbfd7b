"""Results of `recurrence.py` as markdown: means over seeds, and paired ratios with intervals."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from roam_jax.evaluate.bootstrap import estimate_ratio

RESAMPLES = 10_000
# Self-distillation: at no exit may the error be more than so many times the plain model's.
BOUND = 1.10
TOTAL = "total"
Measured = Mapping[str, Mapping[str, Any]]


def tables(result: Mapping[str, Any]) -> str:
    """All tables of one part, with what it ran on."""
    settings, arms = result["settings"], result["arms"]
    lines = [
        f"## {settings['part']}, {settings['scene']}",
        f"{settings['steps']} steps, batch {settings['batch']}, lr {settings['lr']}, seeds "
        f"{settings['seeds']}, {settings['examples']} examples"
        + (f", {', '.join(settings['set'])}" if settings["set"] else "")
        + f"; {result['device']}",
        "",
        *_size_lines(arms),
        "",
    ]
    rows = {row: figures for row, figures in _rows(arms, settings["part"])}
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    lines += ["Mean over seeds and its standard deviation.", ""]
    lines += _table(names, {row: _means(rows[row], names) for row in rows})
    lines += ["", "Ratio to the reference, paired by seed, with bootstrap 95 % intervals.", ""]
    lines += _table(
        names,
        {
            row: _ratios(rows[row], rows[reference], names)
            for row in rows
            if (reference := _reference(row, arms, settings["part"])) in rows and reference != row
        },
    )
    if settings["part"] == "distillation":
        lines += ["", *_verdict(rows)]
    cells = list(_cell_rows(arms))
    if cells:
        columns = list(dict.fromkeys(name for _, row in cells for name in row))
        lines += ["", "Accuracy by cell, futures at pure noise.", ""]
        lines += _table(columns, {name: _means(row, columns) for name, row in cells})
    cosines = {name: arm["cosines"] for name, arm in arms.items() if arm["cosines"]}
    if cosines:
        lines += ["", "Cosine of region gradients at the blocks, by step.", ""]
        lines += _cosine_lines(cosines)
    return "\n".join(lines)


def _size_lines(arms: Mapping[str, Any]) -> Iterator[str]:
    yield "| arm | parameters | of the blocks | MFLOP forward | seconds | compiled in |"
    yield "|---|---|---|---|---|---|"
    for name, arm in arms.items():
        size = arm["sizes"]
        yield (
            f"| {name} | {size['parameters']:,} | {size['block_parameters']:,} | "
            f"{size['forward_flops'] / 1e6:.1f} | {arm['seconds']:.0f} | "
            f"{arm['compile_seconds']:.0f} |"
        )


def _rows(arms: Mapping[str, Any], part: str) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """(row's title, figure -> a value for each seed) of every arm and exit."""
    for name, arm in arms.items():
        for exit, measured in arm["measured"].items():
            title = name if len(arm["measured"]) == 1 else f"{name} @ {exit}"
            yield title, _figures(measured, arm["objectives"], alone=part == "joint")


def _figures(
    measured: Measured, objectives: Mapping[str, str], *, alone: bool
) -> dict[str, np.ndarray]:
    """Errors by region and in all, accuracies, and rounds that were used.

    Diffused regions are noised as in training; with `alone` the others are pure noise then. What is
    not diffused is predicted from pure noise.
    """
    trained, pure = measured["trained"], measured["pure"]
    figures = {}
    if not alone:
        figures[TOTAL] = sum(np.array(trained[name]["error"]) for name in objectives)
    for name, objective in objectives.items():
        chosen = measured.get(name, trained) if objective == "diffusion" else pure
        figures[name] = np.array(chosen[name]["error"])
    for name in objectives:
        for figure in ("accuracy", "f1"):
            if figure in pure[name]:
                figures[f"{name} {figure}"] = np.array(pure[name][figure])
    if "rounds_used" in pure:
        figures["rounds used"] = np.array(pure["rounds_used"]["error"])
    return figures


def _reference(row: str, arms: Mapping[str, Any], part: str) -> str:
    """The row that a row is compared with."""
    arm = row.split(" @ ")[0]
    if part == "depth":
        return f"3 x 4, {arm.split(', ')[1]}"
    if part == "distillation":
        over = arm.split(", ")[1]
        return f"plain, {over} @ {arms[arm]['rounds']}"
    if part == "halting":
        return f"no halting @ {arms[arm]['rounds']}"
    return {"joint": "joint", "balance": "fixed"}[part]


def _means(figures: Mapping[str, np.ndarray], names: Sequence[str]) -> list[str]:
    found = []
    for name in names:
        if name not in figures:
            found.append("")
            continue
        values = np.asarray(figures[name])
        spread = f" ± {values.std(ddof=1):.4f}" if len(values) > 1 else ""
        found.append(f"{values.mean():.4f}{spread}")
    return found


def _ratios(
    figures: Mapping[str, np.ndarray],
    reference: Mapping[str, np.ndarray],
    names: Sequence[str],
) -> list[str]:
    found = []
    for name in names:
        if name not in figures or name not in reference:
            found.append("")
            continue
        ratio = estimate_ratio(figures[name], reference[name], resamples=RESAMPLES)
        ends = "" if ratio.interval is None else " [{:.3f}, {:.3f}]".format(*ratio.interval)
        found.append(f"{ratio.mean:.3f}{ends}")
    return found


def _verdict(rows: Mapping[str, Mapping[str, np.ndarray]]) -> Iterator[str]:
    """Whether no exit of the distilled model is worse than the plain one by more than `BOUND`."""
    for over in ("stack", "block"):
        plain = rows.get(f"plain, {over} @ 4")
        exits = [row for row in rows if row.startswith(f"distilled, {over} @ ")]
        if plain is None or not exits:
            continue
        for name in [name for name in plain if not name.endswith(("accuracy", "f1"))]:
            ratios = {row: rows[row][name].mean() / plain[name].mean() for row in exits}
            row = max(ratios, key=ratios.get)
            held = "held" if ratios[row] <= BOUND else "MISSED"
            yield (
                f"- {over}, {name}: worst exit {row.split(' @ ')[1]}, ratio {ratios[row]:.3f} to "
                f"plain at 4 rounds (bound {BOUND:.2f}): {held}"
            )


def _cell_rows(arms: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    for name, arm in arms.items():
        for exit, measured in arm["measured"].items():
            title = name if len(arm["measured"]) == 1 else f"{name} @ {exit}"
            for figures in measured["pure"].values():
                if "cells" in figures:
                    yield title, {n: np.array(v) for n, v in figures["cells"].items()}


def _cosine_lines(cosines: Mapping[str, Any]) -> Iterator[str]:
    steps = next(iter(cosines.values()))["step"]
    yield f"| arm | pair |{''.join(f' {int(step)} |' for step in steps)}"
    yield f"|---|---|{'---|' * len(steps)}"
    for name, found in cosines.items():
        for pair in [key for key in found if key != "step"]:
            means = np.mean(found[pair], axis=0)
            text = pair.replace("|", " and ")
            yield f"| {name} | {text} |{''.join(f' {mean:.3f} |' for mean in means)}"


def _table(columns: Sequence[str], rows: Mapping[str, Sequence[str]]) -> Iterator[str]:
    yield f"| arm |{''.join(f' {name} |' for name in columns)}"
    yield f"|---|{'---|' * len(columns)}"
    for name, cells in rows.items():
        yield f"| {name} |{''.join(f' {cell} |' for cell in cells)}"
