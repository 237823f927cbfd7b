"""A trained graft for others: as a model directory, as base and loops, or as a file of CE."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from convert.export import finish_pipeline
from convert.loops import LOOPS_FILE, Loops, read_loops, write_loops
from roam_jax.canvas.schema import CanvasSchema
from roam_jax.cogvideox.graft_config import trainable_patterns
from roam_jax.cogvideox.importing import copy_companions, new_directory
from roam_jax.cogvideox.save import write_networks
from roam_jax.evaluate.model_directory import write_model_directory
from roam_jax.evaluate.parameters import count_parameters, stored_parameters
from roam_jax.evaluate.report import format_report
from roam_jax.evaluate.saved import Saved
from roam_jax.files import write_atomically
from roam_jax.tasks.sketch import Sketch
from roam_jax.train import names
from roam_jax.train.sharding import make_mesh
from roam_jax.train.state import partition
from roam_jax.train.workdir import plain


@dataclasses.dataclass(frozen=True)
class TrainedGraft:
    """A graft at one step.

    Args:
        saved: its folder.
        plan: its model.
        trained: "/"-joined name -> float32 array of what trained.
        step: finished updates.
    """

    saved: Saved
    plan: Sketch
    trained: Mapping[str, np.ndarray]
    step: int

    @property
    def added(self) -> dict[str, np.ndarray]:
        """Of what trained, that which is no part of the backbone."""
        patterns = trainable_patterns("full")
        return {n: x for n, x in self.trained.items() if names.matches(n, patterns)}

    @property
    def backbone(self) -> dict[str, np.ndarray]:
        """Of what trained, the backbone's own."""
        return {n: x for n, x in self.trained.items() if n not in self.added}


def open_graft(saved: Saved, *, step: int | None) -> TrainedGraft:
    """Reads one step of a graft; its data is not needed, its frozen weights are.

    Raises:
        FileNotFoundError, ValueError: as `Saved.model` and `Saved.params`.
    """
    plan = saved.model()
    mesh = make_mesh(1, 1, devices=jax.devices()[:1])
    params, step = saved.params(plan.task, rules=plan.rules, mesh=mesh, step=step)
    trained, _ = partition(params, plan.task.trainable)
    arrays = {name: np.asarray(leaf) for name, leaf in names.flatten(trained).items()}
    return TrainedGraft(saved, plan, arrays, step)


def write_model(graft: TrainedGraft, dst: pathlib.Path, *, command: str) -> str:
    """Writes a model directory; see `roam_jax.evaluate.model_directory`."""
    task, report = graft.plan.task, _report(graft)
    write_model_directory(
        dst,
        config=plain(graft.saved.config),
        provenance=graft.saved.provenance,
        params_trainable=graft.trained,
        step=graft.step,
        command=command,
        parameters=count_parameters(stored_parameters(task), task.trainable),
        report=report,
    )
    measured = "not measured" if report is None else "with what eval.py measured"
    return f"{dst}: model directory of step {graft.step}, {measured}"


def write_base_and_loops(graft: TrainedGraft, dst: pathlib.Path, *, command: str) -> str:
    """Writes backbone and VAE in diffusers' format, and what the graft adds beside them.

    Frozen weights keep the dtype of their file; what trained is float32. The text encoder, which a
    graft does not touch, stays where it is.
    """
    backbone = graft.plan.model.backbone
    weights = names.flatten(backbone.pretrained()) | graft.backbone
    parts = {"transformer": {}, "vae": {}}
    for name, value in weights.items():
        part = "vae" if name.startswith("vae/") else "transformer"
        parts[part][name.removeprefix("vae/")] = value
    configs = {"transformer": backbone.transformer_config, "vae": backbone.vae_config}
    with new_directory(dst) as folder:
        for name, flat in parts.items():
            write_networks(folder, {name: (configs[name], names.unflatten(flat))})
        copy_companions(backbone.transformer_path, folder)
        lines = finish_pipeline(folder, dst)
        write_loops(folder, Loops(_notes(graft, command), graft.added))
    trained = f"{len(graft.backbone)} trained parameters" if graft.backbone else "as it was"
    return "\n".join(
        [
            f"{dst}/transformer: the backbone, {trained}",
            f"{dst}/vae: as it was",
            f"{dst / LOOPS_FILE}: {len(graft.added)} parameters of step {graft.step}",
            *lines,
        ]
    )


def write_ce(graft: TrainedGraft, dst: pathlib.Path, *, command: str) -> str:
    """Writes loops and action head as canvas-engineering does.

    Raises:
        FileExistsError: `dst` or the notes beside it are there.
        ValueError: `dst` does not end in .pt, or canvas-engineering has no form for something that
            trained.
    """
    if graft.backbone:
        named = ", ".join([*graft.backbone][:5]) + (", ..." if len(graft.backbone) > 5 else "")
        raise ValueError(
            f"{graft.saved.path}: freeze = {graft.saved.config.freeze!r} also trained {named} of "
            "the backbone, for which canvas-engineering's file has no place. Expected "
            "--as base+loops, and then `export --src` of that with --as ce: the loops of that base"
        )
    return _write_ce(Loops(_notes(graft, command), graft.added), dst, where=str(graft.saved.path))


def export_loops(src: pathlib.Path, dst: pathlib.Path) -> str:
    """The same for a folder with loops.safetensors.

    Raises:
        FileNotFoundError, FileExistsError, ValueError: as `read_loops` and `write_ce`.
    """
    return _write_ce(read_loops(src), dst, where=str(src))


def _write_ce(loops: Loops, dst: pathlib.Path, *, where: str) -> str:
    from convert.canvas_engineering import write_checkpoint  # torch, for this form alone

    if dst.suffix != ".pt":
        raise ValueError(f"{dst}: expected a name that ends in .pt; notes lie beside it in .json")
    notes = dst.with_suffix(".json")
    for path in (dst, notes):
        if path.exists():
            raise FileExistsError(f"{path} exists: remove it, or choose another file")
    partial = dst.with_name(f".{dst.name}.partial-{os.getpid()}")
    dst.parent.mkdir(parents=True, exist_ok=True)
    try:
        write_checkpoint(partial, loops, where=where)
        write_atomically(notes, json.dumps(loops.notes, indent=1) + "\n")
        try:
            partial.rename(dst)
        except OSError:
            notes.unlink()
            raise
    finally:
        partial.unlink(missing_ok=True)
    blocks, rounds = np.shape(loops.parameters["blocks/loop/gate"])
    return (
        f"{dst}: {blocks} blocks, for graft_looped_blocks(transformer, max_loops={rounds}, "
        f"action_dim={np.shape(loops.parameters['graft/decoder/out/bias'])[0]})\n"
        f"{notes}: what else is known of it"
    )


def _notes(graft: TrainedGraft, command: str) -> dict[str, Any]:
    """What is needed to run the loops."""
    config, module = graft.saved.config, graft.plan.model.module
    own = config.topology.backbone == "own" or config.topology.kind == "dense"
    return {
        "command": command,
        "step": graft.step,
        "freeze": config.freeze,
        **plain(dataclasses.asdict(module.graft_config)),
        "clean_timestep": config.loss.clean_timestep,
        "visual_attention": "dense" if own else config.topology.kind,
        "frames": config.data.frames,
        "image_size": list(config.data.image_size),
        "regions": list(module.layout.regions),
        "canvas": CanvasSchema(module.layout, module.topology).to_dict(),
        "backbone": sorted(graft.backbone),
        "fingerprints": dict(graft.saved.provenance.get("fingerprints", {})),
        "statistics": graft.saved.provenance.get("statistics", {}),
    }


def _report(graft: TrainedGraft) -> dict[str, Any] | None:
    """What eval.py measured of this step, if it did."""
    path = graft.saved.path / "eval" / f"{graft.step}.json"
    if not path.is_file():
        return None
    try:
        report = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: no JSON ({error}); remove it, or run eval.py again") from error
    try:
        if not isinstance(report, dict):
            raise TypeError(f"{report!r:.60} is no object")
        format_report(report)
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{path}: not what eval.py writes ({error!r}); remove it, or run eval.py again"
        ) from error
    return report
