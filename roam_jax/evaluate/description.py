"""All that can be known of a config before a run: canvas, topology, parameters, FLOPs, bytes."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import numpy as np

from roam_jax.cogvideox.graft_canvas import BACKBONE_REGIONS
from roam_jax.cogvideox.graft_config import FREEZE_POLICIES, trainable_patterns
from roam_jax.contracts import VIDEO_FIELDS
from roam_jax.evaluate.canvas_cost import (
    allowed_pairs,
    changes_to_backbone,
    describe_edges,
    describe_regions,
)
from roam_jax.evaluate.parameters import (
    Stored,
    count_parameters,
    stored_parameters,
    trained_by_policy,
)
from roam_jax.evaluate.step_cost import device_bytes, mesh_sizes, trace_flops, trace_step
from roam_jax.tasks.graft import GraftModel
from roam_jax.tasks.sketch import Sketch
from roam_jax.train import names
from roam_jax.train.workdir import plain


def describe(sketch: Sketch) -> dict[str, Any]:
    """A report ready for JSON. Traces the step for each number of rounds; allocates nothing.

    Returns:
        "config", "assumed", "parameters" (groups, policies), "batch", "flops" (rounds,
        vae_encoding) and "bytes"; for a graft also "canvas" (grid, regions) and "topology" (edges,
        pairs, share, changes_to_backbone).
    """
    stored = stored_parameters(sketch.task)
    report = {
        "config": plain(sketch.config),
        "backend": jax.default_backend(),
        "assumed": list(sketch.assumed),
        "parameters": {"groups": count_parameters(stored, sketch.task.trainable)},
        "batch": {
            name: {"shape": list(spec.shape), "dtype": np.dtype(spec.dtype).name}
            for name, spec in sketch.task.batch_spec.items()
        },
    }
    if isinstance(sketch.model, GraftModel):
        report |= _canvas(sketch.model)
        policies = {policy: trainable_patterns(policy) for policy in FREEZE_POLICIES}
        report["parameters"]["policies"] = trained_by_policy(stored, policies)
    return report | _costs(sketch, stored)


def _canvas(model: GraftModel) -> dict[str, Any]:
    layout, topology = model.module.layout, model.module.topology
    table, _ = topology.segment_table(layout)
    pairs = allowed_pairs(table)
    loop = model.module.graft_config
    return {
        "canvas": {
            "grid": [layout.T, layout.H, layout.W],
            "width": layout.d_model,
            "t_current": layout.t_current,
            "cells": table.cells,
            "regions": describe_regions(layout),
        },
        "topology": {
            "edges": describe_edges(layout, topology),
            "pairs": pairs,
            "share": pairs / table.cells**2,
            "changes_to_backbone": changes_to_backbone(
                layout,
                topology,
                gate=loop.gate,
                rounds=loop.rounds,
                backbone=BACKBONE_REGIONS,
            ),
        },
    }


def _costs(sketch: Sketch, stored: Stored) -> dict[str, Any]:
    """FLOPs by number of rounds, without the frozen VAE, which is counted apart, and bytes."""
    task = sketch.encoded_task if sketch.has_backbone else sketch.task
    sizes = mesh_sizes(sketch.config.mesh)
    held = device_bytes(sketch.task, stored, rules=sketch.rules, axis_sizes=sizes)
    last = sketch.config.loop.rounds
    looped = isinstance(sketch.model, GraftModel)
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
