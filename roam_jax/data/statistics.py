"""What robots do and where they are over the train split, and the scaling that follows from it.

Poses go to [-1, 1] by their 1 % and 99 % quantiles, as OpenVLA scales actions; the gripper stays
in 0..1. Statistics come from the train split alone, are exact (56 bytes a step are held while they
are made) and are cached under the content of the records that they were made from.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

import numpy as np
from absl import logging
from jaxtyping import Float

from roam_jax.contracts import ACTION_DIM, ACTION_NAMES, ANGLES, GRIPPER, cache_dir
from roam_jax.data.actions import FIRST_STEP, relabel
from roam_jax.data.dataset import EpisodeReader
from roam_jax.data.proprio import circular_mean, nearest_turn
from roam_jax.files import write_atomically

# Part of the fingerprint: a change in what is counted must not meet older figures.
RULES = "actions relabelled, wrapped, reverse gripper scan; states near their circular mean; 2"
PER_DIMENSION = ("mean", "std", "minimum", "maximum", "q01", "q99")


@dataclasses.dataclass(frozen=True)
class PoseStatistics:
    """Figures over rows of x, y, z in m, roll, pitch, yaw in rad and gripper (1 = open).

    Args:
        count: rows.
        mean, std, minimum, maximum, q01, q99: 7 values each.
    """

    count: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    minimum: tuple[float, ...]
    maximum: tuple[float, ...]
    q01: tuple[float, ...]
    q99: tuple[float, ...]

    def __post_init__(self):
        for name in PER_DIMENSION:
            values = getattr(self, name)
            if len(values) != ACTION_DIM or not np.isfinite(values).all():
                raise ValueError(
                    f"statistics: {name} = {values}, expected {ACTION_DIM} finite numbers"
                )

    @classmethod
    def over(cls, rows: Float[np.ndarray, "rows 7"]) -> PoseStatistics:
        """Exact figures of at least one row."""
        low, high = np.quantile(rows, (0.01, 0.99), axis=0).astype(np.float64)
        figures = {
            "mean": rows.mean(axis=0, dtype=np.float64),
            "std": rows.std(axis=0, dtype=np.float64),
            "minimum": rows.min(axis=0),
            "maximum": rows.max(axis=0),
            "q01": low,
            "q99": high,
        }
        return cls(
            count=len(rows), **{name: tuple(values.tolist()) for name, values in figures.items()}
        )

    @classmethod
    def from_fields(cls, fields: Any) -> PoseStatistics:
        """Takes what `dataclasses.asdict` gave, through JSON or not.

        Raises:
            ValueError: other fields than expected.
        """
        expected = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(fields, dict) or set(fields) != expected:
            raise ValueError(f"statistics: expected a JSON object with {sorted(expected)}")
        return cls(**{k: tuple(v) if k in PER_DIMENSION else v for k, v in fields.items()})

    @property
    def constant(self) -> tuple[str, ...]:
        """Pose dimensions with q99 = q01; they are 0 when normalised and q01 when restored."""
        spans = zip(ACTION_NAMES[:GRIPPER], self.q01, self.q99, strict=False)
        return tuple(name for name, low, high in spans if high <= low)

    def normalise(self, rows: Float[np.ndarray, "*rows 7"]) -> Float[np.ndarray, "*rows 7"]:
        """Pose to [-1, 1], clipped where it lies outside of q01..q99; the gripper is untouched."""
        low, span = self._pose_range()
        scaled = 2 * (rows[..., :GRIPPER] - low) / np.where(span > 0, span, 1) - 1
        pose = np.where(span > 0, np.clip(scaled, -1, 1), 0)
        return np.concatenate([pose, rows[..., GRIPPER:]], axis=-1).astype(rows.dtype)

    def unnormalise(self, rows: Float[np.ndarray, "*rows 7"]) -> Float[np.ndarray, "*rows 7"]:
        """Back to m and rad, the inverse of `normalise` for what it did not clip."""
        low, span = self._pose_range()
        pose = (rows[..., :GRIPPER] + 1) / 2 * span + low
        return np.concatenate([pose, rows[..., GRIPPER:]], axis=-1).astype(rows.dtype)

    def _pose_range(self) -> tuple[np.ndarray, np.ndarray]:
        low, high = np.asarray(self.q01[:GRIPPER]), np.asarray(self.q99[:GRIPPER])
        return low, high - low


@dataclasses.dataclass(frozen=True)
class ProprioStatistics(PoseStatistics):
    """Figures over robot states; angles at the turn nearest to their circular mean.

    `unnormalise` gives angles between q01 and q99, which may lie outside of (-pi, pi].
    """

    @classmethod
    def over(cls, rows: Float[np.ndarray, "rows 7"]) -> ProprioStatistics:
        """Exact figures of at least one stored state."""
        rows = rows.copy()
        rows[:, ANGLES] = nearest_turn(rows[:, ANGLES], circular_mean(rows[:, ANGLES]))
        return super().over(rows)

    def normalise(self, rows: Float[np.ndarray, "*rows 7"]) -> Float[np.ndarray, "*rows 7"]:
        """Pose to [-1, 1] as for actions; gripper opening clipped to 0..1.

        An angle is first taken at the turn nearest to the middle of q01..q99, so that one which
        lies outside is clipped to the nearer end.
        """
        low, span = self._pose_range()
        turned = rows.astype(np.float64)
        turned[..., ANGLES] = nearest_turn(turned[..., ANGLES], (low + span / 2)[ANGLES])
        turned[..., GRIPPER] = np.clip(turned[..., GRIPPER], 0, 1)
        return super().normalise(turned).astype(rows.dtype)


@dataclasses.dataclass(frozen=True)
class RobotStatistics:
    """Scaling of all that robots of a train split do and feel.

    Args:
        actions: over target actions, in m and rad a step.
        proprio: over the states of kept steps, in m and rad.
        episodes: episodes that both come from.
        fingerprint: hash of the records and of the rules that made rows of them.
        root: the dataset's folder when they were last used.
    """

    actions: PoseStatistics
    proprio: ProprioStatistics
    episodes: int
    fingerprint: str
    root: str

    def to_json(self) -> str:
        """One JSON object; `from_json` gives back exactly these numbers."""
        return json.dumps(dataclasses.asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> RobotStatistics:
        """Reads what `to_json` wrote.

        Raises:
            ValueError: not JSON, or other fields than expected.
        """
        fields = json.loads(text)
        expected = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(fields, dict) or set(fields) != expected:
            raise ValueError(f"statistics: expected a JSON object with {sorted(expected)}")
        parts = {"actions": PoseStatistics, "proprio": ProprioStatistics}
        return cls(**fields | {k: part.from_fields(fields[k]) for k, part in parts.items()})


def compute_statistics(reader: EpisodeReader) -> RobotStatistics:
    """Statistics over every kept step of the train split, read one episode at a time.

    Raises:
        ValueError: another split than train, no transition in it, or a damaged record.
    """
    if reader.split != "train":
        raise ValueError(
            f"statistics of split {reader.split!r}: expected 'train', because nothing of "
            "the other splits may enter the normalisation"
        )
    actions, states = [], []
    for index in range(len(reader)):
        logging.log_every_n_seconds(
            logging.INFO, "statistics: episode %d of %d", 30, index, len(reader)
        )
        episode = reader[index]
        actions.append(relabel(episode.state, episode.action).targets)
        states.append(episode.state[FIRST_STEP:])
    if not sum(map(len, actions)):
        raise ValueError(f"{reader.root}: no transition in the {len(reader)} train episodes")
    return RobotStatistics(
        actions=PoseStatistics.over(np.concatenate(actions)),
        proprio=ProprioStatistics.over(np.concatenate(states)),
        episodes=len(reader),
        fingerprint=_fingerprint(reader),
        root=str(reader.root),
    )


def cached_statistics(reader: EpisodeReader) -> RobotStatistics:
    """`compute_statistics`, once for each content of the train split.

    The cache is `cache_dir() / "statistics"`, since datasets are often read-only.

    Raises:
        ValueError: as `compute_statistics`, or the cached file is not what was written there.
    """
    path = cache_dir() / "statistics" / f"{_fingerprint(reader)}.json"
    if path.exists():
        try:
            statistics = RobotStatistics.from_json(path.read_text())
        except ValueError as error:
            raise ValueError(f"{path}: {error}; delete it to have it made again") from error
        statistics = dataclasses.replace(statistics, root=str(reader.root))
    else:
        statistics = compute_statistics(reader)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, statistics.to_json())
    for kind in ("actions", "proprio"):
        constant = getattr(statistics, kind).constant
        if constant:
            logging.warning(
                "statistics: %s of %s never changes in the train split of %s; it is 0 when "
                "normalised",
                ", ".join(constant),
                kind,
                reader.root,
            )
    return statistics


def _fingerprint(reader: EpisodeReader) -> str:
    return hashlib.sha256(f"{reader.fingerprint} {RULES}".encode()).hexdigest()[:32]
