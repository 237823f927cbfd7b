"""From a config to a canvas model on its scene, and to the trainer's view of it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping
from typing import Any

import jax
import ml_collections
import numpy as np
from jax.sharding import PartitionSpec

from roam_jax.canvas.layout import CanvasLayout
from roam_jax.canvas.topology_kinds import KindOptions, StreamedLayout, declared_topology
from roam_jax.contracts import Task
from roam_jax.data.scene import THOUGHT, Scene, Stream
from roam_jax.data.scene_batches import scene_batch_spec, validation_batch
from roam_jax.data.scenes import open_scene
from roam_jax.diffusion.schedule import NoiseSchedule
from roam_jax.logical import shard_largest
from roam_jax.model.block import BLOCK_RULES
from roam_jax.model.canvas_model import CanvasModel
from roam_jax.model.cells import DECODERS, QUERIES, CellRegion
from roam_jax.model.geometry import GEOMETRIES
from roam_jax.model.loop_options import LoopOptions, check_ponder
from roam_jax.model.sizes import check_sizes
from roam_jax.spelling import check_choice
from roam_jax.tasks.backbone import refuse_dtype
from roam_jax.tasks.balance import GRADNORM, SECTION, Balance
from roam_jax.tasks.canvas import SceneModel
from roam_jax.tasks.cell_values import cell_count, cell_features
from roam_jax.tasks.experiment import refuse_clone_leaves, refuse_leaves

# Stacked over depth, gates, biases and norms are matrices, so they are named.
NO_DECAY = (
    r"^blocks/(loop|attn/edges|attn/geometry)/",
    r"/(bias|scale|query|modality)$",
)
SHARDING_RULES = (
    (r"^blocks/(loop|attn/edges|attn/geometry)/", PartitionSpec()),
    *BLOCK_RULES,
    (r"/(kernel|embedding|query)$", shard_largest),
    (r".*", PartitionSpec()),
)
# Leaves of a graft that say nothing of a canvas model, with the values that leave them alone.
MEANINGLESS = {
    "topology.backbone": "own",
    "topology.backbone_reads_new": 0.0,
    "backbone.path": "",
    "decoder.kind": "tokens",
    "decoder.blocks": (-1,),
    "freeze": "full",
    "canvas.t_current": 2,
    "canvas.proprio": False,
    "canvas.reward": False,
    "canvas.thought_cells": 0,
    "canvas.thought_period": 1,
    "canvas.visual_weight": 1.0,
    "canvas.camera_weight": 0.0,
    "canvas.action_weight": 1.0,
    "canvas.proprio_weight": 0.0,
    "canvas.reward_weight": 0.0,
    "data.root": "embedded",
    "data.goal": "none",
    "data.posterior": "mean",
    "data.mixture": (),
    "data.latents": "",
    "loss.deploy_fraction": 0.5,
    "loss.clean_timestep": "global",
    "loss.observed_fraction": 1.0,
}
# Examples by which the second moment of what a scene predicts is known.
MEASURED = 512


def scene_model(config: ml_collections.ConfigDict) -> SceneModel:
    """Builds the canvas model that a config describes, without allocating parameters.

    Args:
        config: the whole config, of train.task = canvas.

    Raises:
        ValueError: a value of the config is out of range, names nothing, or has no meaning here.
    """
    refuse_leaves(config, MEANINGLESS, "has no backbone and no robot episodes")
    refuse_clone_leaves(config)
    sizes, loss = config.model, config.loss
    check_sizes(width=sizes.width, depth=sizes.depth, heads=sizes.heads)
    check_choice("canvas.geometry", config.canvas.geometry, GEOMETRIES)
    check_ponder(loss.ponder)
    refuse_dtype(config)
    options = LoopOptions.from_section(config.loop, remat=config.train.remat)
    scene = open_scene(
        config.data.scene,
        objects=config.data.objects,
        observed_frames=config.data.observed_frames,
        questions=config.data.questions,
    )
    streams = _kept_streams(scene, tuple(config.canvas.predict))
    weights = _pairs("loss.weights", loss.weights, kind=float)
    layout = _layout(scene, streams, width=sizes.width, weights=weights)
    regions = cell_regions(
        layout,
        streams,
        decoder=sizes.decoder,
        own=_pairs("model.region_decoders", sizes.region_decoders, kind=str),
    )
    module = CanvasModel(
        layout=layout,
        topology=declared_topology(
            streamed_layout(layout, scene, streams), topology_options(config.topology)
        ),
        regions=regions,
        options=options,
        depth=sizes.depth,
        heads=sizes.heads,
        geometry=config.canvas.geometry,
    )
    if loss.balance == GRADNORM and config.train.accumulate > 1:
        raise ValueError(
            f"loss.balance = 'gradnorm' with train.accumulate = {config.train.accumulate}: a "
            "gradient's norm is not the mean of those of parts; expected train.accumulate = 1, or "
            "loss.balance = 'fixed' or 'uncertainty'"
        )
    balance = Balance(
        kind="fixed",
        names=tuple(region.name for region in regions if region.objective),
        weights=weights,
        alpha=loss.gradnorm_alpha,
        decoder_only=tuple(loss.decoder_only),
    )
    model = SceneModel(
        module=module,
        scene=scene,
        balance=balance,
        noised_fraction=loss.noised_fraction,
        ponder=loss.ponder if options.halts else 0.0,
        steps=config.train.steps,
    )
    initial = untrained_losses(model) if loss.balance == GRADNORM else {}
    balance = dataclasses.replace(balance, kind=loss.balance, initial=initial)
    return dataclasses.replace(model, balance=balance)


def scene_task(model: SceneModel, *, batch_size: int) -> Task:
    """The trainer's view of the model: all of it trains."""
    return Task(
        init=model.init,
        loss=model.loss,
        trainable=(".*",),
        batch_spec=scene_batch_spec(batch_size),
        no_decay=(*NO_DECAY, f"^{SECTION}/") if model.balance.init() else NO_DECAY,
    )


def _kept_streams(scene: Scene, predict: tuple[str, ...]) -> tuple[Stream, ...]:
    """All inputs, and the outputs that are to be predicted.

    Raises:
        ValueError: no such output, or one twice.
    """
    outputs = [stream.name for stream in scene.streams if stream.role == "output"]
    for name in predict:
        check_choice("canvas.predict", name, outputs)
    if len(set(predict)) < len(predict):
        raise ValueError(f"canvas.predict = {predict}: expected each region once")
    kept = predict or outputs
    return tuple(s for s in scene.streams if s.role == "input" or s.name in kept)


def _layout(
    scene: Scene, streams: Collection[Stream], *, width: int, weights: Mapping[str, float]
) -> CanvasLayout:
    """The scene's layout with the regions of these streams, weighted, and thought."""
    whole = scene.layout(width)
    kept = {stream.name for stream in streams} | {THOUGHT}
    for name, weight in weights.items():
        check_choice("loss.weights", name, [s.name for s in streams if s.role == "output"])
        if not 0 < weight < math.inf:
            raise ValueError(
                f"loss.weights: {name} = {weight}: expected a finite number above 0 "
                "(canvas.predict leaves regions out)"
            )
    regions = {
        name: dataclasses.replace(spec, loss_weight=weights.get(name, 1.0))
        for name, spec in whole.regions.items()
        if name in kept
    }
    return dataclasses.replace(whole, regions=regions)


def cell_regions(
    layout: CanvasLayout,
    streams: Collection[Stream],
    *,
    decoder: str,
    own: Mapping[str, str],
) -> tuple[CellRegion, ...]:
    """What the model must know of each region, in layout order.

    Args:
        layout: the canvas.
        streams: of its regions but thought.
        decoder: of predicted regions, `model.decoder`.
        own: region -> another decoder, `model.region_decoders`.

    Raises:
        ValueError: no such decoder or region, a region without a stream and so without an encoder,
            or one whose cells its stream does not fill.
    """
    check_choice("model.decoder", decoder, DECODERS)
    by_name = {stream.name: stream for stream in streams}
    predicted = [stream.name for stream in streams if stream.role == "output"]
    for name, kind in own.items():
        check_choice("model.region_decoders", name, predicted)
        check_choice(f"model.region_decoders: {name}", kind, DECODERS)
    regions = []
    for name in layout.regions:
        if name == THOUGHT:
            regions.append(CellRegion(THOUGHT, QUERIES, 0))
            continue
        if name not in by_name:
            raise ValueError(f"region {name!r} has no stream, and so no encoder")
        stream = by_name[name]
        if cell_count(stream) != layout.region_numel(name):
            raise ValueError(
                f"stream {name!r} fills {cell_count(stream)} cells, its region has "
                f"{layout.region_numel(name)}"
            )
        kind = own.get(name, decoder) if stream.objective else ""
        regions.append(CellRegion(name, stream.kind, cell_features(stream), stream.objective, kind))
    return tuple(regions)


def streamed_layout(
    layout: CanvasLayout, scene: Scene, streams: Collection[Stream]
) -> StreamedLayout:
    """The layout with the scene's groups; vectors and numbers are an agent's body."""
    groups = [tuple(n for n in group if n in layout.regions) for group in scene.groups()]
    return StreamedLayout(
        layout,
        streams=tuple(group for group in groups if group),
        body=frozenset(s.name for s in streams if s.kind in ("vectors", "scalars")),
        thought=THOUGHT,
        more_thought="a scene that has some",
    )


def topology_options(topology: ml_collections.ConfigDict) -> KindOptions:
    """The config's section `topology`, as kinds take it."""
    return KindOptions(
        kind=topology.kind,
        window=topology.window,
        links=topology.links,
        matches=topology.matches,
        temporal_fill=topology.temporal_fill,
        schema=topology.schema,
        seed=topology.seed,
    )


def _pairs(key: str, value: Any, *, kind: type) -> dict[str, Any]:
    """A leaf ((region, something), ...) as a dict.

    Raises:
        ValueError: it is none, or a region is there twice.
    """
    allowed = (int, float) if kind is float else (kind,)
    found = {}
    for pair in value:
        right = isinstance(pair, tuple | list) and len(pair) == 2 and isinstance(pair[0], str)
        if not right or type(pair[1]) not in allowed or pair[0] in found:
            raise ValueError(
                f"{key} = {value!r}: expected ((region, {kind.__name__}), ...), each region once"
            )
        found[pair[0]] = kind(pair[1])
    return found


def untrained_losses(model: SceneModel) -> dict[str, float]:
    """Region -> expected loss of a model that predicts 0, or all classes alike.

    log C of C classes; of a regressed region the second moment of its values; of a diffused one
    the mean over timesteps of alpha_bar + (1 - alpha_bar) times that moment, the expected square of
    the velocity. Moments are measured on examples that no run trains on.
    """
    cells = jax.jit(model.examples)(validation_batch(0, MEASURED))
    alphas = NoiseSchedule().alphas_cumprod
    losses = {}
    for name in model.predicted:
        region = model.regions[name]
        if region.objective == "classification":
            losses[name] = math.log(region.features)
            continue
        moment = float(np.mean(np.square(cells[name], dtype=np.float64)))
        losses[name] = moment
        if region.diffused:
            losses[name] = float(np.mean(alphas + (1 - alphas) * moment))
    return losses
