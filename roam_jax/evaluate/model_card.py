"""The card of a model directory: what a model is, for people who did not train it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from roam_jax.evaluate.report import format_report

# Leaves of the config that say what the model is -> in words.
_MODEL = {
    "loop.rounds": "rounds through every block",
    "loop.gate": "gate",
    "loop.gate_scope": "one gate for each",
    "decoder.kind": "action decoder",
    "freeze": "freeze policy",
    "topology.kind": "topology",
    "data.frames": "frames of a window",
    "data.image_size": "frame size (height, width)",
    "canvas.t_current": "first predicted latent frame",
    "data.rate": "actions a second (0 = as stored)",
    "train.batch_size": "windows a step",
    "seed": "seed",
}


def model_card(
    saved: Mapping[str, Any],
    *,
    parameters: Sequence[Mapping[str, Any]],
    report: Mapping[str, Any] | None,
) -> str:
    """Markdown.

    Args:
        saved: config.json of a model directory, with the statistics in its provenance.
        parameters: `count_parameters` of the task.
        report: what was measured; None = nothing.
    """
    config, provenance = saved["config"], saved["provenance"]
    sections = {
        f"A CogVideoX graft after {saved['step']:,} steps": _what(saved),
        "Data": _data(provenance),
        "Parameters": _parameters(parameters),
        "Measured": _measured(report),
        "How it was made": _made(saved),
        "How to use it": _use(config, provenance),
    }
    lines = []
    for title, body in sections.items():
        lines += [f"{'##' if lines else '#'} {title}", "", *body, ""]
    return "\n".join(lines).rstrip() + "\n"


def _what(saved: Mapping[str, Any]) -> Iterator[str]:
    yield (
        "A CogVideoX video transformer whose blocks run in rounds, with a decoder that predicts "
        "robot actions. `model.safetensors` holds what trained; frozen weights are not in this "
        "folder."
    )
    yield ""
    rows = {about: _leaf(saved["config"], key) for key, about in _MODEL.items()}
    # As a config writes them; only counts are grouped by thousands.
    yield from _table(("", ""), [(about, _plain(value)) for about, value in rows.items()])


def _data(provenance: Mapping[str, Any]) -> Iterator[str]:
    splits = provenance.get("data", {})
    if not splits:
        yield "not recorded"
        return
    rows = [
        (split, one.get("dataset"), one.get("episodes"), one.get("windows"), one.get("cameras"))
        for split, one in splits.items()
    ]
    yield from _table(("split", "dataset", "episodes", "windows", "cameras"), rows)
    yield ""
    yield from _fingerprints(provenance, "Hashes of data, text and frozen weights:")
    for member, one in provenance.get("statistics", {}).items():
        if isinstance(one, Mapping) and "actions" in one:
            spec = one["actions"]["spec"]
            named = zip(spec["names"], spec["units"], strict=True)
            units = ", ".join(f"{name} ({unit})" if unit else name for name, unit in named)
            yield ""
            yield (
                f"Actions{f' of {member}' if member else ''}: {units}, {one['rate']:g} a second; "
                "`statistics.json` has their scaling."
            )


def _fingerprints(provenance: Mapping[str, Any], title: str) -> Iterator[str]:
    yield title
    yield ""
    rows = [(name, f"`{value}`") for name, value in provenance.get("fingerprints", {}).items()]
    yield from _table(("what", "fingerprint"), rows)


def _parameters(parameters: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    if not parameters:
        yield "not counted"
        return
    for trains in (True, False):
        chosen = [row for row in parameters if row["trains"] == trains]
        rows = [(row["group"], row["count"]) for row in chosen]
        total = sum(row["count"] for row in chosen)
        word = "trained" if trains else "frozen"
        if not trains:
            yield ""
        yield from _table((word, "parameters"), [*rows, ("**all**", total)])


def _measured(report: Mapping[str, Any] | None) -> Iterator[str]:
    if report is None:
        yield "Not measured. (`python eval.py --workdir RUN` before the export fills this in.)"
        return
    if report.get("overrides"):
        changed = "; ".join(f"{key}: {values}" for key, values in report["overrides"].items())
        yield f"With these settings other than the run's: {changed}"
        yield ""
    yield "```"
    yield format_report(report).rstrip()
    yield "```"


def _made(saved: Mapping[str, Any]) -> Iterator[str]:
    provenance = saved["provenance"]
    yield "```"
    yield saved["command"]
    yield "```"
    yield ""
    packages = provenance.get("packages", {})
    listed = ", ".join(f"{name} {version}" for name, version in packages.items())
    yield (
        f"from a run of `train.py` whose config is in `config.json`; commit "
        f"{provenance.get('git_commit') or 'unknown'}{listed and f', {listed}'}."
    )


def _use(config: Mapping[str, Any], provenance: Mapping[str, Any]) -> Iterator[str]:
    frozen = [n for n in ("transformer", "vae") if n in provenance.get("fingerprints", {})]
    yield (
        f"Frozen weights are read from `backbone.path = {_leaf(config, 'backbone.path')}` or from "
        f"where an override says, and must have the fingerprints above ({', '.join(frozen)})."
    )
    yield ""
    yield "```python"
    yield "from roam_jax.evaluate.policy import Policy"
    yield ""
    yield 'policy = Policy.load("THIS_FOLDER")'
    yield "actions = policy(observation, instruction=...)  # physical units"
    yield "```"


def _leaf(config: Mapping[str, Any], key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = value.get(part, "not set") if isinstance(value, Mapping) else "not set"
    return value


def _plain(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> Iterator[str]:
    yield _row(head)
    yield _row(["---"] * len(head))
    for row in rows:
        yield _row(row)


def _row(cells: Sequence[Any]) -> str:
    return f"| {' | '.join(map(_cell, cells))} |"


def _cell(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(_cell, value))
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value).replace("|", r"\|")
