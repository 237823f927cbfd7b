"""From a config to everything that a run needs: data, model, task, sharding rules.

`build` reads headers and shapes only; weights are loaded by the trainer and windows are encoded by
`Experiment.batches`, so a dry run costs next to nothing.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import ml_collections
import numpy as np
from absl import logging

from roam_jax.cogvideox.config import TransformerConfig
from roam_jax.contracts import ArraySpec, Batch, Task, TimeSpec
from roam_jax.data.latent_cache import CachedLatents
from roam_jax.data.latents import LatentSource, encode_windows
from roam_jax.data.loader import Loader, check_seed, make_loader
from roam_jax.data.members import Member
from roam_jax.data.statistics import RobotStatistics
from roam_jax.data.windows import WindowSource
from roam_jax.spelling import check_choice
from roam_jax.tasks import backbone as backbones
from roam_jax.tasks import graft_task, vae, video
from roam_jax.tasks.augment import Augmentation
from roam_jax.tasks.backbone import LATENT_FIELDS, LOGVAR
from roam_jax.tasks.clone_build import clone_experiment
from roam_jax.tasks.datasets import STATISTICS, data_fingerprints, open_data
from roam_jax.tasks.experiment import (
    Trainable,
    check_run,
    code_provenance,
    refuse_canvas_leaves,
    run_rounds,
)
from roam_jax.tasks.latents import (
    encoded,
    make_encoder,
    open_caches,
    read_fields,
    refuse_changing,
    sampling,
)
from roam_jax.tasks.scene_build import scene_experiment
from roam_jax.tasks.shares import process_share
from roam_jax.train import sharding
from roam_jax.train.curriculum import Curriculum

ENCODE_BATCH = 8


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A config with its data opened and its model built; no weight is loaded yet.

    Args:
        config: the whole config.
        time: alignment of the window.
        members: the datasets, each with windows of both splits and the scaling of its train split.
        model: what the task trains: a `GraftModel`, `VideoModel` or `VAEModel`.
        task: the trainer's view of it.
        rules: sharding rules of its parameters.
        fingerprints: of data and pretrained weights.
    """

    config: ml_collections.ConfigDict
    time: TimeSpec
    members: tuple[Member, ...]
    model: Any
    task: Task
    rules: sharding.Rules
    fingerprints: Mapping[str, str]

    @property
    def rounds(self) -> Curriculum:
        """Rounds of every training step."""
        return run_rounds(self.config)

    @property
    def splits(self) -> dict[str, WindowSource]:
        """Windows by split: "train" and "val", of a mixture "train/NAME" and "val/NAME"."""
        return {
            f"{split}/{member.name}" if member.name else split: getattr(member, split)
            for split in ("train", "val")
            for member in self.members
        }

    @functools.cached_property
    def latents(self) -> tuple[CachedLatents, ...]:
        """Windows that `data.latents` names, of each member; () where it names none.

        Opened when they are first asked for: evaluation reads frames and needs none.

        Raises:
            FileNotFoundError, ValueError: as `CachedLatents`, or `data.latents_stride` alone.
        """
        if not self.config.data.latents:
            if stride := self.config.data.latents_stride:
                raise ValueError(
                    f"data.latents_stride = {stride} without data.latents: training on frames "
                    "reads every window; expected 0, or the folder that `python -m roam_jax "
                    "encode` fills as data.latents"
                )
            return ()
        return open_caches(self.config, self.members, self.model, self._latent_fields)

    @property
    def _latent_fields(self) -> list[str]:
        """Latents and log-variances that a training batch brings."""
        return [name for name in self.task.batch_spec if name.partition(LOGVAR)[0] in LATENT_FIELDS]

    def batches(self) -> Loader:
        """The endless training batches, from `data.latents` where that is given.

        Encodes all windows first where the config says so. Each process of a cluster draws its own
        rows of every batch.

        Raises:
            FileNotFoundError, ValueError: as `latents`.
        """
        sources = list(self.latents) or [member.train for member in self.members]
        workers = self.config.data.workers
        if self._latent_fields and not self.latents:
            sources = [self.encoded(source) for source in sources]
            if workers:
                logging.info("data.workers = %d: none is needed, windows are in memory", workers)
            workers = 0
        weights = [member.weight for member in self.members]
        return make_loader(
            list(zip(sources, weights, strict=True)),
            batch_size=self.config.train.batch_size,
            seed=self.config.seed,
            workers=workers,
            process=process_share(self.config),
        )

    def encoded(self, source: WindowSource) -> LatentSource:
        """The windows of a split with their videos encoded once, by the frozen VAE."""
        encode = make_encoder(self.model.backbone, self.time, self._latent_fields)
        return encode_windows(source, encode, batch_size=ENCODE_BATCH)

    def provenance(self) -> dict[str, Any]:
        """What a later reader needs to know of where a run came from."""
        return {
            **code_provenance(),
            "data": {split: source.describe() for split, source in self.splits.items()},
            "fingerprints": dict(self.fingerprints),
            "latents": {
                member.name: cache.describe()["latents"]
                for member, cache in zip(self.members, self.latents, strict=False)
            },
            STATISTICS: {m.name: json.loads(m.statistics.to_json()) for m in self.members},
        }


def build(
    config: ml_collections.ConfigDict, known: Mapping[str, RobotStatistics] = MappingProxyType({})
) -> Trainable:
    """Opens the data and builds the task that `train.task` names.

    Args:
        config: the whole config.
        known: scaling that a run began with, by member; see `open_members`.

    Returns:
        An `Experiment`, of a canvas model a `SceneExperiment`, of a cloned policy a
        `CloneExperiment`.

    Raises:
        FileNotFoundError, ValueError: data, weights or config do not fit; the message names what.
    """
    if config.train.task == "canvas":
        return scene_experiment(config)
    if config.train.task == "clone":
        return clone_experiment(config)
    make_task = task_maker(config)
    _require_paths(config)
    time = TimeSpec(config.data.frames, config.canvas.t_current)
    members = open_data(config, known)
    spec = _batch_spec(members[0].train, config.train.batch_size)
    model, task, rules = make_task(config, time, spec)
    fingerprints = data_fingerprints(config, members)
    if backbone := getattr(model, "backbone", None):
        fingerprints |= backbone.fingerprints()
        task = _with_latents(config, model, task, windows=sum(len(m.train) for m in members))
    else:
        _refuse_latents(config)
    return Experiment(
        config=config,
        time=time,
        members=members,
        model=model,
        task=task,
        rules=rules,
        fingerprints=fingerprints,
    )


def task_maker(
    config: ml_collections.ConfigDict,
) -> Callable[..., tuple[Any, Task, sharding.Rules]]:
    """From (config, time, batch spec) to model, task and sharding rules, for `train.task`.

    Not for a canvas model or a cloned policy, see `scene_build` and `clone_build`.

    Raises:
        ValueError: no such task, a run that no machine could start, or a leaf of a canvas model.
    """
    makers = {"graft": _graft, "video": _video, "vae": _vae}
    check_choice("train.task", config.train.task, [*makers, "canvas", "clone"])
    check_run(config)
    refuse_canvas_leaves(config)
    check_seed(config.seed)
    return makers[config.train.task]


def _with_latents(
    config: ml_collections.ConfigDict, model: Any, task: Task, *, windows: int
) -> Task:
    """The task on the batches that the config asks for: with frames, or encoded before."""
    data, fields = config.data, read_fields(config, model.latent_fields)
    once = windows <= data.encode_once
    if data.latents:
        # Copies on disk were augmented when they were made.
        loss = dataclasses.replace(model, augmentation=Augmentation()).loss
        task = dataclasses.replace(task, loss=loss)
    elif once:
        refuse_changing(
            config,
            where=f"data.encode_once = {data.encode_once}",
            expected="data.encode_once = 0",
        )
    if data.posterior == "sample":
        task = dataclasses.replace(task, loss=sampling(task.loss))
    if data.latents or once:
        shape = model.backbone.latent_shape
        task = encoded(task, time=model.time, latent_shape=shape, fields=fields)
    return task


def _refuse_latents(config: ml_collections.ConfigDict) -> None:
    """For a task that trains the VAE itself."""
    given = {
        "data.latents": (config.data.latents, ""),
        "data.posterior": (config.data.posterior, "mean"),
    }
    for key, (value, default) in given.items():
        if value != default:
            raise ValueError(
                f"{key} = {value!r}: train.task = {config.train.task} trains the VAE, on frames; "
                f"expected {default!r}"
            )


def _require_paths(config: ml_collections.ConfigDict) -> None:
    """One message for all that a full-size run lacks."""
    needed = {
        "backbone.path": "python -m convert import --src DIFFUSERS_DIR --dst DIR",
        "data.root": "a copy of bridge_dataset/1.0.0 (docs/data.md), or 'embedded'",
        "data.text": "python -m convert text --model DIR --prompts FILE --out FILE",
    }
    if config.train.task == "vae":
        del needed["backbone.path"]
    root = config.data.mixture or config.data.root
    values = {"backbone.path": config.backbone.path, "data.root": root}
    values["data.text"] = config.data.text
    missing = [f"  --config.{key}=...  {how}" for key, how in needed.items() if not values.get(key)]
    if missing:
        raise ValueError("\n".join(["this config needs", *missing]))


def _batch_spec(source: WindowSource, batch_size: int) -> dict[str, ArraySpec]:
    window: Batch = source[0]
    return {
        name: ArraySpec((batch_size, *np.shape(value)), np.asarray(value).dtype)
        for name, value in window.items()
    }


def _graft(config, time: TimeSpec, spec: dict[str, ArraySpec]):
    backbone = backbones.open_backbone(
        config.backbone.path,
        image_size=tuple(config.data.image_size),
        dtype=config.train.dtype,
    )
    model = graft_task.graft_model(config, backbone=backbone, time=time, batch_spec=spec)
    task = graft_task.graft_task(model, freeze=config.freeze, batch_spec=spec)
    return model, task, graft_task.SHARDING_RULES


def _video(config, time: TimeSpec, spec: dict[str, ArraySpec]):
    sizes: TransformerConfig = video.scratch_config(config, text=spec["text"].shape[1:])
    backbone = backbones.open_vae(
        config.backbone.path,
        transformer=sizes,
        image_size=tuple(config.data.image_size),
        dtype=config.train.dtype,
    )
    model = video.video_model(config, backbone=backbone, time=time)
    return model, video.video_task(model, batch_spec=spec), video.SHARDING_RULES


def _vae(config, time: TimeSpec, spec: dict[str, ArraySpec]):
    model, task = vae.vae_task(config, batch_spec=spec)
    return model, task, vae.SHARDING_RULES
