"""FLOPs and tokens of a training step of an experiment, for the figures of its log."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from absl import logging

from roam_jax.canvas.layout import CanvasLayout
from roam_jax.data.demonstration_batches import body_rows
from roam_jax.evaluate.parameters import stored_parameters
from roam_jax.evaluate.step_cost import trace_step
from roam_jax.tasks.clone_build import CloneExperiment
from roam_jax.tasks.experiment import Trainable
from roam_jax.tasks.video import VideoModel


def flops_per_step(experiment: Trainable) -> Callable[[int], float] | None:
    """FLOPs of a training step from its number of rounds, without what remat computes again.

    From a closed form where the experiment has one, else traced when it is asked for; None where
    neither can count them.
    """
    if hasattr(experiment, "flops_per_step"):
        return experiment.flops_per_step
    stored = stored_parameters(experiment.task)

    def traced(rounds: int) -> float:
        try:
            passes = trace_step(experiment.task, stored, rounds=rounds).passes
        except ValueError as error:
            # Kernels of accelerators say nothing of their products: better no figure than no run.
            logging.warning("the log has no FLOPs: %s", error)
            return float("nan")
        return sum(flops for name, flops in passes.items() if name != "recomputed")

    return traced


def tokens_per_step(experiment: Trainable) -> int:
    """Cells that a training step passes through the model, all rows together; 0 = it has none."""
    model, rows = experiment.model, experiment.config.train.batch_size
    if isinstance(experiment, CloneExperiment):
        bodies = [body.module.layout for body in model.bodies.values()]
        return body_rows(rows, bodies=len(bodies)) * sum(map(_cells, bodies))
    if isinstance(model, VideoModel):
        return rows * _video_tokens(model)
    layout = getattr(getattr(model, "module", None), "layout", None)
    return rows * _cells(layout) if layout is not None else 0


def _cells(layout: CanvasLayout) -> int:
    return sum(map(layout.region_numel, layout.regions))


def _video_tokens(model: Any) -> int:
    sizes = model.backbone.transformer_config
    _, height, width = model.backbone.latent_shape
    area = height * width // sizes.patch_size**2
    return sizes.max_text_seq_length + model.time.latents * area
