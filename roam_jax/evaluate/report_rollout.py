"""The part of a report on played episodes, as a table for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from roam_jax.evaluate.report_video import interval
from roam_jax.evaluate.rounds import round_title

# In a report it stands where others have the name of a split.
ROLLOUT = "rollout"
EXPERT, RANDOM = "expert", "random"


def player_rows(stage: Mapping[str, Any], *, mark: str = " *") -> dict[str, Mapping[str, Any]]:
    """Title of a player -> its figures: the policy by rounds, then expert and random actions.

    Args:
        stage: figures of a world.
        mark: of more rounds than were trained.
    """
    rounds = {round_title(n, one, mark=mark): one for n, one in stage["rounds"].items()}
    return rounds | {name: stage[name] for name in (EXPERT, RANDOM)}


def rollout_lines(figures: Mapping[str, Any]) -> Iterator[str]:
    """Lines of the "rollout" of a report; docs/rollouts.md says what its figures mean."""
    chunks = f"a new chunk of actions every {figures['replan']} step(s)"
    if figures["ensembling"]:
        chunks += f", overlapping ones averaged (decay {figures['ensemble_decay']:g})"
    yield f"  {figures['episodes']} unseen starts of each; {chunks}"
    for name, stage in figures["stages"].items():
        rows = player_rows(stage)
        ratio = any("of_expert" in one for one in rows.values())
        yield f"  {name}: {stage['steps']} steps of {stage['period']:g} s"
        yield (
            f"    {'':<17}{'success [95 %]':<26}{'return [95 %]':<28}"
            + (f"{'return / expert':<26}" if ratio else f"{'success - expert':<26}")
            + f"{'ms a step':>10}{'diverged':>10}"
        )
        for title, one in rows.items():
            beside = "-"
            if ratio and "of_expert" in one:
                beside = interval(one["of_expert"], 3)
            elif not ratio and "minus_expert" in one:
                beside = interval(one["minus_expert"]["success"], 3)
            yield (
                f"    {title:<17}{interval(one['success'], 3):<26}{interval(one['return'], 3):<28}"
                f"{beside:<26}{one['step_ms']['average']:>10.2f}{_number(one['diverged']):>10}"
            )
    yield from _diverged_lines(figures)
    stages = figures["stages"].values()
    if any(one["extrapolated"] for stage in stages for one in stage["rounds"].values()):
        yield "  * more rounds than were trained: they reuse the last one's parameters"


def _diverged_lines(figures: Mapping[str, Any]) -> Iterator[str]:
    for name, stage in figures["stages"].items():
        for title, one in player_rows(stage, mark="").items():
            if numbers := one["diverged_episodes"]:
                yield (
                    f"  {name}, {title}: physics diverged in episode(s) "
                    f"{', '.join(map(str, numbers))}, which no figure counts"
                )


def _number(value: float) -> str:
    """A count; of several seeds it may be a mean."""
    return f"{value:g}"
