"""The pretrained weights that a run stands on: transformer and VAE.

`backbone.path` names a folder made by `python -m convert import`. "tiny" is the small pretrained
pair that comes with the package, imported by the same code into the cache on first use. No config
can ask for random frozen weights, because they teach nothing.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.resources
import pathlib

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from roam_jax.cogvideox.config import TransformerConfig
from roam_jax.cogvideox.importing import hash_file, import_diffusers
from roam_jax.cogvideox.load import fingerprint, load_transformer, load_vae
from roam_jax.cogvideox.vae import VAE
from roam_jax.cogvideox.vae_config import VAEConfig
from roam_jax.contracts import Batch, Params, TimeSpec, cache_dir

TINY = "tiny"


@dataclasses.dataclass(frozen=True)
class Backbone:
    """Configs of both networks and where their weights are.

    Args:
        transformer_config, vae_config: sizes.
        image_size: height and width of the frames in pixels.
        transformer_path, vae_path: converted folders; None = no pretrained weights.
    """

    transformer_config: TransformerConfig
    vae_config: VAEConfig
    image_size: int
    transformer_path: pathlib.Path | None = None
    vae_path: pathlib.Path | None = None

    def __post_init__(self):
        if self.image_size % self.vae_config.spatial_compression_ratio:
            raise ValueError(
                f"data.image_size = {self.image_size}: expected a multiple of "
                f"{self.vae_config.spatial_compression_ratio}, the VAE's spatial factor"
            )

    @property
    def compute_dtype(self) -> jnp.dtype:
        """bfloat16 on accelerators; float32 on CPUs, where bfloat16 is slower."""
        return jnp.dtype(jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16)

    @property
    def frozen_dtype(self) -> jnp.dtype | None:
        """bfloat16 on accelerators; on CPUs the file's own (None), promoted where it is used."""
        return None if jax.default_backend() == "cpu" else jnp.dtype(jnp.bfloat16)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one latent frame."""
        side = self.image_size // self.vae_config.spatial_compression_ratio
        return self.vae_config.latent_channels, side, side

    @property
    def vae(self) -> VAE:
        """The VAE module."""
        return VAE(self.vae_config, self.compute_dtype)

    def init_vae(self, rng: jax.Array) -> Params:
        """Random VAE parameters."""
        video = jnp.zeros((1, 3, 1, self.image_size, self.image_size))
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
        video = to_video(frames)
        observed = self._encode_video(vae_params, video[:, :, : time.observed_frames])
        return observed, self._encode_video(vae_params, video)

    def _encode_video(self, vae_params: Params, video: Array) -> Array:
        mean, _ = self.vae.apply({"params": vae_params}, video, method=VAE.encode)
        return jnp.moveaxis(mean, 1, 2).astype(jnp.float32) * self.vae_config.scaling_factor

    def decode(
        self, vae_params: Params, latents: Float[Array, "B F C h w"]
    ) -> UInt8[Array, "B T H W 3"]:
        """Scaled latents to frames."""
        unscaled = jnp.moveaxis(latents / self.vae_config.scaling_factor, 2, 1)
        video = self.vae.apply({"params": vae_params}, unscaled, method=VAE.decode)
        pixels = jnp.round((jnp.clip(video, -1, 1) + 1) * 127.5).astype(jnp.uint8)
        return jnp.moveaxis(pixels, 1, -1)

    def latents(self, vae_params: Params, batch: Batch, time: TimeSpec) -> tuple[Array, Array]:
        """Observed and target latents of a batch, encoded here unless it brings them."""
        if "frames" in batch:
            return self.encode(vae_params, jnp.asarray(batch["frames"]), time)
        return jnp.asarray(batch["observed_latents"]), jnp.asarray(batch["target_latents"])

    def fingerprints(self) -> dict[str, str]:
        """Hashes of the pretrained weights, by network."""
        paths = {"transformer": self.transformer_path, "vae": self.vae_path}
        return {part: fingerprint(p / part) for part, p in paths.items() if p is not None}


def to_video(frames: UInt8[Array, "B T H W 3"]) -> Float[Array, "B 3 T H W"]:
    """Pixels 0..255 to the VAE's [-1, 1], in its axis order."""
    return jnp.moveaxis(frames.astype(jnp.float32) / 127.5 - 1, -1, 1)


def open_backbone(path: str, *, image_size: int) -> Backbone:
    """The pretrained transformer and VAE that `backbone.path` names.

    An empty path gives the sizes of the published CogVideoX-2B without weights: enough to describe
    a run, not to start one.

    Raises:
        FileNotFoundError, ValueError: not a converted folder.
    """
    if not path:
        return Backbone(TransformerConfig(), VAEConfig(), image_size)
    folder = weights_folder(path)
    transformer, vae = load_transformer(folder)[0], load_vae(folder)[0]
    return Backbone(transformer.config, vae.config, image_size, folder, folder)


def open_vae(path: str, *, transformer: TransformerConfig, image_size: int) -> Backbone:
    """The same VAE beside a transformer from scratch."""
    if not path:
        return Backbone(transformer, VAEConfig(), image_size)
    folder = weights_folder(path)
    vae = load_vae(folder)[0]
    return Backbone(transformer, vae.config, image_size, None, folder)


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
