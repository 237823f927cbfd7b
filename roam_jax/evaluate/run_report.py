"""Reports on runs as one HTML page: curves, configs, figures, pictures, incidents, checkpoints."""

from __future__ import annotations

import datetime
import math
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import scipy.stats

from roam_jax.evaluate.bootstrap import LEVEL
from roam_jax.evaluate.run_figures import comparison, report_text
from roam_jax.evaluate.run_records import Evaluated, Group, Run, flat, read_groups
from roam_jax.files import write_atomically
from roam_jax.train.workdir import FINGERPRINTS, FREE_KEYS, plain
from roam_jax.viz.page import Block, Curves, Fold, Media, Table, Text, render

# Panel titles and the beginnings of the metrics below them; the first that fits decides.
PANELS = {
    "Loss": ("loss",),
    "Evaluation": ("eval/",),
    "Updates": ("grad_norm", "lr", "refused", "rounds", "param_norm", "update_norm"),
    "Speed and memory": (
        "seconds",
        "steps_per",
        "examples_per",
        "tokens_per",
        "flops_per",
        "mfu",
        "memory",
        "peak_memory",
        "compile",
    ),
    "Other": ("",),
}
# Columns of the first table and the metrics of a run's last line that they show.
FIGURES = {
    "loss": "loss",
    "s a step": "seconds_per_step",
    "tokens/s": "tokens_per_second",
    "MFU": "mfu",
    "peak bytes": "peak_memory_bytes",
}
# Lines of a run that are drawn at most; of more, one of two, of three, ... is.
MOST_LINES = 1000
# A table with more rows than this is folded.
MOST_ROWS = 40
MIB = 2**20


def write_report(
    folders: Sequence[pathlib.Path], out: pathlib.Path, *, all_steps: bool
) -> list[Group]:
    """Reads runs and writes the page.

    Args:
        folders: workdirs, or folders of --seeds.
        out: the HTML file; an older one stays until the new one is whole.
        all_steps: show figures and pictures of every evaluated step, not of the last alone.

    Returns:
        The runs that it is of.

    Raises:
        FileNotFoundError, ValueError: as `read_groups`.
    """
    groups = read_groups(folders)
    names = [group.name for group in groups]
    runs = [run for group in groups for run in group.runs]
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    about = f"{_count(len(runs), 'run')} in {_count(len(groups), 'group')}, written {now}"
    sections = {
        "Runs": [_summary(groups)],
        "Config differences": list(_differences(groups)),
        "Curves": list(_curves(groups)),
        "Evaluation": list(_evaluations(groups, all_steps=all_steps)),
        "Incidents, starts and stops": list(_events(groups)),
        "Checkpoints": list(_checkpoints(groups)),
        "Configs": [_config(group) for group in groups],
    }
    title = ", ".join(names) if len(names) < 4 else f"{names[0]} and {len(names) - 1} others"
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, render(title, about, sections))
    return groups


def _summary(groups: Sequence[Group]) -> Table:
    """A line for each run."""
    header = ["run", "seed", "task", "steps", "of", "state", *FIGURES, "workdir"]
    rows = []
    for group, run in _runs(groups):
        done, steps = run.steps
        last = run.rows[-1] if run.rows else {}
        state = "finished" if done >= steps else "begun" if not done else f"{done / steps:.0%}"
        figures = (last.get(name) for name in FIGURES.values())
        task = run.config["train"]["task"]
        rows.append([group.name, run.seed, task, done, steps, state, *figures, str(run.path)])
    kept = [i for i in range(len(header)) if any(row[i] is not None for row in rows)]
    return Table([header[i] for i in kept], [[row[i] for i in kept] for row in rows])


def _differences(groups: Sequence[Group]) -> Iterator[Block]:
    """Leaves that are not the same in all groups."""
    if len(groups) < 2:
        return
    leaves = [flat(plain(group.runs[0].config)) | group.runs[0].what_counts for group in groups]
    names = [name for name in dict.fromkeys(n for each in leaves for n in each) if name != "seed"]
    for title, kept in (
        ("", [n for n in names if n not in FREE_KEYS]),
        ("leaves that change no result but for rounding", [n for n in names if n in FREE_KEYS]),
    ):
        rows = []
        for name in kept:
            values = [_short(name, each.get(name, "(absent)")) for each in leaves]
            if len(set(values)) > 1:
                rows.append([name, *values])
        if rows:
            table = Table(["leaf", *(group.name for group in groups)], rows)
            yield Fold(title, [table]) if title else table


def _short(name: str, value: Any) -> str:
    """A leaf's value; of a fingerprint its beginning."""
    return str(value)[:12] if name.startswith(FINGERPRINTS) else str(value)


def _curves(groups: Sequence[Group]) -> Iterator[Block]:
    """All numbers of metrics.jsonl over steps."""
    metrics = {n for _, run in _runs(groups) for row in run.rows for n in row} - {"step"}
    if not metrics:
        yield Text("no line of metrics yet")
        return
    longest = max(len(run.rows) for _, run in _runs(groups))
    every = -(-longest // MOST_LINES)
    if every > 1:
        yield Text(f"the runs have up to {longest:,} lines of metrics: one of {every} is drawn")
    panels: dict[str, list[str]] = {title: [] for title in PANELS}
    for name in sorted(metrics, key=lambda n: (n != "loss", n)):
        panels[next(t for t, begins in PANELS.items() if name.startswith(begins))].append(name)
    most = max(len(group.runs) for group in groups)
    student = {n: float(scipy.stats.t.ppf((1 + LEVEL) / 2, n - 1)) for n in range(2, most + 1)}
    yield Curves(
        {title: found for title, found in panels.items() if found},
        [_curve_data(group, every) for group in groups],
        student,
    )


def _curve_data(group: Group, every: int) -> dict[str, Any]:
    runs = []
    for run in group.runs:
        rows = [r for i, r in enumerate(run.rows) if i % every == 0 or i == len(run.rows) - 1]
        names = dict.fromkeys(name for row in rows for name in row if name != "step")
        values = {name: [_value(row.get(name)) for row in rows] for name in names}
        runs.append({"seed": run.seed, "steps": [row["step"] for row in rows], "metrics": values})
    events = [
        {"step": line["step"], "text": f"seed {run.seed}, step {line['step']}: {what}"}
        for run in group.runs
        for what, line in _lines(run)
        if line.get("step")
    ]
    return {"name": group.name, "events": events, "runs": runs}


def _value(value: Any) -> float | None:
    """Six digits; None of what is no number."""
    if not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(f"{value:.6g}")


def _evaluations(groups: Sequence[Group], *, all_steps: bool) -> Iterator[Block]:
    """A comparison of groups, then the tables and pictures of each."""
    for kind, table in comparison(groups):
        yield _folded(table, f"{kind}: " if kind else "")
    alone = sum(len(group.runs) for group in groups) == 1
    for group in groups:
        for owner, reports, media in _sources(group):
            blocks = list(_evaluated(reports, media, all_steps=all_steps))
            if alone:
                yield from blocks
            elif blocks:
                yield Fold(owner, blocks)


def _evaluated(
    reports: Sequence[Evaluated], media: Sequence[Evaluated], *, all_steps: bool
) -> Iterator[Block]:
    """Tables, pictures and videos of one folder."""
    shown = _latest(reports, all_steps)
    for one in shown:
        title = f"step {one.step}" + (f", {one.kind}" if one.kind else "")
        yield Text(f"{title}\n\n{report_text(one)}")
    pictures = _latest(media, all_steps, shown)
    if pictures:
        yield Media({one.path.name: one.path for one in pictures})
    if left := sorted({one.step for one in media} - {one.step for one in pictures}):
        yield Text(f"not shown: pictures of steps {', '.join(map(str, left))} (--all_steps)")


def _sources(group: Group) -> Iterator[tuple[str, list[Evaluated], list[Evaluated]]]:
    """Whose they are, reports, media: of all seeds together, then of each."""
    yield f"{group.name}, all seeds", group.reports, group.media
    for run in group.runs:
        name = f"{group.name}, seed {run.seed}" if len(group.runs) > 1 else group.name
        yield name, run.reports, run.media


def _latest(
    found: Sequence[Evaluated], all_steps: bool, beside: Sequence[Evaluated] = ()
) -> list[Evaluated]:
    """Of each kind the last step, or all; pictures go with the steps of reports beside them."""
    if all_steps:
        return list(found)
    if beside:
        steps = {one.step for one in beside}
        return [one for one in found if one.step in steps]
    last: dict[str, int] = {one.kind: one.step for one in found}
    return [one for one in found if one.step == last[one.kind]]


def _events(groups: Sequence[Group]) -> Iterator[Block]:
    """Refused updates, starts and stops of every run, in the order of time."""
    rows = []
    for group, run in _runs(groups):
        for what, line in sorted(_lines(run), key=lambda pair: pair[1].get("time", 0)):
            known = ("time", "seed", "step", "event", "done", "reason", "loss", "grad_norm")
            rest = "; ".join(f"{k}: {v}" for k, v in line.items() if k not in known)
            figures = (line.get(name) for name in ("step", "loss", "grad_norm"))
            rows.append(
                [group.name, run.seed, _moment(line.get("time")), what, *figures, rest[:400]]
            )
    if rows:
        header = ["run", "seed", "time (UTC)", "what", "step", "loss", "gradient norm", "more"]
        yield _folded(Table(header, rows))


def _lines(run: Run) -> Iterator[tuple[str, dict[str, Any]]]:
    """What happened and the line that says so."""
    for line in run.incidents:
        if line.get("seed", run.seed) == run.seed:
            yield ", ".join(str(line[k]) for k in ("done", "reason") if k in line), line
    for line in run.journal:
        yield str(line.get("event", "")), line


def _checkpoints(groups: Sequence[Group]) -> Iterator[Block]:
    rows = [
        [group.name, run.seed, saved.step, saved.size / MIB, _moment(saved.time)]
        for group, run in _runs(groups)
        for saved in run.checkpoints
    ]
    if rows:
        yield _folded(Table(["run", "seed", "step", "MiB", "written (UTC)"], rows))


def _config(group: Group) -> Fold:
    run = group.runs[0]
    leaves = {name: v for name, v in flat(run.config).items() if name != "seed"}
    origin = flat({k: run.provenance[k] for k in ("git_commit", "packages") if k in run.provenance})
    rows = [[name, str(value)] for name, value in (leaves | origin).items()]
    return Fold(group.name, [Table(["leaf", "value"], rows)])


def _folded(table: Table, about: str = "") -> Block:
    """The table, behind a line to click on where it is long."""
    rows = len(table.rows)
    return table if rows <= MOST_ROWS else Fold(f"{about}{_count(rows, 'row')}", [table])


def _runs(groups: Sequence[Group]) -> Iterator[tuple[Group, Run]]:
    for group in groups:
        for run in group.runs:
            yield group, run


def _moment(seconds: float | None) -> str:
    if seconds is None:
        return ""
    moment = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    return moment.strftime("%Y-%m-%d %H:%M:%S")


def _count(count: int, what: str) -> str:
    return f"{count} {what}" + ("" if count == 1 else "s")
