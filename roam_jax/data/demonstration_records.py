"""How one demonstration is stored as a record, and how it is read back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import cv2
import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Float32

from roam_jax.data.episode import DECODE_FLAGS
from roam_jax.data.example import Example
from roam_jax.data.rlds_writing import serialize_example
from roam_jax.morphology import PIXELS, WorldSpec

# Raise it whenever the same spec would give other bytes: old caches are then left alone.
GENERATOR_VERSION = 1
VERSION = "1.0.0"
NAME = "demonstrations"
MANIFEST = "demonstrations.json"


@dataclasses.dataclass(frozen=True)
class StoredEpisode:
    """One episode. Observation k was seen before action k.

    Args:
        observations: stream -> (steps, cells, numbers) in SI units; `PIXELS` -> (steps, S, S, 3).
        actions: the expert's, without the noise that was executed with them.
        rewards: of what was executed.
        success: whether the goal was met after the last action.
        diverged: whether the simulation left the finite range.
        seed: of the batch that it was drawn in.
    """

    observations: Mapping[str, np.ndarray]
    actions: Float32[np.ndarray, "steps J"]
    rewards: Float32[np.ndarray, " steps"]
    success: bool
    diverged: bool
    seed: Sequence[int]


def demonstration_features(spec: WorldSpec, *, pixels: int) -> tfds.features.FeaturesDict:
    """The features of a world's demonstrations, as `features.json` has them."""
    feature = tfds.features

    def scalar(dtype, doc: str):
        return feature.Scalar(dtype=dtype, doc=doc)

    observation = {
        stream.name: feature.Tensor(
            shape=stream.shape, dtype=np.float32, doc=f"Rows of {', '.join(stream.dimensions)}; SI."
        )
        for stream in spec.streams
    }
    if pixels:
        observation[PIXELS] = feature.Image(
            shape=(pixels, pixels, 3), dtype=np.uint8, encoding_format="png", doc="RGB."
        )
    action = "The expert's action in [-1, 1] a joint; what was executed has noise added."
    steps = {
        "observation": feature.FeaturesDict(observation),
        "action": feature.Tensor(shape=(len(spec.morphology),), dtype=np.float32, doc=action),
        "reward": scalar(np.float32, "Of the executed action."),
        "discount": scalar(np.float32, "Always 1."),
        "is_first": scalar(np.bool_, "True on the first step of the episode."),
        "is_last": scalar(np.bool_, "True on the last step of the episode."),
        "is_terminal": scalar(np.bool_, "False: episodes end with their time."),
    }
    metadata = {
        "world_spec": feature.Text(doc="JSON of the environment, the body and the streams."),
        "success": scalar(np.bool_, "Whether the goal was met after the last action."),
        "seed": feature.Tensor(shape=(4,), dtype=np.int64, doc="Of the batch it was drawn in."),
        "episode_id": scalar(np.int32, "Number of the episode in its split."),
        "generator": scalar(np.int32, "Version of the generator."),
    }
    return feature.FeaturesDict({"steps": feature.Dataset(steps), "episode_metadata": metadata})


def serialize_demonstration(episode: StoredEpisode, *, spec: WorldSpec, number: int) -> bytes:
    """The episode as the payload of one record."""
    length = len(episode.actions)
    last = np.arange(length) == length - 1
    steps = {
        **{
            f"observation/{name}": [encode_png(frame) for frame in values]
            if name == PIXELS
            else values
            for name, values in episode.observations.items()
        },
        "action": episode.actions,
        "reward": episode.rewards,
        "discount": np.ones(length, np.float32),
        "is_first": np.arange(length) == 0,
        "is_last": last,
        "is_terminal": np.zeros(length, bool),
    }
    metadata = {
        "world_spec": [spec.to_json().encode()],
        "success": np.array([episode.success]),
        "seed": np.array(episode.seed),
        "episode_id": np.array([number]),
        "generator": np.array([GENERATOR_VERSION]),
    }
    flat = {f"steps/{name}": values for name, values in steps.items()}
    flat |= {f"episode_metadata/{name}": values for name, values in metadata.items()}
    return serialize_example(flat)


def parse_demonstration(payload: bytes, spec: WorldSpec, *, pixels: int) -> StoredEpisode:
    """What `serialize_demonstration` wrote.

    Raises:
        ValueError: the record lacks a feature or has another number of values.
    """
    example = Example(payload)

    def numbers(name: str, *shape: int) -> np.ndarray:
        values = example.numbers(name)
        if len(values) != spec.steps * np.prod(shape, dtype=int):
            raise ValueError(
                f"{name} has {len(values)} numbers, expected {spec.steps} steps of {shape or 1}"
            )
        return values.reshape(spec.steps, *shape)

    observations = {
        stream.name: numbers(f"steps/observation/{stream.name}", *stream.shape)
        for stream in spec.streams
    }
    if pixels:
        views = example.byte_views(f"steps/observation/{PIXELS}")
        if len(views) != spec.steps:
            raise ValueError(f"{len(views)} frames, expected {spec.steps}")
        observations[PIXELS] = np.stack([decode_png(view, size=pixels) for view in views])
    return StoredEpisode(
        observations=observations,
        actions=numbers("steps/action", len(spec.morphology)),
        rewards=numbers("steps/reward"),
        success=bool(example.integers("episode_metadata/success")[0]),
        diverged=False,
        seed=tuple(example.integers("episode_metadata/seed")),
    )


def encode_png(frame: np.ndarray) -> bytes:
    """A frame of RGB, without loss."""
    return cv2.imencode(".png", frame[..., ::-1])[1].tobytes()


def decode_png(encoded: memoryview, *, size: int) -> np.ndarray:
    """The frame of RGB.

    Raises:
        ValueError: it is no picture, or not of this size.
    """
    values = np.frombuffer(encoded, np.uint8)
    frame = cv2.imdecode(values, DECODE_FLAGS) if values.size else None
    if frame is None or frame.shape != (size, size, 3):
        found = "no picture" if frame is None else f"shape {frame.shape}"
        raise ValueError(f"a frame of {found}, expected shape {(size, size, 3)}")
    return frame
