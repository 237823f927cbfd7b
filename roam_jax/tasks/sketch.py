"""What a config would train, before any weight or episode is there: shapes alone.

A batch's shapes, which `build` reads from data, are worked out from the config; where the config
names no weights, the published CogVideoX-2B is assumed, and said.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import ml_collections
import numpy as np

from roam_jax.cogvideox.config import TransformerConfig
from roam_jax.contracts import ACTION_DIM, PROPRIO_DIM, REWARD_DIM, ArraySpec, Task, TimeSpec
from roam_jax.data.embedded import EMBEDDING_DIM
from roam_jax.data.text import TextEmbeddings
from roam_jax.data.windows import LANGUAGE_EMBEDDING
from roam_jax.tasks.backbone import open_backbone
from roam_jax.tasks.build import encoded, task_maker
from roam_jax.train import sharding


@dataclasses.dataclass(frozen=True)
class Sketch:
    """The model of a config, and how it is trained, without data and weights.

    Args:
        config: the whole config.
        time: alignment of the window.
        model: a `GraftModel`, `VideoModel` or `VAEModel`.
        task: the trainer's view of it, on batches that bring frames.
        rules: sharding rules of its parameters.
        assumed: a sentence for each thing that the config leaves open.
    """

    config: ml_collections.ConfigDict
    time: TimeSpec
    model: Any
    task: Task
    rules: sharding.Rules
    assumed: tuple[str, ...]

    @property
    def has_backbone(self) -> bool:
        """Whether the task stands on a frozen VAE, which encodes the frames of a batch."""
        return hasattr(self.model, "backbone")

    @property
    def encoded_task(self) -> Task:
        """The task on batches whose frames were encoded before, as `data.encode_once` has it."""
        return encoded(self.task, time=self.time, latent_shape=self.model.backbone.latent_shape)


def sketch(config: ml_collections.ConfigDict) -> Sketch:
    """Shapes of what `build` makes; reads headers of the weights and texts that are named.

    Raises:
        FileNotFoundError, ValueError: a path leads nowhere, or a value of the config does not fit.
    """
    make_task = task_maker(config)
    time = TimeSpec(config.data.frames, config.canvas.t_current)
    model, task, rules = make_task(config, time, _batch_spec(config, time))
    return Sketch(config, time, model, task, rules, tuple(_assumed(config)))


def _assumed(config: ml_collections.ConfigDict) -> Iterator[str]:
    """A sentence for each path that the task needs and the config leaves empty."""
    published = "the published CogVideoX-2B"
    frozen = {"graft": "", "video": "'s VAE"}  # what of the backbone the task does not train
    if not config.backbone.path and config.train.task in frozen:
        yield (
            f"backbone.path is empty: sizes of {published}{frozen[config.train.task]}, "
            "frozen weights in 16 bits"
        )
    if not config.data.text:
        own = config.backbone.path and config.train.task == "graft"
        yield f"data.text is empty: embeddings as {'the backbone' if own else published} has them"


def _batch_spec(config: ml_collections.ConfigDict, time: TimeSpec) -> dict[str, ArraySpec]:
    """The batch that `WindowSource` and the loader make."""
    side, future = config.data.image_size, time.latents - time.t_current
    windows = {
        "text": _text_shape(config),
        "past_actions": (time.past_actions, ACTION_DIM),
        "action_chunk": (time.chunk, ACTION_DIM),
        "observed_proprio": (time.t_current, PROPRIO_DIM),
        "future_proprio": (future, PROPRIO_DIM),
        "observed_reward": (time.t_current, REWARD_DIM),
        "future_reward": (future, REWARD_DIM),
    }
    batch = config.train.batch_size
    return {
        "frames": ArraySpec((batch, time.frames, side, side, 3), np.dtype(np.uint8)),
        **{n: ArraySpec((batch, *shape), np.dtype(np.float32)) for n, shape in windows.items()},
        "episode": ArraySpec((batch,), np.dtype(np.int32)),
        "start": ArraySpec((batch,), np.dtype(np.int32)),
    }


def _text_shape(config: ml_collections.ConfigDict) -> tuple[int, int]:
    """(S, D) of a window's text embedding."""
    if config.data.text == LANGUAGE_EMBEDDING:
        return 1, EMBEDDING_DIM
    if config.data.text:
        text = TextEmbeddings(config.data.text)
        return text.tokens, text.width
    sizes = TransformerConfig()
    if config.backbone.path and config.train.task == "graft":
        backbone = open_backbone(config.backbone.path, image_size=config.data.image_size)
        sizes = backbone.transformer_config
    return sizes.max_text_seq_length, sizes.text_embed_dim
