"""All that can be known of a config before a run: canvas, topology, parameters, FLOPs, bytes."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import numpy as np

from roam_jax.cogvideox.graft_canvas import BACKBONE_REGIONS
from roam_jax.cogvideox.graft_config import FREEZE_POLICIES, trainable_patterns
from roam_jax.contracts import VIDEO_FIELDS
from roam_jax.evaluate.canvas_cost import (
    changes_to_backbone,
    describe_canvas,
    describe_cells,
    describe_topology,
)
from roam_jax.evaluate.parameters import (
    CANVAS_GROUPS,
    GROUPS,
    Stored,
    count_parameters,
    stored_parameters,
    trained_by_policy,
)
from roam_jax.evaluate.plan_cost import describe_plan, describe_slices
from roam_jax.evaluate.step_cost import device_bytes, mesh_sizes, trace_flops, trace_step
from roam_jax.tasks.canvas import SceneModel
from roam_jax.tasks.cell_model import CellModel
from roam_jax.tasks.clone import CloneModel
from roam_jax.tasks.graft import GraftModel
from roam_jax.tasks.sketch import Sketch
from roam_jax.train import names
from roam_jax.train.workdir import plain


def describe(sketch: Sketch) -> dict[str, Any]:
    """A report ready for JSON. Traces the step for each number of rounds; allocates nothing.

    Returns:
        "config", "assumed", "parameters" (groups), "batch", "flops" (rounds, vae_encoding) and
        "bytes"; for a graft and a canvas model also "canvas" (grid, regions) and "topology" (edges,
        pairs, share, plan; of a graft changes_to_backbone, slices); for a graft "parameters" has
        "policies", for a canvas model "canvas" has "cells_of" (what each region holds and
        predicts). A cloned policy has "canvas" and "topology" of each of its "bodies".
    """
    stored = stored_parameters(sketch.task)
    report = {
        "config": plain(sketch.config),
        "backend": jax.default_backend(),
        "assumed": list(sketch.assumed),
        "parameters": {
            "groups": count_parameters(
                stored,
                sketch.task.trainable,
                groups=CANVAS_GROUPS
                if isinstance(sketch.model, SceneModel | CloneModel)
                else GROUPS,
            )
        },
        "batch": {
            name: {"shape": list(spec.shape), "dtype": np.dtype(spec.dtype).name}
            for name, spec in sketch.task.batch_spec.items()
        },
    }
    if isinstance(sketch.model, GraftModel):
        report |= _canvas(sketch.model)
        policies = {policy: trainable_patterns(policy) for policy in FREEZE_POLICIES}
        report["parameters"]["policies"] = trained_by_policy(stored, policies)
    if isinstance(sketch.model, SceneModel):
        report |= _cells(sketch.model)
    if isinstance(sketch.model, CloneModel):
        report["bodies"] = {name: _cells(body) for name, body in sketch.model.bodies.items()}
    return report | _costs(sketch, stored)


def _canvas(model: GraftModel) -> dict[str, Any]:
    module = model.module
    layout, topology, sizes = module.layout, module.topology, module.config
    loop = module.graft_config
    changes = changes_to_backbone(
        layout, topology, gate=loop.gate, rounds=loop.rounds, backbone=BACKBONE_REGIONS
    )
    plan = describe_plan(
        layout, topology, heads=sizes.num_attention_heads, width=sizes.attention_head_dim
    )
    slices = describe_slices(
        layout, topology, _wanted(model), applications=sizes.num_layers * loop.rounds
    )
    return {
        "canvas": describe_canvas(layout),
        "topology": {
            **describe_topology(layout, topology),
            "changes_to_backbone": changes,
            "plan": plan,
            "slices": slices,
        },
    }


def _cells(model: CellModel) -> dict[str, Any]:
    """Canvas and topology of a canvas model, or of one body of a cloned policy."""
    module = model.module
    layout, topology = module.layout, module.topology
    plan = describe_plan(layout, topology, heads=module.heads, width=layout.d_model // module.heads)
    # An output is predicted in all of its frames, whenever "now" is.
    canvas = describe_canvas(dataclasses.replace(layout, t_current=0))
    cells = describe_cells(module.regions)
    return {
        "canvas": {**canvas, "t_current": layout.t_current, "cells_of": cells},
        "topology": {**describe_topology(layout, topology), "plan": plan},
    }


def _wanted(model: GraftModel) -> dict[str, tuple[str, ...]]:
    """Regions that training and action-only inference want, of those that are sliced."""
    config, layout = model.module.graft_config, model.module.layout
    if config.taps(model.module.config.num_layers):
        return {}
    outputs = config.outputs(layout)
    found = {"actions alone": outputs["actions"]}
    if model.wanted is None:  # then the loss computes every cell
        return found
    learned = [region for name in model.wanted for region in outputs[name]]
    return {"training": tuple(dict.fromkeys(learned)), **found}


def _costs(sketch: Sketch, stored: Stored) -> dict[str, Any]:
    """FLOPs by number of rounds, without the frozen VAE, which is counted apart, and bytes."""
    task = sketch.encoded_task if sketch.has_backbone else sketch.task
    sizes = mesh_sizes(sketch.config.mesh)
    held = device_bytes(sketch.task, stored, rules=sketch.rules, axis_sizes=sizes)
    last = sketch.config.loop.rounds
    looped = isinstance(sketch.model, GraftModel | SceneModel | CloneModel)
    traces = [trace_step(task, stored, rounds=r) for r in range(1 if looped else last, last + 1)]
    held["kept"] = traces[-1].kept // math.prod(sizes.values())
    return {
        "flops": {
            "rounds": [
                {
                    "rounds": trace.rounds if looped else None,
                    "passes": dict(trace.passes),
                    "parts": dict(trace.parts),
                    "total": trace.flops,
                    "kept_bytes": trace.kept,
                }
                for trace in traces
            ],
            "vae_encoding": _encoding_flops(sketch, stored) if sketch.has_backbone else 0,
        },
        "bytes": {"mesh": sizes, "device": held},
    }


def _encoding_flops(sketch: Sketch, stored: Stored) -> int:
    """Of the VAE's passes over a batch of frames: observed ones, whole windows, goals."""
    model, spec = sketch.model, sketch.task.batch_spec
    encode = functools.partial(
        model.backbone.encode_batch, time=sketch.time, fields=model.latent_fields
    )
    videos = {
        name: jax.ShapeDtypeStruct(spec[name].shape, spec[name].dtype)
        for name in VIDEO_FIELDS
        if name in spec
    }
    return trace_flops(encode, names.unflatten(stored)["vae"], videos)
