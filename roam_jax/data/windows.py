"""Windows of episodes: what a model sees and what it predicts, aligned in time.

A window is `TimeSpec.frames` kept steps of one episode, `stride` steps apart; every start gives
one. Inputs hold nothing of later than the last observed frame: past actions come from a forward
scan, and only targets (frames, `action_chunk`, `future_proprio`, `future_reward`) look ahead. The
one exception is asked for: a picture of the goal.
"""

from __future__ import annotations

import collections
import copy
import functools
import hashlib
from typing import Any

import cv2
import numpy as np
from absl import logging
from jaxtyping import Float32, Int, UInt8

from roam_jax.contracts import Batch, VectorSpec
from roam_jax.data.actions import EpisodeActions, episode_actions
from roam_jax.data.dataset import EpisodeReader
from roam_jax.data.episode import Episode
from roam_jax.data.options import LANGUAGE_EMBEDDING, Spaces, WindowOptions
from roam_jax.data.proprio import latent_rewards, latent_states
from roam_jax.data.statistics import RobotStatistics, require_finite
from roam_jax.data.text import TextEmbeddings

# Parsed episodes (still encoded) that are kept, for windows of one episode read in a row.
EPISODES_KEPT = 8
# Names of left-out episodes in a log line; `WindowSource.left_out` has all of them.
NAMES_LOGGED = 20
# Random goals of `source[i]`, which are always the same.
FIXED_GOALS = 0


class WindowSource:
    """Random access to the windows of a split, ordered by episode and start.

    `source[i]` is one window: a `Batch` without its batch axis. Nothing but an index and a few
    encoded episodes stays in memory. `counts` has the windows of each episode, `left_out` name and
    reason of those without one; `action_places` and `proprio_places` say where in a batch the
    dimensions of this dataset are.

    Args:
        reader: episodes of the split.
        options: what a window holds.
        statistics: scaling of actions and states.
        member: place of the dataset in a mixture.
        spaces: where the members of a mixture differ: the dimensions of all, by name. Those that
            this dataset lacks are 0, and `action_mask` and `proprio_mask` say so.

    Raises:
        FileNotFoundError: no such file of text embeddings.
        ValueError: no episode is long enough, text is missing, or the rate does not fit.
    """

    def __init__(
        self,
        reader: EpisodeReader,
        options: WindowOptions,
        *,
        statistics: RobotStatistics,
        member: int = 0,
        spaces: Spaces | None = None,
    ):
        self.reader = reader
        self.options = options
        self.statistics = statistics
        self.stride = options.stride(reader.declaration.rate)
        self._member, self._spaces = member, spaces
        self._span = (options.time.frames - 1) * self.stride + 1
        kept = np.maximum(0, reader.headers.steps - reader.declaration.skip_first)
        self.counts, self.left_out = self._count(kept)
        # Where in a batch the dimensions of this dataset are.
        actions, proprio = statistics.actions.spec, statistics.proprio.spec
        space = spaces or Spaces(actions, proprio)
        self.action_places = dimension_places(actions, space.actions)
        self.proprio_places = dimension_places(proprio, space.proprio)
        # Window i belongs to the episode whose running total is the first above i.
        self._ends = np.cumsum(self.counts)
        self._refuse_or_log_left_out(longest=int(kept.max()))
        self._text = self._open_text()
        self._open_cache()

    def __getstate__(self) -> dict[str, Any]:
        """What another process needs: without the episodes at hand."""
        return {name: value for name, value in vars(self).items() if name != "_episode"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._open_cache()

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Batch:
        """Window `index`, always the same.

        Raises:
            IndexError: there is no such window.
            ValueError: its record is damaged (names file and byte).
        """
        self._check(index)
        return self.draw(index, np.random.default_rng([FIXED_GOALS, index]))

    def draw(self, index: int, rng: np.random.Generator) -> Batch:
        """Window `index`, with a goal drawn by `rng` where `options.goal` is uniform.

        Raises:
            IndexError, ValueError: as for `source[index]`.
        """
        self._check(index)
        number = int(np.searchsorted(self._ends, index, side="right"))
        start = int(index - (self._ends[number] - self.counts[number]))
        episode, actions = self._episode(number)
        steps = self.reader.declaration.skip_first + start + np.arange(self._span)
        frames = steps[:: self.stride]
        window = self._cameras(episode, frames)
        if self.options.goal != "none":
            goal = self._goal(episode, frames, rng)
            window["goal_frame"] = self._frames(episode, [goal], self.reader.cameras[0])
        window |= {"text": self._embed(episode), **self._actions(actions, start)}
        window |= self._states(episode, steps)
        window |= {"dataset": np.int32(self._member), "episode": np.int32(number)}
        return Batch(**window, start=np.int32(start))

    @property
    def fingerprint(self) -> str:
        """Hash of the records, of what is read of them and what it is taken for."""
        declaration = self.reader.declaration
        features = (
            *(declaration.cameras[camera] for camera in self.reader.cameras),
            declaration.reward,
            declaration.instruction,
            declaration.embedding,
        )
        text = f"{self.reader.fingerprint} {declaration.digest()} {features}"
        return hashlib.sha256(text.encode()).hexdigest()

    def window_index(self, episode: int, start: int = 0) -> int:
        """Index of the window of an episode that starts at a kept step.

        Raises:
            IndexError: the episode has no such window.
        """
        windows = int(self.counts[episode])
        if not 0 <= start < windows:
            name = self.reader.headers[episode].name
            raise IndexError(f"start {start} in episode {episode} ({name}) of {windows} windows")
        return int(self._ends[episode]) - windows + start

    def with_statistics(self, statistics: RobotStatistics) -> WindowSource:
        """The same windows, scaled by other statistics of the same dimensions."""
        rescaled = copy.copy(self)
        rescaled.statistics = statistics
        return rescaled

    def describe(self) -> dict[str, Any]:
        """What a person wants to know before a run, ready for printing and JSON."""
        options = self.options
        return {
            "dataset": self.reader.dataset,
            "root": str(self.reader.root),
            "split": self.reader.split,
            "fingerprint": self.fingerprint,
            "declaration": self.reader.declaration.name,
            "cameras": list(self.reader.cameras),
            "stored_frames": {c: list(shape) for c, shape in self.reader.frame_shapes.items()},
            "image_size": list(options.image_size),
            "frames": options.time.frames,
            "observed_frames": options.time.observed_frames,
            "rate": self.reader.declaration.rate / self.stride,
            "goal": options.goal,
            "episodes": int(np.count_nonzero(self.counts)),
            "windows": len(self),
            "left_out": dict(collections.Counter(reason for _, reason in self.left_out)),
        }

    def _check(self, index: int) -> None:
        if not 0 <= index < len(self):
            raise IndexError(f"window {index} of {len(self)}")

    def _count(
        self, kept: Int[np.ndarray, " episodes"]
    ) -> tuple[Int[np.ndarray, " episodes"], tuple[tuple[str, str], ...]]:
        """Windows of each episode by its kept steps, and (name, reason) of those without one."""
        headers = self.reader.headers
        counts, short = np.maximum(0, kept - self._span + 1), kept < self._span
        empty = np.zeros(len(kept), bool)
        if self.options.skip_empty_instructions:
            blank = [not text.strip() for text in headers.instructions]
            empty = np.array(blank)[headers.columns["instruction"]] & ~short
            counts[empty] = 0
        reasons = {True: f"fewer than {self._span} steps", False: "empty instruction"}
        left_out = np.flatnonzero(short | empty)
        return counts, tuple((headers.names[i], reasons[bool(short[i])]) for i in left_out)

    def _refuse_or_log_left_out(self, *, longest: int) -> None:
        where = f"{self.reader.root}: no window left in split {self.reader.split!r}"
        if not len(self):
            raise ValueError(
                f"{where}: windows span {self._span} steps after the first "
                f"{self.reader.declaration.skip_first}, the longest of {len(self.reader)} episodes "
                f"{longest}; left out: "
                f"{dict(collections.Counter(reason for _, reason in self.left_out))}"
            )
        for reason, count in collections.Counter(r for _, r in self.left_out).items():
            named = [name for name, why in self.left_out if why == reason][:NAMES_LOGGED]
            more = f" and {count - len(named)} more" if count > len(named) else ""
            logging.warning(
                "split %r: left out %d of %d episodes, %s: %s%s",
                self.reader.split,
                count,
                len(self.reader),
                reason,
                ", ".join(named),
                more,
            )

    def _open_text(self) -> TextEmbeddings | None:
        """The file of embeddings; None for the dataset's own, or where no text is read."""
        text = self.options.text
        if not text:
            return None
        if text == LANGUAGE_EMBEDDING:
            if not self.reader.has_embedding:
                raise ValueError(
                    f"data.text = {text!r}: {self.reader.dataset} in {self.reader.root} stores "
                    "none; expected a file of `python -m convert text`"
                )
            return None
        embeddings = TextEmbeddings(text)
        headers = self.reader.headers
        used = np.unique(headers.columns["instruction"][self.counts > 0])
        embeddings.require(headers.instructions[number] for number in used)
        return embeddings

    def _open_cache(self) -> None:
        self._episode = functools.lru_cache(maxsize=EPISODES_KEPT)(self._load)

    def _load(self, number: int) -> tuple[Episode, EpisodeActions]:
        episode, declaration = self.reader[number], self.reader.declaration
        where = f"{self.reader.root}: episode {episode.header.name}"
        require_finite(episode.state, declaration.state_spec, where=f"{where}, states")
        require_finite(episode.command, declaration.action_spec, where=f"{where}, actions")
        actions = episode_actions(declaration, episode.state, episode.command, stride=self.stride)
        return episode, actions

    def _cameras(self, episode: Episode, steps: np.ndarray) -> dict[str, np.ndarray]:
        first, *others = self.reader.cameras
        window = {"frames": self._frames(episode, steps, first)}
        if others:
            window["camera_frames"] = np.stack([self._frames(episode, steps, c) for c in others])
        return window

    def _frames(self, episode: Episode, steps, camera: str) -> UInt8[np.ndarray, "T H W 3"]:
        """Some steps of a camera, resized."""
        return resize_frames(episode.frames(steps, camera=camera), self.options.image_size)

    def _goal(self, episode: Episode, frames: np.ndarray, rng: np.random.Generator) -> int:
        """Stored step of the goal."""
        last = episode.header.steps - 1
        if self.options.goal == "last":
            return last
        return int(rng.integers(frames[self.options.time.observed_frames - 1] + 1, last + 1))

    def _embed(self, episode: Episode) -> Float32[np.ndarray, "S D"]:
        if not self.options.text:
            return np.zeros((0, 0), np.float32)
        if self._text is None:
            return episode.language_embedding[None]
        return self._text[episode.header.instruction]

    def _actions(self, actions: EpisodeActions, start: int) -> dict[str, np.ndarray]:
        time, scale = self.options.time, self.statistics.actions.normalise
        rows = start + self.stride * np.arange(time.actions)
        past, future = rows[: time.past_actions], rows[time.past_actions :]
        fields = {
            "past_actions": scale(actions.inputs[past]),
            "action_chunk": scale(actions.targets[future]),
        }
        if self._spaces is None:
            return fields
        return _put_dimensions(fields, self.action_places, self._spaces.actions, mask="action_mask")

    def _states(self, episode: Episode, steps: np.ndarray) -> dict[str, np.ndarray]:
        """Robot state and reward at latent frames."""
        now = self.options.time.t_current
        states = latent_states(episode.state[steps[:: self.stride]])
        proprio = self.statistics.proprio.normalise(states)
        fields = {"observed_proprio": proprio[:now], "future_proprio": proprio[now:]}
        if self._spaces is not None:
            fields = _put_dimensions(
                fields, self.proprio_places, self._spaces.proprio, mask="proprio_mask"
            )
        reward = latent_rewards(_between_frames(episode.reward[steps], stride=self.stride))
        return {**fields, "observed_reward": reward[:now], "future_reward": reward[now:]}


def resize_frames(
    frames: UInt8[np.ndarray, "T rows columns 3"], size: tuple[int, ...]
) -> UInt8[np.ndarray, "T H W 3"]:
    """Frames of (height, width) pixels, as every window has them."""
    height, width = size
    if frames.shape[1:3] == (height, width):
        return frames
    # Area averaging is right for shrinking only; enlarging with it repeats pixels.
    shrinks = height <= frames.shape[1] and width <= frames.shape[2]
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return np.stack([cv2.resize(f, (width, height), interpolation=method) for f in frames])


def _between_frames(reward: np.ndarray, *, stride: int) -> np.ndarray:
    """Rewards of frames `stride` steps apart: of all steps since the frame before."""
    return np.concatenate([reward[:1], reward[1:].reshape(-1, stride).sum(axis=1)])


def _put_dimensions(
    fields: dict[str, np.ndarray], places: list[int], space: VectorSpec, *, mask: str
) -> dict[str, np.ndarray]:
    """Dimensions at their places in `space`, 0 elsewhere, and the mask of the places.

    Args:
        fields: name -> rows in a robot's own dimensions.
        places: of these in `space`.
        space: the dimensions of all robots.
        mask: name of the mask's field.
    """
    found = {name: place_dimensions(rows, places, len(space)) for name, rows in fields.items()}
    return {**found, mask: place_dimensions(np.ones(len(places), np.float32), places, len(space))}


def place_dimensions(rows: np.ndarray, places: list[int], width: int) -> np.ndarray:
    """(..., width): the last axis of `rows` at its places, 0 elsewhere."""
    placed = np.zeros((*rows.shape[:-1], width), rows.dtype)
    placed[..., places] = rows
    return placed


def dimension_places(spec: VectorSpec, space: VectorSpec) -> list[int]:
    """Where in `space` the dimensions of `spec` are, by name."""
    return [space.names.index(name) for name in spec.names]
