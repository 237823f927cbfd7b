"""What a run trained, for others: diffusers' format, a model directory, or base and loops apart."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable

import jax
import ml_collections
import numpy as np

from convert import export_graft
from roam_jax.cogvideox.save import save_diffusers
from roam_jax.evaluate.saved import open_saved, read_saved
from roam_jax.spelling import check_choice
from roam_jax.tasks.build import Experiment

# How a run may be written; a graft in any but the first, other tasks in that alone.
DIFFUSERS = "diffusers"
GRAFT_FORMS = {
    "model": export_graft.write_model,
    "base+loops": export_graft.write_base_and_loops,
    "ce": export_graft.write_ce,
}
FORMS = (DIFFUSERS, *GRAFT_FORMS)
# Windows whose latents give the VAE's scaling factor.
SCALING_WINDOWS = 64


def export_run(
    workdir: pathlib.Path,
    dst: pathlib.Path,
    *,
    command: str,
    form: str | None = None,
    step: int | None = None,
    overrides: Callable[[ml_collections.ConfigDict], None] | None = None,
) -> str:
    """Writes what a run trained.

    Args:
        workdir: of the run; of a graft also a model directory.
        dst: what is written; appears whole or not at all.
        command: the command line, for a model card.
        form: one of `FORMS`; None = "model" for a graft, "diffusers" for a pretrained transformer
            or VAE.
        step: which checkpoint; None = the latest.
        overrides: where data and frozen weights are, as `read_saved` allows.

    Returns:
        What was written, for a person.

    Raises:
        FileNotFoundError, FileExistsError, ValueError: no such run or step, `dst` exists, or the
            run trained something that has no such form.
    """
    saved = read_saved(workdir, overrides=overrides)
    task = saved.config.train.task
    if form is not None:
        check_choice("--as", form, FORMS)
    if task == "graft":
        if form == DIFFUSERS:
            raise ValueError(
                f"{workdir}: a graft has no diffusers form: diffusers has no rounds and no action "
                "decoder. Expected --as base+loops (its backbone in diffusers' format, what the "
                "graft adds beside it), --as model or --as ce"
            )
        graft = export_graft.open_graft(saved, step=step)
        return GRAFT_FORMS[form or "model"](graft, dst, command=command)
    if form not in (None, DIFFUSERS):
        raise ValueError(
            f"{workdir}: train.task = {task!r} trained no graft, so it cannot be written as "
            f"{form!r}; expected --as {DIFFUSERS}"
        )
    if task == "canvas":
        raise ValueError(
            f"{workdir}: a canvas model (train.task = 'canvas') has no form of another package; "
            "expected a run of train.task = graft, video or vae. Its parameters lie in the "
            "checkpoints"
        )
    run = open_saved(workdir, step=step, overrides=overrides)
    return _pretrained(run.experiment, run.params, dst, step=run.step)


def _pretrained(experiment: Experiment, params, dst: pathlib.Path, *, step: int) -> str:
    """Transformer or VAE in float16."""
    if experiment.config.train.task == "vae":
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
