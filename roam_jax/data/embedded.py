"""The embedded default data: scripted tabletop episodes, written once in Bridge's own format.

No download and no TensorFlow: the simulated gantry's episodes become RLDS TFRecords with the
feature spec of `bridge_dataset` 1.0.0, so that they pass through the same reader as the real ones.
A folder is named by the generator's version and a digest of the spec; its bytes follow from both.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import hashlib
import io
import pathlib
import re
from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from jaxtyping import Float, UInt8
from PIL import Image

from roam_jax.contracts import ACTION_DIM, cache_dir
from roam_jax.data.rlds_writing import (
    serialize_example,
    write_folder_once,
    write_info,
    write_split,
)
from roam_jax.sim.environments import KINDS, PLAIN_LOOK, VARIED_LOOK, Look, draw_environment
from roam_jax.sim.experts import Episode, run_expert
from roam_jax.sim.render import Renderer
from roam_jax.sim.tabletop import SimulationDivergedError, Tabletop
from roam_jax.spelling import nearest

# Raise it whenever the same spec would give other bytes: old caches are then left alone.
GENERATOR_VERSION = 4
VERSION = "1.0.0"
NAME = "tabletop"
CAMERAS = 4  # as in Bridge; image_0 is drawn and the others are black
EMBEDDING_DIM = 512
EMBEDDING_SEED = b"roam_jax word counts"
JPEG_QUALITY = 95
ATTEMPTS = 20  # draws of one episode before the generator gives up


@dataclasses.dataclass(frozen=True)
class EmbeddedSpec:
    """What a set of embedded episodes holds; equal specs give equal bytes.

    Args:
        seed: of scenes, instructions and experts.
        train, val: episodes of each split, half of them reach and half push.
        steps: range of stored steps an episode.
        look: what varies in colours, shapes, table, camera and lamp.
        image_size: pixels of a side.
    """

    seed: int
    train: int
    val: int
    steps: tuple[int, int] = (16, 28)
    look: Look = PLAIN_LOOK
    image_size: int = 64

    def digest(self) -> str:
        """Eight hexadecimal digits that name the spec."""
        return hashlib.sha256(repr(self).encode()).hexdigest()[:8]


VARIANTS: dict[str, EmbeddedSpec] = {
    # What `tiny` trains on by default.
    "default": EmbeddedSpec(seed=0, train=96, val=16),
    # What the small VAE and backbone were pretrained on; no episode is shared with the default.
    "pretrain": EmbeddedSpec(seed=1, train=512, val=48, look=VARIED_LOOK),
}


def ensure_embedded(
    *, variant: str | EmbeddedSpec = "default", directory: pathlib.Path | None = None
) -> pathlib.Path:
    """Root of the embedded dataset (".../1.0.0"), written on first use.

    Safe to call from several processes: each writes a folder of its own, the first to finish
    renames it into place, and the others drop theirs.

    Args:
        variant: a name in `VARIANTS`, or a spec of one's own.
        directory: where datasets are kept; default `cache_dir() / "embedded"`.

    Raises:
        ValueError: unknown variant.
    """
    if isinstance(variant, str):
        if variant not in VARIANTS:
            raise ValueError(
                f"embedded variant {variant!r}: expected one of {sorted(VARIANTS)} "
                f"(did you mean {nearest(variant, VARIANTS)!r}?)"
            )
        name, spec = variant, VARIANTS[variant]
    else:
        name, spec = "custom", variant
    directory = cache_dir() / "embedded" if directory is None else pathlib.Path(directory)
    folder = directory / f"{NAME}-{name}-g{GENERATOR_VERSION}-{spec.digest()}"
    if not folder.exists():
        logging.info("Making %d embedded episodes in %s (once)", spec.train + spec.val, folder)
        dropped = write_folder_once(folder, lambda empty: write_dataset(spec, empty / VERSION))
        logging.info("Made %s; dropped %s", folder, dict(dropped))
    return folder / VERSION


def write_dataset(spec: EmbeddedSpec, root: pathlib.Path) -> dict[str, int]:
    """Write TFRecords, features.json and dataset_info.json of a spec into `root`, a new folder.

    Returns:
        How many episodes were dropped because they "diverged" or were "unsuccessful".

    Raises:
        FileExistsError: `root` exists.
        RuntimeError: an episode failed at every one of `ATTEMPTS` draws.
    """
    root.mkdir(parents=True)
    dropped = {"diverged": 0, "unsuccessful": 0}
    splits = [
        write_split(root, NAME, split, _payloads(spec, index, split, count, dropped))
        for index, (split, count) in enumerate((("train", spec.train), ("val", spec.val)))
    ]
    write_info(
        root,
        bridge_features(spec.image_size),
        name=NAME,
        version=VERSION,
        module="roam_jax.data.embedded",
        description=f"Scripted tabletop episodes of {spec}; dropped: {dropped}.",
        generator=GENERATOR_VERSION,
        splits=splits,
    )
    return dropped


def _payloads(
    spec: EmbeddedSpec, index: int, split: str, count: int, dropped: dict[str, int]
) -> Iterator[bytes]:
    for number, episode in enumerate(_episodes(spec, index, count, dropped)):
        path = f"{NAME}-{spec.digest()}/{split}/{episode.environment.goal.kind}"
        yield serialize_episode(episode, file_path=path, number=number)


def _episodes(
    spec: EmbeddedSpec, split: int, count: int, dropped: dict[str, int]
) -> Iterator[Episode]:
    """Successful episodes, reach and push in turn; failures are counted and drawn again."""
    for number in range(count):
        for attempt in range(ATTEMPTS):
            # A stream of its own for every draw: an episode does not depend on those before it.
            rng = np.random.default_rng([spec.seed, split, number, attempt])
            try:
                episode = make_episode(spec, KINDS[number % len(KINDS)], rng)
            except SimulationDivergedError:
                dropped["diverged"] += 1
                continue
            if episode.success:
                yield episode
                break
            dropped["unsuccessful"] += 1
        else:
            raise RuntimeError(f"episode {number}: none of {ATTEMPTS} draws succeeded ({spec})")


def make_episode(spec: EmbeddedSpec, kind: str, rng: np.random.Generator) -> Episode:
    """One expert run of `kind` ("reach" or "push"), rendered.

    Raises:
        SimulationDivergedError: the physics blew up.
    """
    environment = draw_environment(rng, kind=kind, look=spec.look)
    table = Tabletop(environment.scene)
    renderer = Renderer(table.model, environment.scene, size=spec.image_size)
    return run_expert(
        environment, table, rng=rng, camera=lambda: renderer.render(table.data), steps=spec.steps
    )


def bridge_features(image_size: int) -> tfds.features.FeaturesDict:
    """The feature spec of `bridge_dataset` 1.0.0 with square images of `image_size` pixels."""
    feature = tfds.features

    def scalar(dtype, doc: str):
        return feature.Scalar(dtype=dtype, doc=doc)

    def vector(size: int, doc: str):
        return feature.Tensor(shape=(size,), dtype=np.float32, doc=doc)

    images = {
        f"image_{camera}": feature.Image(
            shape=(image_size, image_size, 3),
            dtype=np.uint8,
            encoding_format="jpeg",
            doc="Camera RGB observation." if camera == 0 else "No such camera: black.",
        )
        for camera in range(CAMERAS)
    }
    state = vector(7, "Fingertip x, y, z (m), roll, pitch, yaw (rad), gripper opening (1 open).")
    action = "Commanded pose delta (m, rad) and absolute gripper command (1 open, 0 closed)."
    steps = {
        "observation": feature.FeaturesDict({**images, "state": state}),
        "action": vector(ACTION_DIM, action),
        "language_instruction": feature.Text(doc="Language instruction."),
        "language_embedding": vector(EMBEDDING_DIM, "Seeded random projection of word counts."),
        "is_first": scalar(np.bool_, "True on the first step of the episode."),
        "is_last": scalar(np.bool_, "True on the last step of the episode."),
        "is_terminal": scalar(np.bool_, "True on the last step: every episode is a success."),
        "reward": scalar(np.float32, "1 on the last step, else 0."),
        "discount": scalar(np.float32, "Always 1."),
    }
    metadata = {
        "file_path": feature.Text(doc="Dataset, split and kind of the episode."),
        "episode_id": scalar(np.int32, "Number of the episode in its split."),
        "has_language": scalar(np.bool_, "True: every episode has an instruction."),
        **{
            f"has_image_{camera}": scalar(np.bool_, "True for the camera that is drawn.")
            for camera in range(CAMERAS)
        },
    }
    return feature.FeaturesDict({"steps": feature.Dataset(steps), "episode_metadata": metadata})


def serialize_episode(episode: Episode, *, file_path: str, number: int) -> bytes:
    """The episode as the payload of one record: a tf.train.Example of flattened features.

    `file_path` and `number` together name the episode, in `episode_metadata`.
    """
    length = len(episode.states)
    instruction = episode.environment.instruction
    last = np.arange(length) == length - 1
    size = episode.frames[0].shape[0]
    steps = {
        "observation/image_0": [encode_jpeg(frame) for frame in episode.frames],
        "observation/state": episode.states,
        "action": episode.actions,
        "language_instruction": [instruction.encode()] * length,
        "language_embedding": np.tile(language_embedding(instruction), (length, 1)),
        "is_first": np.arange(length) == 0,
        "is_last": last,
        "is_terminal": last,
        "reward": last.astype(np.float32),
        "discount": np.ones(length, np.float32),
    }
    for camera in range(1, CAMERAS):
        steps[f"observation/image_{camera}"] = [_black_jpeg(size)] * length
    metadata = {
        "file_path": [file_path.encode()],
        "episode_id": np.array([number]),
        "has_language": np.array([True]),
        **{f"has_image_{camera}": np.array([camera == 0]) for camera in range(CAMERAS)},
    }
    flat = {f"steps/{name}": values for name, values in steps.items()}
    flat |= {f"episode_metadata/{name}": values for name, values in metadata.items()}
    return serialize_example(flat)


def encode_jpeg(frame: UInt8[np.ndarray, "H W 3"]) -> bytes:
    """JPEG without chroma subsampling, which would smear the small props' colours."""
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, format="JPEG", quality=JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()


@functools.cache
def _black_jpeg(size: int) -> bytes:
    return encode_jpeg(np.zeros((size, size, 3), np.uint8))


def language_embedding(instruction: str) -> Float[np.ndarray, " 512"]:
    """A fixed seeded projection of the instruction's word counts, float32 of unit length.

    Each word has a column of random signs (Achlioptas, 2003), hashed from the word, so that any
    vocabulary works and the result depends on no library's random generator. Word order and
    meaning are lost: it tells instructions apart and is no Universal Sentence Encoder. An
    instruction without words counts as the empty word; the result is never zero.
    """
    words = collections.Counter(re.findall(r"[a-z0-9']+", instruction.lower()) or [""])
    total = sum(count * _word_signs(word) for word, count in sorted(words.items()))
    return (total / np.linalg.norm(total)).astype(np.float32)


def _word_signs(word: str) -> Float[np.ndarray, " 512"]:
    digest = hashlib.shake_256(EMBEDDING_SEED + b":" + word.encode()).digest(EMBEDDING_DIM // 8)
    return 1.0 - 2.0 * np.unpackbits(np.frombuffer(digest, np.uint8))
