"""Statistics of a train split: one episode at a time, made once for each content and meaning.

Only the numbers of an episode are read, no frame. Angles of states need a centre before they can
be counted; where too many states come to be held until then, the dataset is read twice.
"""

from __future__ import annotations

import dataclasses
import hashlib
import pathlib
import time
from collections.abc import Iterable, Iterator
from typing import Any, Protocol, runtime_checkable

import numpy as np
from absl import logging
from jaxtyping import Float32

from roam_jax.contracts import VectorSpec, cache_dir
from roam_jax.data.accumulate import Accumulator
from roam_jax.data.declaration import DatasetDeclaration
from roam_jax.data.proprio import CircularMean, nearest_turn
from roam_jax.data.published import compare_with_published
from roam_jax.data.statistics import RobotStatistics, StateStatistics
from roam_jax.files import write_atomically

# Part of the fingerprint: a change in what is counted must not meet older figures.
RULES = "target actions; states near their circular mean; exact or KLL; 3"
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


def compute_statistics(reader: MotionReader, *, stride: int = 1) -> RobotStatistics:
    """Statistics over every kept step of the train split, in bounded memory.

    Args:
        reader: episodes of the train split.
        stride: stored steps that one action spans, counted from every kept step.

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
    actions, states = Accumulator(declaration.action_spec), Accumulator(declaration.state_spec)
    angles = declaration.state_spec.of_kind("angle")
    centre = CircularMean(len(angles))
    for targets, rows in _motions(reader, stride):
        actions.update(targets)
        states.update(rows)
        centre.update(rows[:, angles])
    if not actions.count:
        raise ValueError(f"{reader.root}: no transition in the {len(reader)} train episodes")
    if angles:
        pieces = states.held
        if pieces is None:
            pieces = (rows for _, rows in _motions(reader, stride))
        states = _near(centre.finish(), pieces, declaration.state_spec)
    statistics = RobotStatistics(
        actions=actions.finish(),
        proprio=states.finish(StateStatistics),
        episodes=len(reader),
        fingerprint=_fingerprint(reader, stride),
        root=str(reader.root),
        rate=declaration.rate / stride,
    )
    seconds = time.monotonic() - began
    logging.info("%s", rate_line(episodes=len(reader), transitions=actions.count, seconds=seconds))
    return statistics


def cached_statistics(reader: MotionReader, *, stride: int = 1) -> RobotStatistics:
    """`compute_statistics`, once for each content of the train split, meaning and stride.

    The cache is `cache_dir() / "statistics"`, since datasets are often read-only. Warns of
    dimensions that never change, and of actions that differ from published figures.

    Raises:
        ValueError: as `compute_statistics`, or the cached file is not what was written there.
    """
    path = cache_path(_fingerprint(reader, stride))
    if not path.exists():
        statistics = compute_statistics(reader, stride=stride)
        path.parent.mkdir(parents=True, exist_ok=True)
        # A process that was faster is followed, because no two sketches are quite the same.
        if not path.exists():
            write_atomically(path, statistics.to_json())
    try:
        statistics = RobotStatistics.from_json(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: {error}; delete it to have it made again") from error
    statistics = dataclasses.replace(statistics, root=str(reader.root))
    _warn_of_constants(statistics)
    if stride == 1:
        _warn_of_published(reader, statistics)
    return statistics


def cache_path(fingerprint: str) -> pathlib.Path:
    """Where the statistics with this fingerprint are kept."""
    return cache_dir() / "statistics" / f"{fingerprint}.json"


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


def _near(middle: np.ndarray, pieces: Iterable[np.ndarray], spec: VectorSpec) -> Accumulator:
    """Counts rows with each angle at the turn nearest to its middle."""
    found, angles = Accumulator(spec), spec.of_kind("angle")
    for rows in pieces:
        turned = rows.copy()
        turned[:, angles] = nearest_turn(rows[:, angles], middle)
        found.update(turned)
    return found


def _motions(
    reader: MotionReader, stride: int
) -> Iterator[tuple[Float32[np.ndarray, "m A"], Float32[np.ndarray, "kept J"]]]:
    """Target actions and states of each episode, all finite."""
    declaration, progress = reader.declaration, _Progress(len(reader))
    for index in range(len(reader)):
        actions, states = reader.motion(index, stride)
        for what, rows, spec in (
            ("states", states, declaration.state_spec),
            ("actions", actions, declaration.action_spec),
        ):
            if not np.isfinite(rows).all():
                raise ValueError(
                    f"{reader.dataset} in {reader.root}: episode {reader.headers[index].name}: "
                    f"NaN or infinite {what} in {', '.join(_not_finite(rows, spec))}; expected "
                    "finite numbers"
                )
        yield actions, states
        progress.step()


def _not_finite(rows: np.ndarray, spec: VectorSpec) -> list[str]:
    finite = np.isfinite(rows).all(axis=0)
    return [name for name, good in zip(spec.names, finite, strict=True) if not good]


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


def _warn_of_published(reader: MotionReader, statistics: RobotStatistics) -> None:
    published = reader.declaration.published
    if published is None or reader.dataset.split("/")[0] not in published.datasets:
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


def _fingerprint(reader: MotionReader, stride: int) -> str:
    text = f"{reader.fingerprint} {reader.declaration.digest()} {stride} {RULES}"
    return hashlib.sha256(text.encode()).hexdigest()[:32]
