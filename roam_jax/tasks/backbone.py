"""The pretrained weights that a run stands on: transformer and VAE.

`backbone.path` names a folder made by `python -m convert import`. "tiny" is the small pretrained
pair that comes with the package, imported by the same code into the cache on first use. No config
can ask for random frozen weights, because they teach nothing.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.resources
import math
import pathlib
from collections.abc import Collection

import jax
import jax.numpy as jnp
import ml_collections
from jaxtyping import Array, Float, UInt8

from roam_jax.cogvideox.config import TransformerConfig
from roam_jax.cogvideox.importing import hash_file, import_diffusers
from roam_jax.cogvideox.load import fingerprint, load_transformer, load_vae
from roam_jax.cogvideox.vae import VAE
from roam_jax.cogvideox.vae_config import VAEConfig
from roam_jax.contracts import Batch, Params, TimeSpec, cache_dir
from roam_jax.microbatch import draw_rows, part_of
from roam_jax.spelling import check_choice
from roam_jax.tasks.row_map import map_rows

TINY = "tiny"
# What `train.dtype` may be.
DTYPES = ("auto", "float32", "bfloat16")
# Fields of a batch that hold latents -> the field with the frames that they are made of.
LATENT_FIELDS = {
    "observed_latents": "frames",
    "target_latents": "frames",
    "observed_camera_latents": "camera_frames",
    "target_camera_latents": "camera_frames",
    "goal_latent": "goal_frame",
}
FIRST_CAMERA = ("observed_latents", "target_latents")
# What follows a field's name in that of its log-variance.
LOGVAR = "_logvar"
# Where a training batch carries the key of its draws from the posterior.
POSTERIOR_KEY = "posterior_key"


@dataclasses.dataclass(frozen=True)
class Backbone:
    """Configs of both networks and where their weights are.

    Args:
        transformer_config, vae_config: sizes.
        image_size: (height, width) of the frames in pixels.
        transformer_path, vae_path: converted folders; None = no pretrained weights.
        dtype: that both networks compute in, one of `DTYPES`, `train.dtype`.

    Raises:
        ValueError: tokens do not divide the frames, or no such dtype.
    """

    transformer_config: TransformerConfig
    vae_config: VAEConfig
    image_size: tuple[int, ...]
    transformer_path: pathlib.Path | None = None
    vae_path: pathlib.Path | None = None
    dtype: str = "auto"

    def __post_init__(self):
        check_choice("train.dtype", self.dtype, DTYPES)
        factor, patch = (
            self.vae_config.spatial_compression_ratio,
            self.transformer_config.patch_size,
        )
        unit = factor * patch
        if len(self.image_size) != 2 or any(n < 1 or n % unit for n in self.image_size):
            raise ValueError(
                f"data.image_size = {self.image_size}: expected (height, width), both a multiple "
                f"of {unit}, the VAE's spatial factor {factor} x the transformer's patch {patch}"
            )

    @property
    def compute_dtype(self) -> jnp.dtype:
        """As asked for; auto is bfloat16 on accelerators, float32 on CPUs, where that is faster."""
        if self.dtype != "auto":
            return jnp.dtype(self.dtype)
        return jnp.dtype(jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16)

    @property
    def frozen_dtype(self) -> jnp.dtype | None:
        """bfloat16 where that is computed in; else the file's own (None), promoted where used."""
        return self.compute_dtype if self.compute_dtype == jnp.bfloat16 else None

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of one latent frame."""
        factor = self.vae_config.spatial_compression_ratio
        height, width = self.image_size
        return self.vae_config.latent_channels, height // factor, width // factor

    @property
    def vae(self) -> VAE:
        """The VAE module."""
        return VAE(self.vae_config, self.compute_dtype)

    def init_vae(self, rng: jax.Array) -> Params:
        """Random VAE parameters."""
        video = jnp.zeros((1, 3, 1, *self.image_size))
        return self.vae.init(rng, video)["params"]

    def pretrained(self) -> Params:
        """Memory-mapped arrays of what comes from files, in their own dtype."""
        params: Params = {}
        if self.transformer_path is not None:
            params |= load_transformer(self.transformer_path)[1]
        if self.vae_path is not None:
            params["vae"] = self.pretrained_vae()
        return params

    def pretrained_vae(self) -> Params:
        """The VAE's part of `pretrained`."""
        return load_vae(self.vae_path)[1]

    def encode(
        self, vae_params: Params, frames: UInt8[Array, "B T H W 3"], time: TimeSpec
    ) -> tuple[Float[Array, "B t_current C h w"], Float[Array, "B F C h w"]]:
        """Scaled posterior means of the observed frames alone and of the whole window.

        The observed frames are encoded without any later frame, because the encoder's GroupNorm
        would carry the future into them.
        """
        found = self.encode_batch(vae_params, {"frames": frames}, time, fields=FIRST_CAMERA)
        return found["observed_latents"], found["target_latents"]

    def encode_batch(
        self,
        vae_params: Params,
        batch: Batch,
        time: TimeSpec,
        *,
        fields: Collection[str] | None = None,
    ) -> dict[str, Array]:
        """Latents of every video of a batch, each video encoded without any other.

        Args:
            vae_params: of the VAE.
            batch: `frames`, and `camera_frames` and `goal_frame` where there are any.
            time: alignment of the window.
            fields: which of `LATENT_FIELDS` are wanted, and log-variances of these by their names
                with `LOGVAR`; None = the latents of all frames that the batch has.

        Returns:
            Field -> scaled posterior means, or log-variances, as `Batch` describes them. Each row
            is encoded alone, so its numbers do not depend on the batch.
        """
        if fields is None:
            fields = [name for name, frames in LATENT_FIELDS.items() if frames in batch]
        found = {}
        for name, videos in LATENT_FIELDS.items():
            wanted = {name, name + LOGVAR} & set(fields)
            if not wanted:
                continue
            frames = jnp.asarray(batch[videos])
            if name.startswith("observed"):
                frames = frames[..., : time.observed_frames, :, :, :]
            # Cameras are rows like any other: (B, V, T, ...) -> (B V, T, ...).
            rows = frames.reshape(-1, *frames.shape[-4:])
            moments = zip((name, name + LOGVAR), self._moments(vae_params, rows), strict=True)
            found |= {
                moment: values.reshape(*frames.shape[:-4], *values.shape[1:])
                for moment, values in moments
                if moment in wanted
            }
        return found

    def _moments(
        self, vae_params: Params, frames: UInt8[Array, "N T H W 3"]
    ) -> tuple[Float[Array, "N F C h w"], Float[Array, "N F C h w"]]:
        """Mean and log-variance of the scaled latents of each video, encoded one at a time."""
        scale = self.vae_config.scaling_factor

        def encode(params: Params, frames: Array) -> tuple[Array, Array]:
            video = to_video(frames[None])
            moments = self.vae.apply({"params": params}, video, method=VAE.encode)
            mean, logvar = (jnp.moveaxis(x[0], 0, 1).astype(jnp.float32) for x in moments)
            return mean * scale, logvar + 2 * math.log(scale)

        return map_rows(encode, vae_params, frames)

    def decode(
        self, vae_params: Params, latents: Float[Array, "B F C h w"]
    ) -> UInt8[Array, "B T H W 3"]:
        """Scaled latents to frames."""
        unscaled = jnp.moveaxis(latents / self.vae_config.scaling_factor, 2, 1)
        video = self.vae.apply({"params": vae_params}, unscaled, method=VAE.decode)
        pixels = jnp.round((jnp.clip(video, -1, 1) + 1) * 127.5).astype(jnp.uint8)
        return jnp.moveaxis(pixels, 1, -1)

    def latents(
        self,
        vae_params: Params,
        batch: Batch,
        time: TimeSpec,
        *,
        fields: Collection[str] = FIRST_CAMERA,
    ) -> dict[str, Array]:
        """The wanted `LATENT_FIELDS` of a batch, encoded here unless it brings them.

        Posterior means; with a key in the batch (`POSTERIOR_KEY`), samples of the target fields.
        """
        drawn = [name for name in fields if POSTERIOR_KEY in batch and name.startswith("target")]
        read = [*fields, *(name + LOGVAR for name in drawn)]
        if "frames" in batch:
            found = self.encode_batch(vae_params, batch, time, fields=read)
        else:
            found = {name: jnp.asarray(batch[name]) for name in read}
        for number, name in enumerate(drawn):
            key, mean = jax.random.fold_in(batch[POSTERIOR_KEY], number), found[name]
            noise = draw_rows(
                part_of(batch),
                len(mean),
                lambda n, key=key, mean=mean: jax.random.normal(key, (n, *mean.shape[1:])),
            )
            found[name] = mean + jnp.exp(0.5 * found[name + LOGVAR]) * noise
        return {name: found[name] for name in fields}

    def fingerprints(self) -> dict[str, str]:
        """Hashes of the pretrained weights, by network."""
        paths = {"transformer": self.transformer_path, "vae": self.vae_path}
        return {part: fingerprint(p / part) for part, p in paths.items() if p is not None}


def to_video(frames: UInt8[Array, "B T H W 3"]) -> Float[Array, "B 3 T H W"]:
    """Pixels 0..255 to the VAE's [-1, 1], in its axis order."""
    return jnp.moveaxis(frames.astype(jnp.float32) / 127.5 - 1, -1, 1)


def open_backbone(path: str, *, image_size: tuple[int, ...], dtype: str = "auto") -> Backbone:
    """The pretrained transformer and VAE that `backbone.path` names.

    An empty path gives the sizes of the published CogVideoX-2B without weights: enough to describe
    a run, not to start one. `image_size` is (height, width); `dtype` as for `Backbone`.

    Raises:
        FileNotFoundError, ValueError: not a converted folder, or a size that does not fit.
    """
    if not path:
        return Backbone(TransformerConfig(), VAEConfig(), image_size, dtype=dtype)
    folder = weights_folder(path)
    transformer, vae = load_transformer(folder)[0], load_vae(folder)[0]
    return Backbone(transformer.config, vae.config, image_size, folder, folder, dtype)


def open_vae(
    path: str,
    *,
    transformer: TransformerConfig,
    image_size: tuple[int, ...],
    dtype: str = "auto",
) -> Backbone:
    """The same VAE beside a transformer from scratch."""
    if not path:
        return Backbone(transformer, VAEConfig(), image_size, dtype=dtype)
    folder = weights_folder(path)
    vae = load_vae(folder)[0]
    return Backbone(transformer, vae.config, image_size, None, folder, dtype)


def weights_folder(path: str) -> pathlib.Path:
    """The converted folder that `backbone.path` names."""
    return tiny_weights() if path == TINY else pathlib.Path(path).expanduser()


def tiny_weights() -> pathlib.Path:
    """The package's small pretrained weights, converted into the cache on first use."""
    assets = importlib.resources.files("roam_jax") / "assets" / "tiny_cogvideox"
    with importlib.resources.as_file(assets) as source:
        files = sorted(p for p in source.glob("*/*") if p.suffix in (".json", ".safetensors"))
        version = hashlib.blake2b("".join(map(hash_file, files)).encode(), digest_size=6)
        target = cache_dir() / f"tiny_cogvideox-{version.hexdigest()}"
        if not target.exists():
            try:
                import_diffusers(source, target)
            except OSError:  # another process was first: the folder appears whole
                if not target.exists():
                    raise
    return target


def refuse_views(config: ml_collections.ConfigDict) -> None:
    """For tasks that learn the first camera alone.

    Raises:
        ValueError: the config asks for further cameras or for a goal.
    """
    task, data = config.train.task, config.data
    if len(data.cameras) > 1:
        raise ValueError(
            f"data.cameras = {tuple(data.cameras)}: train.task = {task} learns one camera; "
            "expected one name"
        )
    if data.goal != "none":
        raise ValueError(
            f"data.goal = {data.goal!r}: train.task = {task} has no place for it; expected 'none'"
        )


def refuse_remat(config: ml_collections.ConfigDict) -> None:
    """For tasks whose networks keep all that they compute.

    Raises:
        ValueError: the config asks for something else.
    """
    if config.train.remat != "layers":
        raise ValueError(
            f"train.remat = {config.train.remat!r}: train.task = {config.train.task} keeps all for "
            "the backward pass, with no other choice; expected 'layers', the default"
        )


def refuse_dtype(config: ml_collections.ConfigDict) -> None:
    """For tasks that compute in float32 everywhere.

    Raises:
        ValueError: the config asks for something else, or for no dtype at all.
    """
    check_choice("train.dtype", config.train.dtype, DTYPES)
    if config.train.dtype == "bfloat16":
        raise ValueError(
            f"train.dtype = 'bfloat16': train.task = {config.train.task} computes in float32; "
            "expected 'auto' or 'float32'"
        )
