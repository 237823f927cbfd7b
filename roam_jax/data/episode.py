"""One stored episode: its numbers, and frames that stay encoded until they are asked for."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import SupportsIndex

import cv2
import numpy as np
from jaxtyping import Float32, UInt8

from roam_jax.data.index import EpisodeHeader

# Episodes are stored upright; an orientation tag must not turn a frame.
DECODE_FLAGS = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION


@dataclasses.dataclass(frozen=True)
class Episode:
    """One stored episode, every step of it; frames stay encoded until they are asked for.

    Args:
        header: its name, length and instruction.
        state: in the declaration's dimensions and units; grippers 1 open, 0 closed.
        command: stored actions, likewise; 0 in dimensions that are differences of states.
        reward: as stored with each step; 0 where the dataset has none.
        language_embedding: sentence embedding of the first step, None where the dataset has none.
        images: camera -> encoded frames.
        frame_shapes: camera -> height, width and channels by `features.json`; None = any.
    """

    header: EpisodeHeader
    state: Float32[np.ndarray, "steps J"]
    command: Float32[np.ndarray, "steps A"]
    reward: Float32[np.ndarray, " steps"]
    language_embedding: Float32[np.ndarray, " D"] | None
    images: Mapping[str, list[memoryview]]
    frame_shapes: Mapping[str, tuple[int | None, ...]]

    def frames(
        self, steps: Iterable[SupportsIndex], *, camera: str
    ) -> UInt8[np.ndarray, "T H W 3"]:
        """Decodes some steps of a camera as RGB.

        Raises:
            ValueError: a frame does not decode, or not to the shape in `features.json` or that of
                the others.
        """
        frames = [self._frame(step, camera) for step in steps]
        if len({frame.shape for frame in frames}) > 1:
            raise ValueError(
                f"episode {self.header.name}, {camera}: frames of several shapes "
                f"{sorted({frame.shape for frame in frames})}, expected one"
            )
        return np.stack(frames)

    def _frame(self, step: SupportsIndex, camera: str) -> np.ndarray:
        encoded = np.frombuffer(self.images[camera][step], np.uint8)
        frame = cv2.imdecode(encoded, DECODE_FLAGS) if encoded.size else None
        expected = self.frame_shapes[camera]
        if frame is not None and frame.shape == expected:
            return frame
        where = f"episode {self.header.name}, {camera}, step {step}"
        if frame is None:
            raise ValueError(f"{where}: {encoded.size} bytes that are no image")
        if any(n not in (None, m) for n, m in zip(expected, frame.shape, strict=True)):
            raise ValueError(
                f"{where}: frame of shape {frame.shape}, expected {expected} by features.json"
            )
        return frame
