"""What actions look like over the train split, and the scaling that follows from it.

Pose dimensions go to [-1, 1] by their 1 % and 99 % quantiles, as in OpenVLA; the gripper stays
0 or 1. Statistics come from the train split alone, are exact (28 bytes a transition are held while
they are made) and are cached under the content of the records that they were made from.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
import tempfile

import numpy as np
from absl import logging
from jaxtyping import Float

from roam_jax.contracts import ACTION_DIM, ACTION_NAMES, GRIPPER, cache_dir
from roam_jax.data.actions import relabel
from roam_jax.data.dataset import EpisodeReader

# Part of the fingerprint: a change in how actions are made must not meet older figures.
RULES = "relabelled, wrapped, reverse gripper scan; 1"
PER_DIMENSION = ("mean", "std", "minimum", "maximum", "q01", "q99")


@dataclasses.dataclass(frozen=True)
class ActionStatistics:
    """Figures over the target actions of a train split, in m, rad and 1 = open.

    Args:
        count: transitions.
        episodes: episodes that they come from.
        mean, std, minimum, maximum, q01, q99: 7 values each.
        fingerprint: hash of the records and of the rules that made actions of them.
        root: the dataset's folder when they were last used.
    """

    count: int
    episodes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    minimum: tuple[float, ...]
    maximum: tuple[float, ...]
    q01: tuple[float, ...]
    q99: tuple[float, ...]
    fingerprint: str
    root: str

    def __post_init__(self):
        for name in PER_DIMENSION:
            values = getattr(self, name)
            if len(values) != ACTION_DIM or not np.isfinite(values).all():
                raise ValueError(
                    f"action statistics: {name} = {values}, expected {ACTION_DIM} finite numbers"
                )

    @property
    def constant(self) -> tuple[str, ...]:
        """Pose dimensions with q99 = q01; they are 0 when normalised and q01 when restored."""
        spans = zip(ACTION_NAMES[:GRIPPER], self.q01, self.q99, strict=False)
        return tuple(name for name, low, high in spans if high <= low)

    def normalise(self, actions: Float[np.ndarray, "*rows 7"]) -> Float[np.ndarray, "*rows 7"]:
        """Pose to [-1, 1], clipped where it lies outside of q01..q99; the gripper is untouched."""
        low, span = self._pose_range()
        scaled = 2 * (actions[..., :GRIPPER] - low) / np.where(span > 0, span, 1) - 1
        pose = np.where(span > 0, np.clip(scaled, -1, 1), 0)
        return np.concatenate([pose, actions[..., GRIPPER:]], axis=-1).astype(actions.dtype)

    def unnormalise(self, actions: Float[np.ndarray, "*rows 7"]) -> Float[np.ndarray, "*rows 7"]:
        """Back to m and rad, the inverse of `normalise` for what it did not clip."""
        low, span = self._pose_range()
        pose = (actions[..., :GRIPPER] + 1) / 2 * span + low
        return np.concatenate([pose, actions[..., GRIPPER:]], axis=-1).astype(actions.dtype)

    def _pose_range(self) -> tuple[np.ndarray, np.ndarray]:
        low, high = np.asarray(self.q01[:GRIPPER]), np.asarray(self.q99[:GRIPPER])
        return low, high - low

    def to_json(self) -> str:
        """One JSON object; `from_json` gives back exactly these numbers."""
        return json.dumps(dataclasses.asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> ActionStatistics:
        """Reads what `to_json` wrote.

        Raises:
            ValueError: not JSON, or other fields than expected.
        """
        fields = json.loads(text)
        expected = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(fields, dict) or set(fields) != expected:
            raise ValueError(f"action statistics: expected a JSON object with {sorted(expected)}")
        return cls(**{k: tuple(v) if k in PER_DIMENSION else v for k, v in fields.items()})


def compute_statistics(reader: EpisodeReader) -> ActionStatistics:
    """Statistics over every transition of the train split, read one episode at a time.

    Raises:
        ValueError: another split than train, no transition in it, or a damaged record.
    """
    if reader.split != "train":
        raise ValueError(
            f"action statistics of split {reader.split!r}: expected 'train', because nothing of "
            "the other splits may enter the normalisation"
        )
    rows = []
    for index in range(len(reader)):
        logging.log_every_n_seconds(
            logging.INFO, "action statistics: episode %d of %d", 30, index, len(reader)
        )
        episode = reader[index]
        rows.append(relabel(episode.state, episode.action).targets)
    actions = np.concatenate(rows)
    if not len(actions):
        raise ValueError(f"{reader.root}: no transition in the {len(reader)} train episodes")
    low, high = np.quantile(actions, (0.01, 0.99), axis=0).astype(np.float64)
    figures = {
        "mean": actions.mean(axis=0, dtype=np.float64),
        "std": actions.std(axis=0, dtype=np.float64),
        "minimum": actions.min(axis=0),
        "maximum": actions.max(axis=0),
        "q01": low,
        "q99": high,
    }
    return ActionStatistics(
        count=len(actions),
        episodes=len(reader),
        fingerprint=_fingerprint(reader),
        root=str(reader.root),
        **{name: tuple(values.tolist()) for name, values in figures.items()},
    )


def cached_statistics(reader: EpisodeReader) -> ActionStatistics:
    """`compute_statistics`, once for each content of the train split.

    The cache is `cache_dir() / "statistics"`, since datasets are often read-only.

    Raises:
        ValueError: as `compute_statistics`, or the cached file is not what was written there.
    """
    path = cache_dir() / "statistics" / f"{_fingerprint(reader)}.json"
    if path.exists():
        try:
            statistics = ActionStatistics.from_json(path.read_text())
        except ValueError as error:
            raise ValueError(f"{path}: {error}; delete it to have it made again") from error
        statistics = dataclasses.replace(statistics, root=str(reader.root))
    else:
        statistics = compute_statistics(reader)
        _write(path, statistics.to_json())
    if statistics.constant:
        logging.warning(
            "action statistics: %s never changes in the train split of %s; it is 0 when normalised",
            ", ".join(statistics.constant),
            reader.root,
        )
    return statistics


def _fingerprint(reader: EpisodeReader) -> str:
    return hashlib.sha256(f"{reader.fingerprint} {RULES}".encode()).hexdigest()[:32]


def _write(path: pathlib.Path, text: str) -> None:
    """Writes a file that is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as scratch:
        scratch.write(text)
    os.replace(scratch.name, path)
