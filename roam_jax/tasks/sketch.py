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
from roam_jax.contracts import REWARD_DIM, ArraySpec, Task, TimeSpec
from roam_jax.data.declaration import load_declaration
from roam_jax.data.embedded import EMBEDDING_DIM
from roam_jax.data.known import BRIDGE
from roam_jax.data.members import MIXED_ACTIONS, check_weights, common_spaces
from roam_jax.data.options import LANGUAGE_EMBEDDING
from roam_jax.data.text import TextEmbeddings
from roam_jax.spelling import check_choice
from roam_jax.tasks.augment import Augmentation
from roam_jax.tasks.backbone import FIRST_CAMERA, open_backbone
from roam_jax.tasks.build import encoded, task_maker
from roam_jax.tasks.datasets import dataset_choices
from roam_jax.tasks.scene_build import scene_experiment
from roam_jax.train import sharding


@dataclasses.dataclass(frozen=True)
class Sketch:
    """The model of a config, and how it is trained, without data and weights.

    Args:
        config: the whole config.
        time: alignment of the window; None of a canvas model.
        model: a `GraftModel`, `VideoModel`, `VAEModel`, `SceneModel` or `CloneModel`.
        task: the trainer's view of it, on batches that bring frames, or numbers of examples.
        rules: sharding rules of its parameters.
        assumed: a sentence for each thing that the config leaves open.
    """

    config: ml_collections.ConfigDict
    time: TimeSpec | None
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
        """The task on batches whose videos were encoded before, as `data.encode_once` has it.

        Nothing augments latents.
        """
        model = dataclasses.replace(self.model, augmentation=Augmentation())
        task = dataclasses.replace(self.task, loss=model.loss)
        fields = getattr(model, "latent_fields", FIRST_CAMERA)
        shape = model.backbone.latent_shape
        return encoded(task, time=self.time, latent_shape=shape, fields=fields)


def sketch(
    config: ml_collections.ConfigDict, *, robot: tuple[int, int, bool] | None = None
) -> Sketch:
    """Shapes of what `build` makes; reads headers of the weights and texts that are named.

    Args:
        config: the whole config.
        robot: dimensions of actions and of states, and whether robots of a mixture lack some; None
            = as the declarations say.

    Raises:
        FileNotFoundError, ValueError: a path leads nowhere, or a value of the config does not fit.
    """
    if config.train.task == "canvas":
        made = scene_experiment(config)
        return Sketch(config, None, made.model, made.task, made.rules, ())
    if config.train.task == "clone":
        # Imported late, as in `build`.
        from roam_jax.tasks.clone_build import clone_experiment

        made = clone_experiment(config)
        return Sketch(config, None, made.model, made.task, made.rules, ())
    make_task = task_maker(config)
    time = TimeSpec(config.data.frames, config.canvas.t_current)
    model, task, rules = make_task(
        config, time, _batch_spec(config, time, robot or _robot_sizes(config))
    )
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


def _batch_spec(
    config: ml_collections.ConfigDict, time: TimeSpec, robot: tuple[int, int, bool]
) -> dict[str, ArraySpec]:
    """The batch that `WindowSource` and the loader make."""
    future, (actions, proprio, padded) = time.latents - time.t_current, robot
    windows = {
        "text": _text_shape(config),
        "past_actions": (time.past_actions, actions),
        "action_chunk": (time.chunk, actions),
        "observed_proprio": (time.t_current, proprio),
        "future_proprio": (future, proprio),
        "observed_reward": (time.t_current, REWARD_DIM),
        "future_reward": (future, REWARD_DIM),
    }
    if padded:
        windows |= {"action_mask": (actions,), "proprio_mask": (proprio,)}
    fields = [
        (_video_shapes(config, time), np.uint8),
        (windows, np.float32),
        ({"dataset": (), "episode": (), "start": ()}, np.int32),
    ]
    return {
        name: ArraySpec((config.train.batch_size, *shape), np.dtype(dtype))
        for shapes, dtype in fields
        for name, shape in shapes.items()
    }


def _video_shapes(config: ml_collections.ConfigDict, time: TimeSpec) -> dict[str, tuple[int, ...]]:
    """Frames of a window: of the first camera, of the others, and of the goal."""
    clip = time.frames, *config.data.image_size, 3
    shapes = {"frames": clip}
    if others := len(config.data.cameras) - 1:
        shapes["camera_frames"] = (others, *clip)
    if config.data.goal != "none":
        shapes["goal_frame"] = (1, *clip[1:])
    return shapes


def _robot_sizes(config: ml_collections.ConfigDict) -> tuple[int, int, bool]:
    """Dimensions of actions and states by their declarations, and whether robots lack some.

    "auto" stands for the datasets that are known without one, which all have Bridge's dimensions.

    Raises:
        FileNotFoundError, ValueError: no such declaration, or a mixture that `build` would refuse.
    """
    choices, rule = dataset_choices(config.data), config.data.mixture_actions
    check_choice("data.mixture_actions", rule, MIXED_ACTIONS)
    check_weights(choices)
    declarations = [load_declaration(choice.declaration) or BRIDGE for choice in choices]
    spaces = common_spaces(choices, declarations, rule=rule)
    actions, proprio = spaces or (declarations[0].action_spec, declarations[0].state_spec)
    return len(actions), len(proprio), spaces is not None


def _text_shape(config: ml_collections.ConfigDict) -> tuple[int, int]:
    """(S, D) of a window's text embedding."""
    if config.data.text == LANGUAGE_EMBEDDING:
        return 1, EMBEDDING_DIM
    if config.data.text:
        text = TextEmbeddings(config.data.text)
        return text.tokens, text.width
    sizes = TransformerConfig()
    if config.backbone.path and config.train.task == "graft":
        backbone = open_backbone(config.backbone.path, image_size=tuple(config.data.image_size))
        sizes = backbone.transformer_config
    return sizes.max_text_seq_length, sizes.text_embed_dim
