"""Windows of episodes: what a model sees and what it predicts, aligned in time.

A window is `TimeSpec.frames` consecutive kept steps of one episode; every start gives one. Inputs
hold nothing of later than the last observed frame: past actions come from a forward scan, and only
targets (frames, `action_chunk`, `future_proprio`, `future_reward`) look ahead.
"""

from __future__ import annotations

import functools
import os
from typing import Any

import cv2
import numpy as np
from absl import logging
from jaxtyping import Float32, UInt8

from roam_jax.contracts import Batch, TimeSpec
from roam_jax.data.actions import FIRST_STEP, EpisodeActions, relabel
from roam_jax.data.dataset import Episode, EpisodeReader
from roam_jax.data.proprio import latent_rewards, latent_states
from roam_jax.data.statistics import RobotStatistics
from roam_jax.data.text import TextEmbeddings

LANGUAGE_EMBEDDING = "language_embedding"
# Parsed episodes (still encoded) that are kept, for windows of one episode read in a row.
EPISODES_KEPT = 8
# Names of left-out episodes in a log line; `WindowSource.left_out` has all of them.
NAMES_LOGGED = 20


class WindowSource:
    """Random access to the windows of a split, ordered by episode and start.

    `source[i]` is one window: a `Batch` without its batch axis. Nothing but an index and a few
    encoded episodes stays in memory.

    Args:
        reader: episodes of the split.
        time: frames of a window and what of it is observed.
        image_size: height and width of the frames that come out; another aspect is squeezed.
        statistics: scaling of actions and states.
        text: "language_embedding" for the dataset's own (1, D), or a file of `TextEmbeddings`.

    Raises:
        FileNotFoundError: no such file of text embeddings.
        ValueError: no episode is long enough, or text is missing.
    """

    def __init__(
        self,
        reader: EpisodeReader,
        time: TimeSpec,
        *,
        image_size: int,
        statistics: RobotStatistics,
        text: str | os.PathLike = LANGUAGE_EMBEDDING,
    ):
        self.reader = reader
        self.time = time
        self.image_size = image_size
        self.statistics = statistics
        kept = [max(0, header.steps - FIRST_STEP) for header in reader.headers]
        self._counts = np.maximum(0, np.array(kept) - time.frames + 1)
        # Window i belongs to the episode whose running total is the first above i.
        self._ends = np.cumsum(self._counts)
        self.left_out = tuple(
            (header.name, steps)
            for header, steps in zip(reader.headers, kept, strict=True)
            if steps < time.frames
        )
        self._refuse_or_log_left_out(longest=max(kept))
        self._text = self._open_text(text)
        self._episode = functools.lru_cache(maxsize=EPISODES_KEPT)(self._load)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Batch:
        """Window `index`.

        Raises:
            IndexError: there is no such window.
            ValueError: its record is damaged (names file and byte).
        """
        if not 0 <= index < len(self):
            raise IndexError(f"window {index} of {len(self)}")
        number = int(np.searchsorted(self._ends, index, side="right"))
        start = int(index - (self._ends[number] - self._counts[number]))
        episode, actions = self._episode(number)
        time = self.time
        steps = slice(start, start + time.actions)
        scale = self.statistics.actions.normalise
        first = start + FIRST_STEP
        kept = slice(first, first + time.frames)
        proprio = self.statistics.proprio.normalise(latent_states(episode.state[kept]))
        reward = latent_rewards(episode.reward[kept])
        return Batch(
            frames=self._resize(episode.frames(kept.start, kept.stop)),
            text=self._embed(episode),
            past_actions=scale(actions.inputs[steps][: time.past_actions]),
            action_chunk=scale(actions.targets[steps][time.past_actions :]),
            observed_proprio=proprio[: time.t_current],
            future_proprio=proprio[time.t_current :],
            observed_reward=reward[: time.t_current],
            future_reward=reward[time.t_current :],
            episode=np.int32(number),
            start=np.int32(start),
        )

    def window_index(self, episode: int, start: int = 0) -> int:
        """Index of the window of an episode that starts at a kept step.

        Raises:
            IndexError: the episode has no such window.
        """
        windows = int(self._counts[episode])
        if not 0 <= start < windows:
            name = self.reader.headers[episode].name
            raise IndexError(f"start {start} in episode {episode} ({name}) of {windows} windows")
        return int(self._ends[episode]) - windows + start

    def describe(self) -> dict[str, Any]:
        """What a person wants to know before a run, ready for printing and JSON."""
        return {
            "dataset": self.reader.dataset,
            "root": str(self.reader.root),
            "split": self.reader.split,
            "fingerprint": self.reader.fingerprint,
            "camera": self.reader.camera,
            "stored_frame": list(self.reader.frame_shape),
            "image_size": self.image_size,
            "frames": self.time.frames,
            "observed_frames": self.time.observed_frames,
            "episodes": int(np.count_nonzero(self._counts)),
            "windows": len(self),
            "left_out": len(self.left_out),
        }

    def _refuse_or_log_left_out(self, *, longest: int) -> None:
        if not len(self):
            raise ValueError(
                f"{self.reader.root}: no window left in split {self.reader.split!r}: windows have "
                f"{self.time.frames} frames, the longest of {len(self.reader)} episodes {longest} "
                "steps after its first"
            )
        if self.left_out:
            named = [f"{name} ({steps})" for name, steps in self.left_out[:NAMES_LOGGED]]
            more = len(self.left_out) - len(named)
            logging.warning(
                "split %r: left out %d of %d episodes with fewer than %d steps after the first: "
                "%s%s",
                self.reader.split,
                len(self.left_out),
                len(self.reader),
                self.time.frames,
                ", ".join(named),
                f" and {more} more" if more else "",
            )

    def _open_text(self, text: str | os.PathLike) -> TextEmbeddings | None:
        """The file of embeddings; None for the dataset's own."""
        if text == LANGUAGE_EMBEDDING:
            if not self.reader.has_embedding:
                raise ValueError(
                    f"data.text = {text!r}: {self.reader.dataset} in {self.reader.root} stores "
                    "none; expected a file of `python -m convert text`"
                )
            return None
        embeddings = TextEmbeddings(text)
        used = zip(self.reader.headers, self._counts, strict=True)
        embeddings.require(header.instruction for header, windows in used if windows)
        return embeddings

    def _load(self, number: int) -> tuple[Episode, EpisodeActions]:
        episode = self.reader[number]
        return episode, relabel(episode.state, episode.action)

    def _embed(self, episode: Episode) -> Float32[np.ndarray, "S D"]:
        if self._text is None:
            return episode.language_embedding[None]
        return self._text[episode.header.instruction]

    def _resize(self, frames: UInt8[np.ndarray, "T h w 3"]) -> UInt8[np.ndarray, "T H W 3"]:
        size = self.image_size
        if frames.shape[1:3] == (size, size):
            return frames
        # Area averaging is right for shrinking only; enlarging with it repeats pixels.
        shrinks = size <= min(frames.shape[1:3])
        method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        return np.stack([cv2.resize(f, (size, size), interpolation=method) for f in frames])
