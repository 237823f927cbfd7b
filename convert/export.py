"""What a pretraining run made, as a diffusers directory."""

from __future__ import annotations

import dataclasses
import pathlib

import jax
import ml_collections
import numpy as np

from roam_jax.cogvideox.save import save_diffusers
from roam_jax.tasks.build import Experiment, build
from roam_jax.train.load import load_params
from roam_jax.train.sharding import make_mesh
from roam_jax.train.workdir import Workdir

# Windows whose latents give the VAE's scaling factor.
SCALING_WINDOWS = 64


def export_run(workdir: pathlib.Path, dst: pathlib.Path, *, step: int | None = None) -> str:
    """Writes the transformer or VAE that a run trained, in float16.

    Args:
        workdir: of a run with `train.task` = video or vae.
        dst: the new diffusers directory.
        step: which checkpoint; None = the latest.

    Returns:
        What was written, for a person.

    Raises:
        FileNotFoundError, FileExistsError, ValueError: no such run or step, `dst` exists, or the
            run trained something that has no diffusers form.
    """
    saved, _ = Workdir(workdir).read()
    config = ml_collections.ConfigDict(saved)
    if config.train.task not in ("video", "vae"):
        raise ValueError(
            f"{workdir}: train.task = {config.train.task!r} has no diffusers form yet; expected "
            "'video' or 'vae'"
        )
    experiment = build(config)
    params, step = load_params(
        experiment.task,
        Workdir(workdir).checkpoints,
        mesh=make_mesh(1, 1, devices=jax.devices()[:1]),
        rules=experiment.rules,
        seed=config.seed,
        step=step,
    )
    if config.train.task == "vae":
        factor = scaling_factor(experiment, params)
        sizes = dataclasses.replace(experiment.model.config, scaling_factor=factor)
        save_diffusers(dst, vae=(sizes, params), dtype=np.float16)
        return f"{dst}/vae: step {step}, scaling factor {factor}"
    transformer = {name: value for name, value in params.items() if name != "vae"}
    sizes = experiment.model.backbone.transformer_config
    save_diffusers(dst, transformer=(sizes, transformer), dtype=np.float16)
    return f"{dst}/transformer: step {step}"


def scaling_factor(experiment: Experiment, params) -> float:
    """1 / standard deviation of the posterior means of some training windows, four digits.

    Each member of a mixture has its weight of them.
    """
    encode = jax.jit(experiment.model.encode)
    latents = []
    for member in experiment.members:
        train, wanted = member.train, max(1, round(SCALING_WINDOWS * member.weight))
        for i in np.linspace(0, len(train) - 1, min(wanted, len(train))).astype(int):
            latents.append(np.asarray(encode(params, train[i]["frames"][None])))
    return float(f"{1 / np.std(latents):.4g}")
