"""Latents that are made before training: what they depend on, who makes them, where they come from.

`data/` holds and reads them without knowing a model; here the model's VAE, its augmentation and the
config meet it.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np

from roam_jax.contracts import VIDEO_FIELDS, ArraySpec, LossFn, Params, Task, TimeSpec
from roam_jax.data.latent_cache import CachedLatents
from roam_jax.data.latent_layout import LatentLayout
from roam_jax.data.latent_shards import (
    WHOLE,
    Encoding,
    Part,
    own_text,
    record_fields,
    window_indices,
)
from roam_jax.data.latents import COPY, Encoder
from roam_jax.data.loader import member_seed
from roam_jax.data.members import Member
from roam_jax.data.options import LANGUAGE_EMBEDDING
from roam_jax.data.windows import WindowSource
from roam_jax.spelling import check_choice
from roam_jax.tasks.augment import Augmentation
from roam_jax.tasks.backbone import LATENT_FIELDS, LOGVAR, POSTERIOR_KEY, Backbone
from roam_jax.tasks.row_map import map_rows

POSTERIORS = ("mean", "sample")
# What the key of a step is folded with for draws from the posterior.
POSTERIOR_STREAM = 0x9057


def read_fields(config: ml_collections.ConfigDict, latents: Sequence[str]) -> tuple[str, ...]:
    """The latents that a model reads, and log-variances where it trains on samples.

    Raises:
        ValueError: no such `data.posterior`, or a negative `data.latents_stride`.
    """
    check_choice("data.posterior", config.data.posterior, POSTERIORS)
    if config.data.latents_stride < 0:
        raise ValueError(f"data.latents_stride = {config.data.latents_stride}: expected at least 0")
    drawn = [name for name in latents if name.startswith("target")]
    if config.data.posterior == "mean":
        drawn = []
    return (*latents, *(name + LOGVAR for name in drawn))


def latent_shapes(
    batch_spec: Mapping[str, ArraySpec],
    *,
    time: TimeSpec,
    latent_shape: tuple[int, ...],
    fields: Collection[str],
) -> dict[str, tuple[int, ...]]:
    """Shapes of the wanted latents and log-variances, with the batch axis of `batch_spec`.

    Args:
        batch_spec: of batches that bring frames.
        time: alignment of the window.
        latent_shape: (C, h, w).
        fields: which of `LATENT_FIELDS`, and names of log-variances.
    """
    frames = {"observed": time.t_current, "target": time.latents, "goal": 1}
    shapes = {}
    for name, videos in LATENT_FIELDS.items():
        for field in (name, name + LOGVAR):
            if field in fields:
                # (B, T, H, W, 3), and with several cameras (B, V, T, H, W, 3).
                rows = batch_spec[videos].shape[:-4]
                shapes[field] = (*rows, frames[name.partition("_")[0]], *latent_shape)
    return shapes


def encoded(
    task: Task, *, time: TimeSpec, latent_shape: tuple[int, ...], fields: Collection[str]
) -> Task:
    """The task on batches whose videos, in its spec, were encoded before.

    Args:
        task: on batches that bring frames.
        time, latent_shape, fields: as for `latent_shapes`; what the model reads.
    """
    shapes = latent_shapes(task.batch_spec, time=time, latent_shape=latent_shape, fields=fields)
    spec = {name: ArraySpec(shape, np.dtype(np.float32)) for name, shape in shapes.items()}
    rest = {n: field for n, field in task.batch_spec.items() if n not in VIDEO_FIELDS}
    return dataclasses.replace(task, batch_spec={**spec, **rest})


def sampling(loss: LossFn) -> LossFn:
    """The loss on samples of the posterior, drawn anew at every step."""

    def sampled(params: Params, batch, rng: jax.Array, rounds: int):
        key = jax.random.fold_in(rng, POSTERIOR_STREAM)
        return loss(params, {**batch, POSTERIOR_KEY: key}, rng, rounds)

    return sampled


def make_encoder(
    backbone: Backbone,
    time: TimeSpec,
    fields: Collection[str],
    *,
    augmentation: Augmentation | None = None,
) -> Encoder:
    """The frozen VAE as a function of videos alone, its weights on the device.

    Args:
        backbone: holds the VAE.
        time: alignment of the window.
        fields: latents and log-variances that are wanted.
        augmentation: of windows that say which copy they are, one at a time; None = none.
    """

    def augment(_: None, window: Mapping[str, jax.Array]):
        seed, index, copy = window[COPY]
        rng = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), index), copy)
        videos = {name: x[None] for name, x in window.items() if name in VIDEO_FIELDS}
        return {name: x[0] for name, x in augmentation(videos, rng).items()}

    @jax.jit
    def encode(params: Params, batch: Mapping[str, jax.Array]):
        if augmentation and augmentation.changed:
            batch = map_rows(augment, None, batch)
        return backbone.encode_batch(params, batch, time, fields=fields)

    return functools.partial(encode, jax.device_put(backbone.pretrained_vae()))


def layout_encoder(experiment: Any, layout: LatentLayout) -> Encoder:
    """What fills a folder of this layout, with the VAE and the augmentation of an experiment."""
    augmentation = Augmentation.from_config(experiment.config) if layout.drawn else None
    return make_encoder(
        experiment.model.backbone,
        experiment.time,
        layout.latent_fields,
        augmentation=augmentation,
    )


def refuse_changing(config: ml_collections.ConfigDict, *, where: str, expected: str) -> None:
    """Refuses what changes from one reading of a window to the next.

    Args:
        config: the whole config.
        where: what encodes windows once, for the message.
        expected: what to do instead.

    Raises:
        ValueError: `data.augment` or a random goal.
    """
    if changing := changing_settings(config):
        raise ValueError(
            f"{', '.join(changing)} with {where}: windows that were encoded once cannot change any "
            f"more; expected {expected}"
        )


def changing_settings(config: ml_collections.ConfigDict) -> list[str]:
    """Settings by which a window is another one each time that it is read."""
    settings = Augmentation.from_config(config).changed
    changing = [f"data.augment.{name} = {value}" for name, value in settings.items()]
    if config.data.goal == "uniform":
        changing.append("data.goal = 'uniform'")
    return changing


def made_with(
    config: ml_collections.ConfigDict, source: WindowSource, backbone: Backbone
) -> dict[str, Any]:
    """What the latents of a source depend on, by config key or in a word; JSON values.

    Statistics are not among it, because they are applied where latents are read, and neither are
    texts from a file, which are looked up there.
    """
    data = config.data
    text = data.text if data.text in ("", LANGUAGE_EMBEDDING) else "a file"
    return {
        "weights of the VAE": backbone.fingerprints()["vae"],
        "data": source.fingerprint,
        "windows of the split": len(source),
        "data.image_size": list(data.image_size),
        "data.frames": data.frames,
        "canvas.t_current": config.canvas.t_current,
        "data.rate": source.describe()["rate"],
        "data.cameras": list(data.cameras),
        "data.goal": data.goal,
        "data.augment": Augmentation.from_config(config).changed,
        "data.text": text,
    }


def arithmetic(backbone: Backbone) -> str:
    """Dtype and kind of device, such as "float32 on cpu"."""
    return f"{backbone.compute_dtype} on {jax.default_backend()}"


def member_folder(folder: str | pathlib.Path, member: Member) -> pathlib.Path:
    """Where the windows of a member are: the folder itself, or one in it by the member's name."""
    return pathlib.Path(folder).expanduser() / member.name


def plan_encodings(
    experiment: Any,
    out: str | pathlib.Path,
    *,
    copies: int,
    dtype: str,
    shard_windows: int,
    arguments: Sequence[str] = (),
    part: Part = WHOLE,
) -> list[Encoding]:
    """What is encoded of each dataset of an experiment; no two members have the same draws.

    Args:
        experiment: data and model, on frames.
        out: folder; that of a member lies in it.
        copies, dtype, shard_windows, arguments: as for `_layout`.
        part: of the shards that this process writes.

    Raises:
        ValueError: as `_layout` and `Encoding`.
    """
    encodings = []
    for number, member in enumerate(experiment.members):
        layout = _layout(
            experiment.config,
            member.train,
            experiment.model,
            experiment.task.batch_spec,
            copies=copies,
            dtype=dtype,
            shard_windows=shard_windows,
            arguments=arguments,
            member=number,
        )
        encodings.append(Encoding(member.train, member_folder(out, member), layout, part=part))
    return encodings


def _layout(
    config: ml_collections.ConfigDict,
    source: WindowSource,
    model: Any,
    batch_spec: Mapping[str, ArraySpec],
    *,
    copies: int,
    dtype: str,
    shard_windows: int,
    arguments: Sequence[str],
    member: int,
) -> LatentLayout:
    """What `encode` writes for one dataset.

    Args:
        config: the whole config.
        source: windows of its train split.
        model: a `GraftModel` or `VideoModel`.
        batch_spec: of batches that bring frames.
        copies: augmented copies of each window; 0 = the window as it is.
        dtype: of latents and log-variances on disk.
        shard_windows: windows of a shard.
        arguments: of the command.
        member: number of the dataset in a mixture, so that no two have the same draws.

    Raises:
        ValueError: something is random and no copies are asked for, or copies that would be alike.
    """
    if copies == 0:
        refuse_changing(config, where="--copies 0", expected="--copies K, K draws of each window")
    drawn = bool(changing_settings(config))
    if copies > 1 and not drawn:
        raise ValueError(
            f"--copies {copies}: all copies would be alike; expected data.augment, data.goal = "
            "'uniform', or --copies 0"
        )
    backbone, stride = model.backbone, max(1, config.data.latents_stride)
    fields = [name for latents in model.latent_fields for name in (latents, latents + LOGVAR)]
    shapes = latent_shapes(
        batch_spec, time=model.time, latent_shape=backbone.latent_shape, fields=fields
    )
    rows = {name: shape[1:] for name, shape in shapes.items()}
    return LatentLayout(
        made_with=made_with(config, source, backbone),
        arithmetic=arithmetic(backbone),
        windows=len(window_indices(source.counts, stride)),
        stride=stride,
        copies=max(1, copies),
        drawn=drawn,
        seed=member_seed(config.seed, member) if drawn else 0,
        shard_windows=shard_windows,
        fields=record_fields(source, rows, dtype=dtype),
        own_text=own_text(source),
        arguments=tuple(arguments),
    )


def open_caches(
    config: ml_collections.ConfigDict,
    members: Sequence[Member],
    model: Any,
    fields: Collection[str],
) -> tuple[CachedLatents, ...]:
    """The encoded windows that `data.latents` names, of each member.

    Raises:
        FileNotFoundError, ValueError: as `CachedLatents`.
    """
    return tuple(
        CachedLatents(
            member_folder(config.data.latents, member),
            member.train,
            made_with=made_with(config, member.train, model.backbone),
            fields=fields,
            arithmetic=arithmetic(model.backbone),
            stride=config.data.latents_stride,
        )
        for member in members
    )
