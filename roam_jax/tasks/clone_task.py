"""From a config and its worlds to a cloned policy, and to the trainer's view of it."""

from __future__ import annotations

from collections.abc import Mapping

import ml_collections
import numpy as np

from roam_jax.canvas.topology_kinds import declared_topology
from roam_jax.contracts import ArraySpec, Task
from roam_jax.data.demonstration_batches import ACTION, MASK
from roam_jax.model.canvas_model import CanvasModel
from roam_jax.model.cells import DECODERS
from roam_jax.model.geometry import GEOMETRIES
from roam_jax.model.loop_options import LoopOptions, check_ponder
from roam_jax.model.sizes import check_sizes
from roam_jax.morphology import PIXELS, WorldSpec
from roam_jax.spelling import check_choice
from roam_jax.tasks.backbone import refuse_dtype
from roam_jax.tasks.balance import Balance
from roam_jax.tasks.canvas_task import MEANINGLESS, NO_DECAY, topology_options
from roam_jax.tasks.clone import BodyModel, CloneModel
from roam_jax.tasks.clone_canvas import body_layout, body_regions, body_streams
from roam_jax.tasks.experiment import CANVAS_LEAVES, refuse_leaves
from roam_jax.train.workdir import LATER_LEAVES

# What only a graft heeds, but for thought cells, and what only a scene does.
CLONE_MEANINGLESS = {
    **{key: value for key, value in MEANINGLESS.items() if key != "canvas.thought_cells"},
    **{key: LATER_LEAVES[key] for key in CANVAS_LEAVES},
    "model.region_decoders": (),
}


def clone_model(config: ml_collections.ConfigDict, specs: Mapping[str, WorldSpec]) -> CloneModel:
    """Builds the policy that a config describes, without allocating parameters.

    Args:
        config: the whole config, of train.task = clone.
        specs: body -> its world; at least one.

    Raises:
        ValueError: a value of the config is out of range, names nothing, or has no meaning here; or
            bodies cannot share parameters.
    """
    refuse_leaves(
        config, CLONE_MEANINGLESS, "has no backbone, no scene and nothing but actions to predict"
    )
    sizes = config.model
    check_sizes(width=sizes.width, depth=sizes.depth, heads=sizes.heads)
    check_choice("model.decoder", sizes.decoder, DECODERS)
    check_choice("canvas.geometry", config.canvas.geometry, GEOMETRIES)
    check_ponder(config.loss.ponder)
    refuse_dtype(config)
    return CloneModel({body: body_model(config, spec) for body, spec in specs.items()})


def body_model(config: ml_collections.ConfigDict, spec: WorldSpec) -> BodyModel:
    """The model of one body.

    Args:
        config: the whole config.
        spec: the world.

    Raises:
        ValueError: a value is out of range, or the topology does not fit the canvas.
    """
    options = LoopOptions.from_section(config.loop, remat=config.train.remat)
    sizes = config.model
    layout = body_layout(
        spec,
        width=sizes.width,
        pixels=config.data.pixels,
        thought_cells=config.canvas.thought_cells,
    )
    regions = body_regions(spec, layout, chunk=config.data.chunk, decoder=sizes.decoder)
    topology = declared_topology(body_streams(spec, layout), topology_options(config.topology))
    actions = tuple(region.name for region in regions if region.objective)
    return BodyModel(
        spec=spec,
        module=CanvasModel(
            layout=layout,
            topology=topology,
            regions=regions,
            options=options,
            depth=sizes.depth,
            heads=sizes.heads,
            geometry=config.canvas.geometry,
        ),
        balance=Balance("fixed", actions, weights=dict.fromkeys(actions, 1 / len(actions))),
        ponder=config.loss.ponder if options.halts else 0.0,
        steps=config.train.steps,
    )


def clone_task(model: CloneModel, *, rows: int, pixels: int) -> Task:
    """The trainer's view of the policy: all of it trains.

    Args:
        model: the policy.
        rows: of each body in a batch.
        pixels: side of the frames that a batch brings; 0 = none.
    """
    return Task(
        init=model.init,
        loss=model.loss,
        trainable=(".*",),
        batch_spec=clone_batch_spec(model.specs, rows=rows, chunk=model.chunk, pixels=pixels),
        no_decay=NO_DECAY,
    )


def clone_batch_spec(
    specs: Mapping[str, WorldSpec], *, rows: int, chunk: int, pixels: int
) -> dict[str, ArraySpec]:
    """Shapes of a global batch: "BODY/STREAM" in its units, "BODY/action" and "BODY/mask".

    Args:
        specs: body -> its world.
        rows: of each body.
        chunk: actions P of a row.
        pixels: side of the frames; 0 = none.
    """
    fields = {}
    for body, spec in specs.items():
        shapes = {stream.name: (stream.shape, np.float32) for stream in spec.streams}
        if pixels:
            shapes[PIXELS] = ((pixels, pixels, 3), np.uint8)
        shapes[ACTION] = ((chunk, len(spec.morphology)), np.float32)
        shapes[MASK] = ((chunk,), np.bool_)
        for name, (shape, dtype) in shapes.items():
            fields[f"{body}/{name}"] = ArraySpec((rows, *shape), np.dtype(dtype))
    return fields
