"""What a dataset holds, in figures, before anything is trained on it.

Headers tell of lengths, instructions and what is left out, for every episode. Histograms need the
numbers of episodes: they are made of some thousand of them, spread evenly over the split, and no
frame is decoded. Everything is ready for JSON.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from roam_jax.data.cached_statistics import cache_path, compute_statistics, rate_line
from roam_jax.data.dataset import EpisodeReader
from roam_jax.data.members import Member
from roam_jax.data.published import compare_with_published, published_for
from roam_jax.data.statistics import PER_DIMENSION, VectorStatistics
from roam_jax.data.windows import WindowSource

SPLITS = ("train", "val")
# Episodes of a split whose numbers are read for histograms.
SAMPLED_EPISODES = 2000
FEWEST_BINS, BINS = 12, 48
# How far a histogram reaches beyond q01 and q99, in shares of what lies between them.
BEYOND = 0.5
INSTRUCTIONS_LISTED = 20
NAMES_LISTED = 5
# A number is clipped if normalising and back moves it by more than this share of q99 - q01.
MOVED = 1e-4


def summarise_members(
    members: Sequence[Member], *, windows: int, sampled: int = SAMPLED_EPISODES
) -> list[dict[str, Any]]:
    """One report for each dataset of a run.

    Args:
        members: the datasets.
        windows: that the run draws in all, which tells how often each is seen.
        sampled: most episodes of a split whose numbers are read.

    Returns:
        Dicts with "name", "weight", "epochs" (passes through the train windows in the run),
        "splits" (name -> `summarise_split`) and "statistics" (`summarise_statistics`).
    """
    return [
        {
            "name": member.name,
            "weight": member.weight,
            "epochs": member.weight * windows / len(member.train),
            "splits": {split: summarise_split(getattr(member, split)) for split in SPLITS},
            "statistics": summarise_statistics(member, sampled=sampled),
        }
        for member in members
    ]


def summarise_split(source: WindowSource) -> dict[str, Any]:
    """`source.describe()` with more of the split's episodes, from their headers.

    Returns:
        Also "stored" (episodes), "steps" (stored ones), "span" (of a window in steps, the dropped
        first ones included), "lengths" (figures in stored steps and histograms "used" and
        "left_out" over "edges"), "instructions" (distinct, share of "empty", most "frequent"
        [text, episodes]) and, for each reason, what was "left_out": {reason, episodes, names}.
    """
    headers, names = source.reader.headers, {}
    for name, reason in source.left_out:
        names.setdefault(reason, []).append(name)
    time_spec = source.options.time
    skipped = source.reader.declaration.skip_first
    return {
        **source.describe(),
        "stored": len(headers),
        "steps": int(headers.steps.sum()),
        "span": skipped + (time_spec.frames - 1) * source.stride + 1,
        "lengths": _lengths(headers.steps, source.counts > 0),
        "instructions": _instructions(source.reader),
        "left_out": [
            {"reason": reason, "episodes": len(found), "names": found[:NAMES_LISTED]}
            for reason, found in names.items()
        ],
    }


def summarise_statistics(member: Member, *, sampled: int = SAMPLED_EPISODES) -> dict[str, Any]:
    """How actions and states are scaled, and what the scaling makes of the numbers.

    Args:
        member: a dataset.
        sampled: most episodes of a split whose numbers are read.

    Returns:
        "cache" (file of the figures), "episodes" and "rate" (actions a second) that they are of;
        "sampled" (split -> episodes read), "measured" (a line on what making them takes here);
        "actions" and "states", each with "count" and "dimensions" (a dict each: name, unit, kind,
        figures, share "clipped" by split, "stored" and "normalised" histograms); "published"
        (quantiles beside known ones; None where there are none for this data and rate).
    """
    readers = {split: getattr(member, split).reader for split in SPLITS}
    samples = {s: spread_evenly(len(reader), sampled).tolist() for s, reader in readers.items()}
    statistics, stride = member.statistics, member.train.stride
    began = time.monotonic()
    counted = compute_statistics(readers["train"], stride=stride, episodes=samples["train"])
    seconds = time.monotonic() - began
    rows = {split: _rows(readers[split], samples[split], stride=stride) for split in SPLITS}
    return {
        "cache": str(cache_path(statistics.fingerprint)),
        "episodes": statistics.episodes,
        "rate": statistics.rate,
        "sampled": {split: len(sample) for split, sample in samples.items()},
        "measured": rate_line(
            episodes=counted.episodes, transitions=counted.actions.count, seconds=seconds
        ),
        **{
            kind: {
                "count": figures.count,
                "dimensions": _dimensions(figures, {s: found[kind] for s, found in rows.items()}),
            }
            for kind, figures in (
                ("actions", statistics.actions),
                ("states", statistics.proprio),
            )
        },
        "published": _published(member.train),
    }


def _rows(reader: EpisodeReader, episodes: Sequence[int], *, stride: int) -> dict[str, np.ndarray]:
    """All target actions and states of some episodes."""
    motions = [reader.motion(number, stride) for number in episodes]
    actions, states = zip(*motions, strict=True)
    return {"actions": np.concatenate(actions), "states": np.concatenate(states)}


def spread_evenly(total: int, wanted: int) -> Int[np.ndarray, " chosen"]:
    """At most `wanted` of the numbers below `total`, the same distance apart."""
    count = min(total, wanted)
    return np.arange(count) * total // max(count, 1)


def _lengths(steps: Int[np.ndarray, " episodes"], used: Bool[np.ndarray, " episodes"]) -> dict:
    low, high = int(steps.min()), int(steps.max())
    width = max(1, -(-(high + 1 - low) // BINS))
    edges = np.arange(low, high + 1 + width, width)
    return {
        "minimum": low,
        "median": float(np.median(steps)),
        "mean": float(steps.mean()),
        "maximum": high,
        "edges": edges.tolist(),
        "used": np.histogram(steps[used], edges)[0].tolist(),
        "left_out": np.histogram(steps[~used], edges)[0].tolist(),
    }


def _instructions(reader: EpisodeReader) -> dict[str, Any]:
    texts, headers = reader.headers.instructions, reader.headers
    counts = np.bincount(headers.columns["instruction"], minlength=len(texts))
    empty = sum(int(n) for text, n in zip(texts, counts, strict=True) if not text.strip())
    order = np.argsort(-counts, kind="stable")[:INSTRUCTIONS_LISTED]
    return {
        "distinct": sum(bool(text.strip()) for text in texts),
        "empty": empty / len(headers),
        "frequent": [[texts[i], int(counts[i])] for i in order],
    }


def _dimensions(statistics: VectorStatistics, rows: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """A dict for each dimension."""
    stored = {split: statistics.turn(values) for split, values in rows.items()}
    normalised = {split: statistics.normalise(values) for split, values in stored.items()}
    clipped = {s: _clipped(statistics, stored[s], normalised[s]) for s in stored}
    spec, found = statistics.spec, []
    for i, (name, unit, kind) in enumerate(zip(spec.names, spec.units, spec.kinds, strict=True)):
        figures = {figure: getattr(statistics, figure)[i] for figure in PER_DIMENSION}
        scaled = (0.0, 1.0) if kind == "gripper" else (-1.0, 1.0)
        found.append(
            {
                "name": name,
                "unit": unit,
                "kind": kind,
                **figures,
                "clipped": {split: float(shares[i]) for split, shares in clipped.items()},
                "stored": _histogram({s: v[:, i] for s, v in stored.items()}, *_reach(figures)),
                "normalised": _histogram({s: v[:, i] for s, v in normalised.items()}, *scaled),
            }
        )
    return found


def _clipped(
    statistics: VectorStatistics, rows: np.ndarray, normalised: np.ndarray
) -> Float[np.ndarray, " D"]:
    """Share of the numbers of each dimension that do not come back from normalising."""
    span = np.subtract(statistics.q99, statistics.q01)
    moved = np.abs(statistics.unnormalise(normalised) - rows)
    return (moved > MOVED * np.where(span > 0, span, 1)).mean(axis=0)


def _reach(figures: dict[str, float]) -> tuple[float, float]:
    """Where a histogram of stored numbers begins and ends: few outliers must not squeeze it."""
    beyond = BEYOND * (figures["q99"] - figures["q01"])
    low = max(figures["minimum"], figures["q01"] - beyond)
    high = min(figures["maximum"], figures["q99"] + beyond)
    margin = 0.0 if high > low else max(0.1 * abs(low), 1e-3)
    return low - margin, high + margin


def _histogram(values: dict[str, np.ndarray], low: float, high: float) -> dict[str, Any]:
    """Shares of the numbers of each split in equal bins; "outside" is what lies in none."""
    rows = max(map(len, values.values()))
    # Rice's rule: few numbers in narrow bins are a comb.
    edges = np.linspace(low, high, 1 + int(np.clip(2 * np.cbrt(rows), FEWEST_BINS, BINS)))
    shares, outside = {}, {}
    for split, numbers in values.items():
        # A number at an end belongs to its bin, whatever rounding made of the end.
        inside = numbers[(numbers >= low - 1e-6) & (numbers <= high + 1e-6)].clip(low, high)
        counts, _ = np.histogram(inside, edges)
        shares[split] = (counts / max(1, len(numbers))).tolist()
        outside[split] = 1 - len(inside) / max(1, len(numbers))
    return {"edges": edges.tolist(), "shares": shares, "outside": outside}


def _published(source: WindowSource) -> dict[str, Any] | None:
    """Measured quantiles beside published ones, where they are of this dataset at this rate."""
    reader = source.reader
    published = published_for(reader.declaration, dataset=reader.dataset, stride=source.stride)
    if published is None:
        return None
    checks = compare_with_published(source.statistics.actions, published)
    return {
        "datasets": list(published.datasets),
        "quantiles": [{**dataclasses.asdict(c), "outside": c.outside} for c in checks],
    }
