"""Statistics of a train split: one episode at a time, made once for each content and meaning.

Only the numbers of an episode are read, no frame. Angles of states need a centre before they can
be counted; where too many states come to be held until then, the dataset is read twice.
"""

from __future__ import annotations

import dataclasses
import hashlib
import pathlib
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from absl import logging
from jaxtyping import Float32

from roam_jax.contracts import VectorSpec, cache_dir
from roam_jax.data.accumulate import Accumulator
from roam_jax.data.declaration import DatasetDeclaration
from roam_jax.data.proprio import CircularMean, nearest_turn
from roam_jax.data.published import compare_with_published, published_for
from roam_jax.data.statistics import RobotStatistics, StateStatistics, require_finite
from roam_jax.files import write_once

# Part of the cache's name: a change in what is counted must not meet older figures there.
RULES = "target actions; states near their circular mean; exact or KLL; 4"
PROGRESS_EVERY_S = 30
# BridgeData V2 as its authors publish it, after preprocessing as here.
BRIDGE_EPISODES, BRIDGE_TRANSITIONS = 60_064, 2_135_463


@runtime_checkable
class MotionReader(Protocol):
    """What statistics need of an `EpisodeReader`."""

    root: pathlib.Path
    split: str
    dataset: str
    declaration: DatasetDeclaration
    headers: Any

    @property
    def fingerprint(self) -> str:
        """Hash of the records of the split."""

    def __len__(self) -> int: ...

    def motion(self, index: int, stride: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """Target actions (m, A) over `stride` steps and states (kept, J) of an episode."""


def compute_statistics(
    reader: MotionReader, *, stride: int = 1, episodes: Sequence[int] | None = None
) -> RobotStatistics:
    """Statistics over every kept step of the train split, in bounded memory.

    Args:
        reader: episodes of the train split.
        stride: stored steps that one action spans, counted from every kept step.
        episodes: which are counted; None = all of them.

    Raises:
        ValueError: another split than train, no transition in it, a number that is not finite, or
            a damaged record.
    """
    declaration = reader.declaration
    if reader.split != declaration.splits[0]:
        raise ValueError(
            f"statistics of split {reader.split!r}: expected {declaration.splits[0]!r}, because "
            "nothing of the other splits may enter the normalisation"
        )
    began = time.monotonic()
    chosen = range(len(reader)) if episodes is None else episodes
    specs = declaration.action_spec, declaration.state_spec
    counts, centres = [Accumulator(spec) for spec in specs], [CircularMean(spec) for spec in specs]
    for motion in _motions(reader, chosen, stride):
        for rows, count, centre in zip(motion, counts, centres, strict=True):
            count.update(rows)
            centre.update(rows)
    if not counts[0].count:
        raise ValueError(f"{reader.root}: no transition in the {len(chosen)} train episodes")
    for number, (spec, centre) in enumerate(zip(specs, centres, strict=True)):
        if spec.of_kind("angle"):
            pieces = counts[number].held
            if pieces is None:
                pieces = (motion[number] for motion in _motions(reader, chosen, stride))
            counts[number] = _near(centre, pieces, spec)
    actions, states = counts
    statistics = RobotStatistics(
        actions=actions.finish(),
        proprio=states.finish(StateStatistics),
        episodes=len(chosen),
        fingerprint=statistics_fingerprint(reader, stride=stride),
        root=str(reader.root),
        rate=declaration.rate / stride,
    )
    seconds = time.monotonic() - began
    logging.info("%s", rate_line(episodes=len(chosen), transitions=actions.count, seconds=seconds))
    return statistics


def cached_statistics(reader: MotionReader, *, stride: int = 1) -> RobotStatistics:
    """`compute_statistics`, once for each content of the train split, meaning and stride.

    The cache is `cache_dir() / "statistics"`, since datasets are often read-only. Warns of
    dimensions that never change, and of actions that differ from published figures.

    Raises:
        ValueError: as `compute_statistics`, or the cached file is not what was written there.
    """
    path = cache_path(statistics_fingerprint(reader, stride=stride))
    if not path.exists():
        statistics = compute_statistics(reader, stride=stride)
        path.parent.mkdir(parents=True, exist_ok=True)
        # A process that was faster is followed, because no two sketches are quite the same.
        write_once(path, statistics.to_json())
    try:
        statistics = RobotStatistics.from_json(path.read_text())
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}; delete it to have it made again") from error
    statistics = dataclasses.replace(statistics, root=str(reader.root))
    _warn_of_constants(statistics)
    _warn_of_published(reader, statistics, stride=stride)
    return statistics


def cache_path(fingerprint: str) -> pathlib.Path:
    """Where the statistics with this fingerprint are kept, as they are counted now."""
    name = hashlib.sha256(f"{fingerprint} {RULES}".encode()).hexdigest()[:32]
    return cache_dir() / "statistics" / f"{name}.json"


def rate_line(*, episodes: int, transitions: int, seconds: float) -> str:
    """What making statistics took, and would take for the full BridgeData V2, in one line.

    Args:
        episodes, transitions: that were counted, at least one each.
        seconds: that it took.
    """
    each = seconds / episodes
    return (
        f"statistics: {episodes:,} episodes, {transitions:,} transitions in {seconds:.1f} s "
        f"({1000 * each:.2f} ms an episode of {transitions / episodes:.1f}); the full BridgeData "
        f"V2 ({BRIDGE_EPISODES:,} episodes of {BRIDGE_TRANSITIONS / BRIDGE_EPISODES:.1f}) would "
        f"take about {BRIDGE_EPISODES * each:.0f} s at this rate"
    )


def _near(centre: CircularMean, pieces: Iterable[np.ndarray], spec: VectorSpec) -> Accumulator:
    """Counts rows with each angle at the turn nearest to its circular mean."""
    found, angles, middle = Accumulator(spec), spec.of_kind("angle"), centre.finish()
    for rows in pieces:
        turned = rows.copy()
        turned[:, angles] = nearest_turn(rows[:, angles], middle)
        found.update(turned)
    return found


def _motions(
    reader: MotionReader, episodes: Sequence[int], stride: int
) -> Iterator[tuple[Float32[np.ndarray, "m A"], Float32[np.ndarray, "kept J"]]]:
    """Target actions and states of each episode, all finite."""
    declaration, progress = reader.declaration, _Progress(len(episodes))
    for index in episodes:
        actions, states = reader.motion(index, stride)
        where = f"{reader.dataset} in {reader.root}: episode {reader.headers[index].name}"
        require_finite(states, declaration.state_spec, where=f"{where}, states")
        require_finite(actions, declaration.action_spec, where=f"{where}, actions")
        yield actions, states
        progress.step()


def _warn_of_constants(statistics: RobotStatistics) -> None:
    for kind in ("actions", "proprio"):
        constant = getattr(statistics, kind).constant
        if constant:
            logging.warning(
                "statistics: %s of %s never changes in the train split of %s; it is 0 when "
                "normalised",
                ", ".join(constant),
                kind,
                statistics.root,
            )


def _warn_of_published(reader: MotionReader, statistics: RobotStatistics, *, stride: int) -> None:
    published = published_for(reader.declaration, dataset=reader.dataset, stride=stride)
    if published is None:
        return
    outside = [c for c in compare_with_published(statistics.actions, published) if c.outside]
    if outside:
        logging.warning(
            "statistics: %s in %s: over %d transitions, actions lie outside of 1/3 to 3 times the "
            "published figures: %s. Likely reasons: other units (cm, degrees), absolute poses "
            "where changes are expected or the reverse, another rate than %g Hz, or too few "
            "transitions to tell",
            reader.dataset,
            statistics.root,
            statistics.actions.count,
            ", ".join(
                f"{c.name} {c.quantile} {c.measured:.4g} ({c.published:.4g})" for c in outside
            ),
            statistics.rate,
        )


class _Progress:
    """A log line now and then with the time left."""

    def __init__(self, total: int):
        self._total, self._done = total, 0
        self._began = self._said = time.monotonic()

    def step(self) -> None:
        self._done += 1
        now = time.monotonic()
        if now - self._said >= PROGRESS_EVERY_S:
            self._said = now
            left = (now - self._began) / self._done * (self._total - self._done)
            share = 100 * self._done / self._total
            logging.info("statistics: %.0f %% of the episodes read, about %.0f s left", share, left)


def statistics_fingerprint(reader: MotionReader, *, stride: int = 1) -> str:
    """Hash of the episodes, of what their numbers are taken for and of the rate."""
    text = f"{reader.fingerprint} {reader.declaration.digest()} {stride}"
    return hashlib.sha256(text.encode()).hexdigest()[:32]
