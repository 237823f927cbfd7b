"""What a policy is shown, in physical units, and how it becomes a window of a batch.

Frames, actions and states pass through the same code as those of recorded episodes, so a policy
predicts what an evaluation of the same window predicts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Shaped

from roam_jax.contracts import FRAMES_PER_LATENT, REWARD_DIM, Batch, TimeSpec, VectorSpec
from roam_jax.data.options import Spaces
from roam_jax.data.statistics import RobotStatistics, require_finite
from roam_jax.data.windows import dimension_places, place_dimensions, resize_frames


@dataclasses.dataclass(frozen=True)
class Observation:
    """The observed part of a window of one world, or of many with a leading axis everywhere.

    Frames may have any size; the policy brings them to its own. What a policy does not read may be
    left out, or given all the same.

    Args:
        frames: (observed_frames, height, width, 3) uint8, RGB of the first camera, the last now.
        past_actions: (4 t_current - 4, A) the actions between them, in their units; grippers 1
            (open), 0 (closed) or 0.5 (not yet decided), as `data.actions.gripper_inputs` makes
            them of commands since the episode began.
        proprio: (t_current, J) robot states at frames 0, 4, .., in their units.
        reward: (t_current,) reward of frame 0, then sums over four frames each.
        camera_frames: camera -> frames like `frames`, of the cameras beside the first.
        goal_frame: (height, width, 3) uint8, the first camera's picture of the goal.
    """

    frames: Shaped[np.ndarray, "..."]
    past_actions: Shaped[np.ndarray, "..."] | None = None
    proprio: Shaped[np.ndarray, "..."] | None = None
    reward: Shaped[np.ndarray, "..."] | None = None
    camera_frames: Mapping[str, Shaped[np.ndarray, "..."]] | None = None
    goal_frame: Shaped[np.ndarray, "..."] | None = None

    @property
    def batched(self) -> bool:
        """Whether there is a leading axis of worlds."""
        return np.ndim(self.frames) == 5

    def with_axis(self) -> Observation:
        """The same with a leading axis of one world."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return Observation(**{name: _one_row(value) for name, value in fields.items()})


@dataclasses.dataclass(frozen=True)
class ObservationReader:
    """Makes batches of observations for one model and one robot.

    Args:
        time: alignment of the window.
        image_size: (height, width) of the model's frames.
        statistics: scaling of the robot's actions and states.
        spaces: dimensions of all robots where members of a mixture differ.
        cameras: names of those beside the first.
        reads: fields of a batch that the model reads.
        has_goal: whether it reads a goal frame.
    """

    time: TimeSpec
    image_size: tuple[int, ...]
    statistics: RobotStatistics
    spaces: Spaces | None
    cameras: tuple[str, ...]
    reads: tuple[str, ...]
    has_goal: bool

    def read(self, observation: Observation) -> Batch:
        """A batch without text, of an observation with a leading axis.

        Raises:
            ValueError: something that the model reads is missing, or has another shape, dtype or
                range than expected.
        """
        frames = self._require("frames", observation.frames, "pictures of the first camera")
        size = len(frames)
        batch = {"frames": self._videos("frames", frames, size)}
        if self.cameras:
            given = observation.camera_frames or {}
            if missing := [name for name in self.cameras if name not in given]:
                raise ValueError(
                    f"observation.camera_frames has {', '.join(given) or 'no camera'}: expected "
                    f"frames of {', '.join(missing)} as well"
                )
            videos = [self._videos(f"camera_frames[{n!r}]", given[n], size) for n in self.cameras]
            batch["camera_frames"] = np.stack(videos, axis=1)
        if self.has_goal:
            goal = self._require("goal_frame", observation.goal_frame, "a picture of the goal")
            batch["goal_frame"] = self._videos("goal_frame", goal[:, None], size, frames=1)
        return Batch(**batch, **dict(self._vectors(observation, size)))

    def action_places(self) -> list[int] | slice:
        """Where in the model's actions those of the robot are."""
        if self.spaces is None:
            return slice(None)
        return dimension_places(self.statistics.actions.spec, self.spaces.actions)

    def _vectors(self, observation: Observation, size: int) -> Iterator[tuple[str, np.ndarray]]:
        """Past actions, states and rewards that are read, normalised."""
        time, statistics = self.time, self.statistics
        streams = (
            ("past_actions", observation.past_actions, time.past_actions, "actions"),
            ("proprio", observation.proprio, time.t_current, "proprio"),
        )
        for name, given, rows, kind in streams:
            own = getattr(statistics, kind)
            field = name if name == "past_actions" else f"observed_{name}"
            if field in self.reads and rows:
                what = f"{rows} rows of {', '.join(own.spec.names)}"
                given = self._require(name, given, what)
            if given is not None:
                given = _vector(name, given, (size, rows, len(own.spec)), own.spec)
            if field in self.reads:
                rows = own.normalise(given) if rows else np.zeros((size, 0, len(own.spec)), "f4")
                yield field, self._place(rows, kind)
        if "observed_reward" in self.reads:
            what = f"{time.t_current} rewards, one a latent frame"
            reward = self._require("reward", observation.reward, what)
            shape = (size, time.t_current, REWARD_DIM)
            if np.shape(reward) == shape[:-1]:
                reward = np.asarray(reward)[..., None]
            yield "observed_reward", _vector("reward", reward, shape, None)
        if self.spaces is not None:
            for kind, mask in (("actions", "action_mask"), ("proprio", "proprio_mask")):
                own = np.ones((size, len(self._places(kind))), np.float32)
                yield mask, self._place(own, kind)

    def _place(self, rows: np.ndarray, kind: str) -> np.ndarray:
        """A robot's own dimensions at their places among those of all robots."""
        if self.spaces is None:
            return rows
        return place_dimensions(rows, self._places(kind), len(getattr(self.spaces, kind)))

    def _places(self, kind: str) -> list[int]:
        return dimension_places(getattr(self.statistics, kind).spec, getattr(self.spaces, kind))

    def _require(self, name: str, given: np.ndarray | None, what: str) -> np.ndarray:
        if given is None:
            raise ValueError(f"observation.{name} is missing: the policy reads {what}")
        return np.asarray(given)

    def _videos(
        self, name: str, given: np.ndarray, size: int, *, frames: int | None = None
    ) -> np.ndarray:
        """Checked and resized, (size, frames, H, W, 3)."""
        given, frames = np.asarray(given), frames or self.time.observed_frames
        fits = given.ndim == 5 and given.shape[:2] == (size, frames) and given.shape[-1] == 3
        if not fits or not given.size or given.dtype != np.uint8:
            shown = tuple(given.shape[1:])
            raise ValueError(
                f"observation.{name} has shape {shown} and dtype {given.dtype} (worlds: "
                f"{len(given)}), expected ({frames}, height, width, 3) of uint8 for each of "
                f"{max(size, 1)}; the model sees environment frames "
                f"0..{self.time.observed_frames - 1}, every {FRAMES_PER_LATENT} after the first "
                "one latent frame"
            )
        return np.stack([resize_frames(clip, self.image_size) for clip in given])


def _vector(
    name: str, given: np.ndarray, shape: tuple[int, ...], spec: VectorSpec | None
) -> np.ndarray:
    """Checked, as float32.

    Raises:
        ValueError: another shape, numbers that are not finite, or a gripper that is none of 0, 0.5
            and 1.
    """
    given = np.asarray(given, np.float32)
    if given.shape != shape:
        listed = "" if spec is None else f": {', '.join(spec.names)}"
        raise ValueError(
            f"observation.{name} has shape {given.shape[1:]} (worlds: {len(given)}), expected "
            f"{shape[1:]} for each of {shape[0]}{listed}"
        )
    rows = given.reshape(-1, shape[-1])
    if spec is None:
        if not np.isfinite(rows).all():
            raise ValueError(f"observation.{name}: NaN or infinite numbers; expected finite ones")
        return given
    require_finite(rows, spec, where=f"observation.{name}")
    grippers = rows[:, spec.of_kind("gripper")]
    undecided = ~np.isin(grippers, (0, 0.5, 1))
    if name == "past_actions" and undecided.any():
        raise ValueError(
            f"observation.{name}: a gripper of {grippers[undecided][0]:g}: expected 1 (open), 0 "
            "(closed) or 0.5 (not yet decided); a predicted one above 0.5 was open"
        )
    return given


def _one_row(value: np.ndarray | Mapping | None) -> np.ndarray | Mapping | None:
    if value is None:
        return None
    if isinstance(value, Mapping):
        return {name: np.asarray(frames)[None] for name, frames in value.items()}
    return np.asarray(value)[None]


def per_world(values: Sequence | np.ndarray, size: int, *, name: str) -> list:
    """One value for each world.

    Raises:
        ValueError: another number of them.
    """
    if len(values) != size:
        raise ValueError(f"{len(values)} {name} for {size} worlds: expected one each")
    return list(values)
