"""The pretrained weights that a run stands on: transformer and VAE.

`backbone.path` names a folder made by `python -m convert import`. "tiny" is the small pretrained
pair that comes with the package, imported by the same code into the cache on first use. Random
weights teach nothing and are refused outside tests and benchmarks.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.resources
import pathlib

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jaxtyping import Array, Float, UInt8

from roam_jax.cogvideox.config import TransformerConfig
from roam_jax.cogvideox.importing import import_diffusers
from roam_jax.cogvideox.load import fingerprint, load_transformer, load_vae
from roam_jax.cogvideox.vae import VAE
from roam_jax.cogvideox.vae_config import VAEConfig
from roam_jax.contracts import Batch, Params, TimeSpec, cache_dir

TINY, RANDOM = "tiny", "random"


@dataclasses.dataclass(frozen=True)
class Backbone:
    """Configs of both networks and where their weights are.

    Args:
        transformer_config, vae_config: sizes.
        image_size: height and width of the frames in pixels.
        path: converted folder; None = random weights.
    """

    transformer_config: TransformerConfig
    vae_config: VAEConfig
    image_size: int
    path: pathlib.Path | None

    def __post_init__(self):
        if self.image_size % self.vae_config.spatial_factor:
            raise ValueError(
                f"data.image_size = {self.image_size}: expected a multiple of "
                f"{self.vae_config.spatial_factor}, the VAE's spatial factor"
            )

    @property
    def compute_dtype(self) -> jnp.dtype:
        """bfloat16 on accelerators; float32 on CPUs, where bfloat16 is slower."""
        return jnp.dtype(jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one latent frame."""
        side = self.image_size // self.vae_config.spatial_factor
        return self.vae_config.latent_channels, side, side

    @property
    def vae(self) -> VAE:
        """The VAE module."""
        return VAE(self.vae_config)

    def init_vae(self, rng: jax.Array) -> Params:
        """Random VAE parameters."""
        video = jnp.zeros((1, 3, 1, self.image_size, self.image_size))
        return self.vae.init(rng, video)["params"]

    def pretrained(self) -> Params:
        """Host arrays of transformer and VAE, in the storage dtype of this machine."""
        _, transformer = load_transformer(self.path)
        _, vae = load_vae(self.path)
        params = {**transformer, "vae": vae}
        if jax.default_backend() == "cpu":
            return params
        return jax.tree.map(lambda leaf: np.asarray(leaf).astype(ml_dtypes.bfloat16), params)

    def encode(
        self, vae_params: Params, frames: UInt8[Array, "B T H W 3"], time: TimeSpec
    ) -> tuple[Float[Array, "B t_current C H W"], Float[Array, "B F C H W"]]:
        """Scaled posterior means of the observed frames alone and of the whole window.

        The observed frames are encoded without any later frame, because the encoder's GroupNorm
        would carry the future into them.
        """
        video = jnp.moveaxis(frames.astype(jnp.float32) / 127.5 - 1, -1, 1)
        observed = self._encode_video(vae_params, video[:, :, : time.observed_frames])
        return observed, self._encode_video(vae_params, video)

    def _encode_video(self, vae_params: Params, video: Array) -> Array:
        mean, _ = self.vae.apply({"params": vae_params}, video, method=VAE.encode)
        return jnp.moveaxis(mean, 1, 2) * self.vae_config.scaling_factor

    def decode(
        self, vae_params: Params, latents: Float[Array, "B F C H W"]
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

    @functools.cached_property
    def fingerprint(self) -> dict[str, str]:
        """Hashes of the weights, by network."""
        if self.path is None:
            return {"transformer": RANDOM, "vae": RANDOM}
        return {part: fingerprint(self.path / part) for part in ("transformer", "vae")}


def open_backbone(path: str, *, image_size: int) -> Backbone:
    """The backbone that `backbone.path` names.

    Raises:
        FileNotFoundError, ValueError: not a converted folder.
    """
    folder = tiny_weights() if path == TINY else pathlib.Path(path).expanduser()
    transformer, _ = load_transformer(folder)
    vae, _ = load_vae(folder)
    return Backbone(transformer.config, vae.config, image_size, folder)


def random_backbone(transformer: TransformerConfig, vae: VAEConfig, *, image_size: int) -> Backbone:
    """A backbone without pretrained weights; for pretraining, tests and benchmarks."""
    return Backbone(transformer, vae, image_size, None)


def tiny_weights() -> pathlib.Path:
    """The package's small pretrained weights, converted into the cache on first use."""
    assets = importlib.resources.files("roam_jax") / "assets" / "tiny_cogvideox"
    with importlib.resources.as_file(assets) as source:
        version = (source / "VERSION").read_text().strip()
        target = cache_dir() / f"tiny_cogvideox-{version}"
        if not target.exists():
            import_diffusers(source, target)
    return target
