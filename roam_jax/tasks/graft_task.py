"""From a config to a grafted model, and to the trainer's view of it."""

from __future__ import annotations

import math
from collections.abc import Mapping

import ml_collections
from jax.sharding import PartitionSpec

from roam_jax.cogvideox.block import BLOCK_RULES
from roam_jax.cogvideox.config import TransformerConfig
from roam_jax.cogvideox.graft import GraftedTransformer
from roam_jax.cogvideox.graft_canvas import NewRegions, graft_layout
from roam_jax.cogvideox.graft_config import CELL_DECODERS, GraftConfig, trainable_patterns
from roam_jax.cogvideox.graft_topology import TopologyOptions, make_topology
from roam_jax.contracts import ArraySpec, Task, TimeSpec
from roam_jax.diffusion.schedule import NoiseSchedule
from roam_jax.logical import shard_largest
from roam_jax.model.loop_options import loop_values
from roam_jax.tasks.augment import Augmentation
from roam_jax.tasks.backbone import Backbone
from roam_jax.tasks.graft import GraftModel

# Stacked over depth, gates, biases and norms are matrices, so they are named.
NO_DECAY = (r"^blocks/(loop|attn1/edges|attn1/geometry)/", r"/(bias|scale|query|modality)$")
SHARDING_RULES = (
    (r"^(graft|vae)/", PartitionSpec()),
    (r"^blocks/(loop|attn1/edges|attn1/geometry)/", PartitionSpec()),
    *BLOCK_RULES,
    (r"/kernel$", shard_largest),
    (r"/(bias|scale)$", PartitionSpec()),
)
# Weights whose regions read all others, so that what these hold has an effect.
_READERS = ("proprio_weight", "reward_weight", "camera_weight")


def graft_model(
    config: ml_collections.ConfigDict,
    *,
    backbone: Backbone,
    time: TimeSpec,
    batch_spec: Mapping[str, ArraySpec],
) -> GraftModel:
    """Builds the grafted model that a config describes, without allocating parameters.

    Args:
        config: the whole config.
        backbone: weights and VAE.
        time: alignment of the window.
        batch_spec: of a global batch; the sizes of actions and robot states are read off it.

    Raises:
        ValueError: a value of the config is out of range or names nothing.
    """
    sizes: TransformerConfig = backbone.transformer_config
    rows, columns = (side // sizes.patch_size for side in backbone.latent_shape[1:])
    graft_config = _graft_config(config, batch_spec)
    graft_config.taps(sizes.num_layers)
    layout = graft_layout(
        time=time,
        rows=rows,
        columns=columns,
        width=sizes.width,
        text_length=sizes.max_text_seq_length,
        visual_weight=config.canvas.visual_weight,
        new=_new_regions(config),
    )
    module = GraftedTransformer(
        config=sizes,
        graft_config=graft_config,
        layout=layout,
        topology=make_topology(layout, _topology_options(config)),
        dtype=backbone.compute_dtype,
    )
    return GraftModel(
        module=module,
        backbone=backbone,
        time=time,
        schedule=NoiseSchedule(),
        deploy_fraction=config.loss.deploy_fraction,
        weights=_loss_weights(config.canvas),
        clean_timestep=config.loss.clean_timestep,
        augmentation=Augmentation.from_config(config),
        ponder=config.loss.ponder,
        steps=config.train.steps,
    )


def _graft_config(
    config: ml_collections.ConfigDict, batch_spec: Mapping[str, ArraySpec]
) -> GraftConfig:
    return GraftConfig(
        **loop_values(config.loop),
        remat=config.train.remat,
        decoder=config.decoder.kind,
        decoder_blocks=tuple(config.decoder.blocks),
        geometry=config.canvas.geometry,
        action_dim=batch_spec["action_chunk"].shape[-1],
        proprio_dim=batch_spec["observed_proprio"].shape[-1],
    )


def _topology_options(config: ml_collections.ConfigDict) -> TopologyOptions:
    topology = config.topology
    return TopologyOptions(
        kind=topology.kind,
        backbone=topology.backbone,
        backbone_reads_new=topology.backbone_reads_new,
        window=topology.window,
        links=topology.links,
        matches=topology.matches,
        temporal_fill=topology.temporal_fill,
        schema=topology.schema,
        seed=topology.seed,
    )


def _loss_weights(canvas: ml_collections.ConfigDict) -> dict[str, float]:
    """By the names of `GraftModel.weights`.

    Raises:
        ValueError: nothing weighs anything.
    """
    weights = {
        "diffusion": canvas.visual_weight,
        "action": canvas.action_weight,
        "proprio": canvas.proprio_weight,
        "reward": canvas.reward_weight,
        "camera": canvas.camera_weight,
    }
    if not any(weights.values()):
        raise ValueError(
            "nothing is to be learned: expected canvas.visual_weight, canvas.action_weight or "
            "another loss weight above 0"
        )
    return weights


def _new_regions(config: ml_collections.ConfigDict) -> NewRegions:
    canvas, reads_new = config.canvas, config.topology.backbone_reads_new
    weights = {
        "canvas.visual_weight": canvas.visual_weight,
        "canvas.action_weight": canvas.action_weight,
        "canvas.proprio_weight": canvas.proprio_weight,
        "canvas.reward_weight": canvas.reward_weight,
        "canvas.camera_weight": canvas.camera_weight,
    }
    for key, value in weights.items():
        if not 0 <= value < math.inf:
            raise ValueError(f"{key} = {value}: expected a finite number of at least 0")
    new = NewRegions(
        actions=config.decoder.kind in CELL_DECODERS or reads_new > 0,
        proprio=canvas.proprio,
        reward=canvas.reward,
        thought_cells=canvas.thought_cells,
        thought_period=canvas.thought_period,
        cameras=_further_cameras(config),
        goal=config.data.goal != "none",
        action_weight=canvas.action_weight,
        proprio_weight=canvas.proprio_weight,
        reward_weight=canvas.reward_weight,
        camera_weight=canvas.camera_weight,
    )
    unread = new.proprio or new.reward or new.thought_cells or new.cameras or new.goal
    if unread and not (new.actions or any(getattr(new, name) for name in _READERS)):
        raise ValueError(
            f"nothing reads the new regions: decoder.kind = {config.decoder.kind!r} reads the "
            "video alone; expected topology.backbone_reads_new > 0, a decoder that reads cells "
            f"({', '.join(CELL_DECODERS)}), or one of "
            f"{', '.join(f'canvas.{name}' for name in _READERS)} > 0"
        )
    return new


def _further_cameras(config: ml_collections.ConfigDict) -> tuple[str, ...]:
    """Names of the cameras beside the first.

    Raises:
        ValueError: no camera, or the first one once more.
    """
    first, *others = config.data.cameras or [None]
    if first is None or first in others:
        raise ValueError(
            f"data.cameras = {tuple(config.data.cameras)}: expected at least one, each once"
        )
    return tuple(others)


def graft_task(model: GraftModel, *, freeze: str, batch_spec: Mapping[str, ArraySpec]) -> Task:
    """The trainer's view of the model.

    Args:
        model: from `graft_model`.
        freeze: freeze policy.
        batch_spec: of a global batch.

    Raises:
        ValueError: no such policy, or the data's text does not fit the backbone.
    """
    sizes = model.backbone.transformer_config
    expected = sizes.max_text_seq_length, sizes.text_embed_dim
    if batch_spec["text"].shape[1:] != expected:
        raise ValueError(
            f"data.text gives embeddings of shape {batch_spec['text'].shape[1:]}, the backbone "
            f"expects {expected}"
        )
    return Task(
        init=lambda rng: model.init(rng, batch_spec),
        loss=model.loss,
        trainable=trainable_patterns(freeze),
        batch_spec=batch_spec,
        pretrained=model.backbone.pretrained,
        no_decay=NO_DECAY,
        frozen_dtype=model.backbone.frozen_dtype,
    )
