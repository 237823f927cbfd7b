"""From a config to everything that a run needs: data, model, task, sharding rules.

`build` reads headers and shapes only; weights are loaded by the trainer and windows are encoded by
`Experiment.batches`, so a dry run costs next to nothing.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import json
import pathlib
import subprocess
from collections.abc import Callable, Mapping
from typing import Any

import jax
import ml_collections
import numpy as np

from roam_jax.axes import MESH_AXES
from roam_jax.cogvideox.config import TransformerConfig
from roam_jax.cogvideox.importing import hash_file
from roam_jax.contracts import ArraySpec, Batch, Task, TimeSpec
from roam_jax.data.embedded import ensure_embedded
from roam_jax.data.latents import LatentSource, encode_windows
from roam_jax.data.loader import Loader, make_loader, split_windows
from roam_jax.data.statistics import RobotStatistics
from roam_jax.data.windows import LANGUAGE_EMBEDDING, WindowSource
from roam_jax.diffusion.schedule import NoiseSchedule
from roam_jax.spelling import check_choice
from roam_jax.tasks import backbone as backbones
from roam_jax.tasks import graft_task, vae, video
from roam_jax.train import sharding
from roam_jax.train.curriculum import Curriculum

EMBEDDED = "embedded"
ENCODE_BATCH = 8
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "roam-jax")


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A config with its data opened and its model built; no weight is loaded yet.

    Args:
        config: the whole config.
        time: alignment of the window.
        train, val: windows of both splits.
        statistics: scaling of actions and states, from the train split.
        model: what the task trains: a `GraftModel`, `VideoModel` or `VAEModel`.
        task: the trainer's view of it.
        rules: sharding rules of its parameters.
        fingerprints: of data and pretrained weights.
    """

    config: ml_collections.ConfigDict
    time: TimeSpec
    train: WindowSource
    val: WindowSource
    statistics: RobotStatistics
    model: Any
    task: Task
    rules: sharding.Rules
    fingerprints: Mapping[str, str]

    @property
    def rounds(self) -> Curriculum:
        """Rounds of every training step."""
        return _rounds(self.config)

    def batches(self) -> Loader:
        """The endless training batches; encodes all windows first where the config says so."""
        source = self.train
        if "target_latents" in self.task.batch_spec:
            source = self.encoded(source)
        return make_loader(source, batch_size=self.config.train.batch_size, seed=self.config.seed)

    def encoded(self, source: WindowSource) -> LatentSource:
        """The windows of a split with their videos encoded once, by the frozen VAE."""
        backbone = self.model.backbone
        params = jax.device_put(backbone.pretrained_vae())
        encode = jax.jit(functools.partial(backbone.encode, time=self.time))
        return encode_windows(source, functools.partial(encode, params), batch_size=ENCODE_BATCH)

    def provenance(self) -> dict[str, Any]:
        """What a later reader needs to know of where a run came from."""
        return {
            "git_commit": _git_commit(),
            "packages": {name: _version(name) for name in PACKAGES},
            "data": self.train.describe(),
            "fingerprints": dict(self.fingerprints),
            "statistics": json.loads(self.statistics.to_json()),
        }


def build(config: ml_collections.ConfigDict) -> Experiment:
    """Opens the data and builds the task that `train.task` names.

    Raises:
        FileNotFoundError, ValueError: data, weights or config do not fit; the message names what.
    """
    make_task = task_maker(config)
    _require_paths(config)
    time = TimeSpec(config.data.frames, config.canvas.t_current)
    train, val, statistics = split_windows(
        data_root(config.data.root),
        camera=config.data.camera,
        image_size=config.data.image_size,
        time=time,
        text=config.data.text,
    )
    model, task, rules = make_task(config, time, _batch_spec(train, config.train.batch_size))
    fingerprints = _data_fingerprints(config, train, val)
    if backbone := getattr(model, "backbone", None):
        fingerprints |= backbone.fingerprints()
        if len(train) <= config.data.encode_once:
            task = encoded(task, time=time, latent_shape=backbone.latent_shape)
    return Experiment(
        config=config,
        time=time,
        train=train,
        val=val,
        statistics=statistics,
        model=model,
        task=task,
        rules=rules,
        fingerprints=fingerprints,
    )


def task_maker(
    config: ml_collections.ConfigDict,
) -> Callable[..., tuple[Any, Task, sharding.Rules]]:
    """From (config, time, batch spec) to model, task and sharding rules, for `train.task`.

    Raises:
        ValueError: no such task, or a run that no machine could start.
    """
    makers = {"graft": _graft, "video": _video, "vae": _vae}
    check_choice("train.task", config.train.task, makers)
    _check_run(config)
    return makers[config.train.task]


def _check_run(config: ml_collections.ConfigDict) -> None:
    """Refuses what neither data nor weights nor devices could make right."""
    _rounds(config)
    if config.train.batch_size < 1:
        raise ValueError(f"train.batch_size = {config.train.batch_size}: expected at least 1")
    sizes = {axis: config.mesh[axis] for axis in MESH_AXES}
    for axis, size in sizes.items():
        if size < 1 and size != -1:
            raise ValueError(f"mesh.{axis} = {size}: expected at least 1, or -1 for the rest")
    if all(size == -1 for size in sizes.values()):
        given = ", ".join(f"mesh.{axis} = -1" for axis in sizes)
        raise ValueError(f"{given}: expected at most one -1, for the rest")


def _rounds(config: ml_collections.ConfigDict) -> Curriculum:
    """Rounds of every step; always one in a model without loops."""
    loop, train = config.loop, config.train
    if train.task == "graft":
        # A config that was read from JSON has a list.
        return Curriculum(loop.rounds, tuple(loop.curriculum), steps=train.steps)
    if loop.curriculum:
        raise ValueError(
            f"loop.curriculum = {loop.curriculum}: train.task = {train.task} has no loop, "
            "expected ()"
        )
    return Curriculum(1, (), steps=train.steps)


def encoded(task: Task, *, time: TimeSpec, latent_shape: tuple[int, ...]) -> Task:
    """The task on batches whose frames, in its spec, were encoded before."""
    spec = dict(task.batch_spec)
    size, dtype = spec.pop("frames").shape[0], np.dtype(np.float32)
    latents = {
        "observed_latents": ArraySpec((size, time.t_current, *latent_shape), dtype),
        "target_latents": ArraySpec((size, time.latents, *latent_shape), dtype),
    }
    return dataclasses.replace(task, batch_spec={**latents, **spec})


def data_root(root: str) -> pathlib.Path:
    """Folder of the dataset that `data.root` names; writes embedded data on first use."""
    name, _, variant = root.partition(":")
    if name == EMBEDDED:
        return ensure_embedded(variant=variant or "default")
    return pathlib.Path(root).expanduser()


def _data_fingerprints(config, train: WindowSource, val: WindowSource) -> dict[str, str]:
    """Of all that is read beside the weights."""
    found = {
        "data": train.describe()["fingerprint"],
        "data/val": val.describe()["fingerprint"],
    }
    if config.data.text != LANGUAGE_EMBEDDING:
        found["text"] = hash_file(pathlib.Path(config.data.text).expanduser())
    return found


def _require_paths(config: ml_collections.ConfigDict) -> None:
    """One message for all that a full-size run lacks."""
    needed = {
        "backbone.path": "python -m convert import --src DIFFUSERS_DIR --dst DIR",
        "data.root": "a copy of bridge_dataset/1.0.0 (docs/data.md), or 'embedded'",
        "data.text": "python -m convert text --model DIFFUSERS_DIR --prompts FILE --out FILE",
    }
    if config.train.task == "vae":
        del needed["backbone.path"]
    values = {"backbone.path": config.backbone.path, "data.root": config.data.root}
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
    backbone = backbones.open_backbone(config.backbone.path, image_size=config.data.image_size)
    model = graft_task.graft_model(config, backbone=backbone, time=time)
    task = graft_task.graft_task(model, freeze=config.freeze, batch_spec=spec)
    return model, task, graft_task.SHARDING_RULES


def _video(config, time: TimeSpec, spec: dict[str, ArraySpec]):
    sizes: TransformerConfig = video.scratch_config(config, text=spec["text"].shape[1:])
    backbone = backbones.open_vae(
        config.backbone.path, transformer=sizes, image_size=config.data.image_size
    )
    model = video.VideoModel(backbone, time, NoiseSchedule(), config.loss.observed_fraction)
    return model, video.video_task(model, batch_spec=spec), video.SHARDING_RULES


def _vae(config, time: TimeSpec, spec: dict[str, ArraySpec]):
    model, task = vae.vae_task(config, batch_spec=spec)
    return model, task, vae.SHARDING_RULES


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _git_commit() -> str | None:
    """Commit of the checkout that runs; None outside one."""
    root = pathlib.Path(__file__).resolve().parent
    done = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or None
