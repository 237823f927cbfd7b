"""The part of a report on a cloned policy's action errors, as a table for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from roam_jax.evaluate.report_rounds import measure_lines, rounds_used_lines
from roam_jax.evaluate.report_video import interval
from roam_jax.evaluate.rounds import round_title


def clone_lines(figures: Mapping[str, Any]) -> Iterator[str]:
    """Lines of one split; docs/rollouts.md says what its figures mean."""
    yield f"  {'squared error of':<21}{'action chunk [95 % of episodes]':<34}{'its first action'}"
    used = {}
    for body, one in figures["bodies"].items():
        yield f"  {body}: {one['windows']} windows of {one['episodes']} episodes"
        rounds = {round_title(n, found, mark=" *"): found for n, found in one["rounds"].items()}
        rows = {title: found["actions"] for title, found in rounds.items()}
        rows["training mean"] = one["baselines"]["training_mean"]
        for title, row in rows.items():
            yield f"    {title:<19}{interval(row['mse']):<34}{interval(row['first_mse'])}"
        for title, found in rounds.items():
            if "rounds_used" in found:
                used[f"{body}, {title}"] = found["rounds_used"]
    # The report has those of every body.
    body, one = next(iter(figures["bodies"].items()))
    number, found = list(one["rounds"].items())[-1]
    yield from measure_lines(f"{body}, {round_title(number, found, mark=' *')}", found["measures"])
    if used:
        yield from rounds_used_lines(used)
    if any(f["extrapolated"] for one in figures["bodies"].values() for f in one["rounds"].values()):
        yield "  * more rounds than were trained: they reuse the last one's parameters"
