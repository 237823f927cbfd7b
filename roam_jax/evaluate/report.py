"""A report as a table for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from roam_jax.contracts import ACTION_NAMES, ACTION_UNITS
from roam_jax.evaluate.report_canvas import canvas_lines
from roam_jax.evaluate.report_clone import clone_lines
from roam_jax.evaluate.report_rollout import ROLLOUT, rollout_lines
from roam_jax.evaluate.report_rounds import measure_lines, rounds_used_lines
from roam_jax.evaluate.report_video import continuation_lines, interval
from roam_jax.evaluate.rounds import round_title

BASELINES = {"training_mean": "training mean", "previous_action": "previous action"}
# Of files that were written before robots could differ.
UNITS = dict(zip(ACTION_NAMES, ACTION_UNITS, strict=True))


def format_report(report: Mapping[str, Any]) -> str:
    """The figures of `evaluate_experiment` or of an eval/STEP.json, in aligned columns.

    What files of earlier versions lack is left out: streams, and zero_mse of other cameras. Their
    round measures are of two streams, text and video, not of every region.
    """
    kinds = {"graft": _graft_lines, "video": _video_lines, "vae": _vae_lines}
    lines = []
    for split, figures in report["splits"].items():
        if split == ROLLOUT:
            lines += [f"{split}:", *rollout_lines(figures), ""]
            continue
        if report["task"] == "clone":
            lines += [f"{split}:", *clone_lines(figures), ""]
            continue
        if report["task"] == "canvas":
            lines += [f"{split}: {figures['examples']} examples", *canvas_lines(figures), ""]
            continue
        # A report may be of continuations alone.
        measured = figures if "windows" in figures else figures["continuation"]
        lines.append(f"{split}: {measured['windows']} windows of {measured['episodes']} episodes")
        if "windows" in figures:
            lines += kinds[report["task"]](figures)
        if "continuation" in figures:
            lines += continuation_lines(figures["continuation"])
        lines.append("")
    return "\n".join(lines)


def _graft_lines(figures: Mapping[str, Any]) -> Iterator[str]:
    rounds = {round_title(n, one, mark=" *"): one for n, one in figures["rounds"].items()}
    rows = {title: one["actions"] for title, one in rounds.items()}
    rows |= {BASELINES[name]: one for name, one in figures["baselines"].items()}
    yield from _action_lines(rows, figures.get("action_units", UNITS))
    rows = {title: one["video"] for title, one in rounds.items()}
    yield from _bucket_lines("velocity error of predicted frames", rows)
    if all("cameras" in one for one in rounds.values()):
        rows = {title: one["cameras"] for title, one in rounds.items()}
        yield from _bucket_lines("velocity error of predicted frames of other cameras", rows)
    yield from _stream_lines(rounds)
    title, one = list(rounds.items())[-1]
    yield from measure_lines(title, one["measures"])
    if all("rounds_used" in one for one in rounds.values()):
        rows = {title: one["rounds_used"] for title, one in rounds.items()}
        yield from rounds_used_lines(rows)
    if any(one["extrapolated"] for one in rounds.values()):
        yield "  * more rounds than were trained: they reuse the last one's parameters"


def _stream_lines(rounds: Mapping[str, Any]) -> Iterator[str]:
    """Robot state and reward, where they are predicted; the reference is the same in all rounds."""
    for stream, one in next(iter(rounds.values())).get("streams", {}).items():
        yield f"  {stream}: normalised MSE [95 % of episodes], future at pure noise"
        for title, found in rounds.items():
            yield f"    {title:<17}{interval(found['streams'][stream]['mse'])}"
        yield f"    {'last observed':<17}{interval(one['last_observed_mse'])}"


def _action_lines(rows: Mapping[str, Mapping[str, Any]], units: Mapping[str, str]) -> Iterator[str]:
    chunk = next(iter(rows.values()))["chunk"]
    widths = {name: max(9, len(name) + 2) for name in chunk["absolute_error"]}
    used = " and ".join(dict.fromkeys(units[name] for name in widths if units[name]))
    yield (
        f"  action error, future at pure noise; absolute errors{used and f' in {used}'} over "
        f"{chunk['actions']} action(s)"
    )
    yield (
        f"    {'':<17}{'normalised MSE [95 % of episodes]':<35}{'first action':>12}"
        f"{'gripper':>9}" + "".join(f"{name:>{width}}" for name, width in widths.items())
    )
    for name, one in rows.items():
        chunk, first = one["chunk"], one["first"]
        gripper = f"{chunk['gripper_accuracy']:.1%}" if "gripper_accuracy" in chunk else "-"
        errors = "".join(f"{chunk['absolute_error'][d]:>{w}.4f}" for d, w in widths.items())
        yield (
            f"    {name:<17}{interval(chunk['mse']):<35}{first['mse']['mean']:>12.4f}"
            f"{gripper:>9}{errors}"
        )


def _bucket_lines(title: str, rows: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """A table of velocity errors; all rows are of the same targets."""
    buckets = next(iter(rows.values()))["buckets"]
    spans = ["{}-{}".format(*bucket["timesteps"]) for bucket in buckets]
    yield f"  {title}, by timestep"
    yield f"    {'':<17}" + "".join(f"{name:>10}" for name in [*spans, "all"])
    values_by_row = {name: [b["mse"]["mean"] for b in one["buckets"]] for name, one in rows.items()}
    if all("zero_mse" in bucket for bucket in buckets):
        values_by_row["predicting zero"] = [bucket["zero_mse"] for bucket in buckets]
    for name, values in values_by_row.items():
        yield f"    {name:<17}" + "".join(f"{v:>10.4f}" for v in [*values, np.mean(values)])


def _video_lines(figures: Mapping[str, Any]) -> Iterator[str]:
    for mode, one in figures["video"].items():
        yield from _bucket_lines(f"velocity error, {mode}", {"model": one})


def _vae_lines(figures: Mapping[str, Any]) -> Iterator[str]:
    yield f"  PSNR               {interval(figures['psnr'])} dB"
    yield f"  of the mean colour {figures['mean_colour_psnr']:.4f} dB"
    yield f"  gain               {figures['psnr_gain']:.4f} dB"
