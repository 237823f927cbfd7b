"""From text embeddings to video, as diffusers' `CogVideoXPipeline` samples it.

Classifier-free guidance (Ho & Salimans 2022) runs both passes as one batch. One denoising step is
compiled; its timestep, coefficients and scale are arguments, so that any number of steps and either
sampler run the same program. A video can also be continued: latents of given first frames stay
clean, and what follows is sampled beside them.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jaxtyping import Array, Float, Float32, UInt8

from roam_jax.cogvideox.load import load_transformer, load_vae
from roam_jax.cogvideox.scheduler import read_scheduler
from roam_jax.cogvideox.transformer import Transformer
from roam_jax.cogvideox.vae import VAE
from roam_jax.cogvideox.vae_tiling import decode_tiled, decode_whole, encode_tiled, encode_whole
from roam_jax.cogvideox.video_size import VideoSize
from roam_jax.contracts import Params
from roam_jax.diffusion.samplers import (
    DPM,
    Coefficients,
    Sampler,
    SamplerState,
    advance,
    guidance_scales,
)
from roam_jax.spelling import check_choice

CLEAN_TIMESTEPS = GLOBAL, ZERO = ("global", "zero")
# Frames of more pixels pass through the VAE in tiles of this height and width; half of the
# published size, as diffusers tiles it.
TILE = (240, 360)
# Streams of the seed.
_START, _STEPS = 0, 1


class Pipeline:
    """A transformer and a VAE with their noise schedule; see `Pipeline.load`.

    Args:
        transformer, vae: modules.
        params, vae_params: their parameters, on the device.
        sampler: kind and schedule that the model was published with; its steps are the default.
    """

    def __init__(
        self,
        transformer: Transformer,
        params: Params,
        *,
        vae: VAE,
        vae_params: Params,
        sampler: Sampler,
    ):
        self.transformer, self.vae, self.sampler = transformer, vae, sampler
        self._params, self._vae_params = params, vae_params
        self._step = jax.jit(functools.partial(_denoise, transformer), donate_argnums=1)
        self._compiled: dict[Any, Callable] = {}

    @classmethod
    def load(
        cls, folder: str | os.PathLike[str], *, steps: int = 50, dtype: Any = None
    ) -> Pipeline:
        """Opens a converted folder.

        On a CPU parameters stay memory-mapped in the file's own dtype and are read as they are
        used; on an accelerator they are moved there in the compute dtype.

        Args:
            folder: DST of `python -m convert import`, with `transformer/` and `vae/`.
            steps: default number of steps.
            dtype: compute dtype; None = float32 on CPUs, bfloat16 on accelerators.

        Raises:
            FileNotFoundError, ValueError: as `load_transformer`, `load_vae` and `read_scheduler`.
        """
        transformer, params = load_transformer(folder, dtype=dtype)
        vae, vae_params = load_vae(folder, dtype=dtype)
        schedule, kind = read_scheduler(folder)
        return cls(
            transformer,
            _on_device(params, transformer.dtype),
            vae=vae,
            vae_params=_on_device(vae_params, vae.dtype),
            sampler=Sampler(kind, steps, schedule),
        )

    @property
    def default_size(self) -> VideoSize:
        """Frames, height and width that the transformer was trained at."""
        return VideoSize.of_model(self.transformer.config, self.vae.config)

    @property
    def text_shape(self) -> tuple[int, int]:
        """(S, D) of the text embedding of one prompt."""
        config = self.transformer.config
        return config.max_text_seq_length, config.text_embed_dim

    def sample(
        self,
        text: Float[Array | np.ndarray, "B S D"],
        *,
        size: VideoSize | None = None,
        sampler: Sampler | None = None,
        guidance: float = 6.0,
        dynamic_guidance: bool = False,
        empty_text: Float[Array | np.ndarray, "_ _ _"] | None = None,
        seed: int = 0,
        noise: Float[Array | np.ndarray, "_ _ _ _ _"] | None = None,
        step_noise: Float[Array | np.ndarray, "_ _ _ _ _ _"] | None = None,
        first_frames: UInt8[np.ndarray, "_ T H W 3"] | None = None,
        clean_timestep: str = GLOBAL,
        progress: Callable[[int], None] | None = None,
    ) -> Float[Array, "B F C h w"]:
        """Latents of new videos.

        Args:
            text: embeddings of the prompts.
            size: frames, height and width; None = `default_size`.
            sampler: kind and steps; None = the model's.
            guidance: scale; up to 1 there is no second pass, as in diffusers.
            dynamic_guidance: see `guidance_scales`.
            empty_text: embeddings of the negative prompt (B, S, D), with guidance.
            seed: of all noise that is not given.
            noise: standard normal (B, F, C, h, w), where sampling starts.
            step_noise: standard normal of each step and the predicted latent frames f, (steps, B,
                f, C, h, w), for "dpm".
            first_frames: 4n + 1 frames (B, T, H, W, 3) of the video's size, which it continues.
            clean_timestep: what modulates latents of given frames: global, the step's timestep, as
                `loss.clean_timestep` has it by default; zero, a timestep of their own, 0.
            progress: called with the number of finished steps: 0 when the step is compiled, then
                after each.

        Returns:
            Scaled latents, float32; those of given frames first and unchanged.

        Raises:
            ValueError: shapes that do not fit each other or the model, no `empty_text` with
                guidance, or given frames that leave nothing to predict.
        """
        check_choice("clean_timestep", clean_timestep, CLEAN_TIMESTEPS)
        sampler, size = sampler or self.sampler, size or self.default_size
        shape = (len(text), *size.latent_shape(self.transformer.config, self.vae.config))
        keys = [jax.random.fold_in(jax.random.key(seed), stream) for stream in (_START, _STEPS)]
        if noise is None:
            noise = jax.random.normal(keys[0], shape)
        _check_shape("noise", noise, shape)
        clean = self._clean_latents(first_frames, size, shape)
        known = clean.shape[1]
        text = self._text(text, empty_text, guidance=guidance)
        frames = np.arange(shape[1]) if clean_timestep == ZERO and known else None
        scales = guidance_scales(sampler, guidance, dynamic=dynamic_guidance)
        # A copy: the step takes the state's memory for its result.
        state = sampler.start(jnp.array(noise[:, known:], jnp.float32))
        if step_noise is not None:
            _check_shape("step_noise", step_noise, (sampler.steps, *state.x.shape))
        for index in range(sampler.steps):
            drawn = None
            if sampler.kind == DPM:
                drawn = _draw(keys[1], index, state.x) if step_noise is None else step_noise[index]
                drawn = jnp.asarray(drawn, jnp.float32)
            row = Coefficients(*(column[index] for column in sampler.coefficients))
            timesteps = np.full(len(text), sampler.timesteps[index], np.int32)
            if frames is not None:
                timesteps = timesteps[:, None] * (frames >= known)
            arguments = (state, clean, text, timesteps, row, scales[index], drawn)
            step = self._compile(arguments)
            if progress is not None and index == 0:
                progress(0)
            state = step(self._params, *arguments)
            if progress is not None:
                jax.block_until_ready(state)
                progress(index + 1)
        return jnp.concatenate([clean, state.x], axis=1)

    def encode(self, frames: UInt8[np.ndarray, "B T H W 3"]) -> Float[Array, "B F C h w"]:
        """Scaled posterior means of videos, large frames in tiles."""
        video = np.moveaxis(frames.astype(np.float32) / 127.5 - 1, -1, 1)
        if _is_large(video.shape[-2:], TILE):
            mean, _ = encode_tiled(self.vae, self._vae_params, video, tile=TILE)
        else:
            mean, _ = jnp.split(encode_whole(self.vae, self._vae_params, video), 2, axis=1)
        return jnp.moveaxis(jnp.asarray(mean), 2, 1) * self.vae.config.scaling_factor

    def decode(
        self, latents: Float[Array | np.ndarray, "B F C h w"], *, tile: tuple[int, int] = TILE
    ) -> Float32[np.ndarray, "B T H W 3"]:
        """Videos of scaled latents, RGB in [0, 1].

        Args:
            latents: from `sample`.
            tile: height and width in pixels. Frames with more pixels are decoded in such tiles, as
                diffusers does after `enable_tiling`; memory grows with the tile.

        Raises:
            ValueError: as `decode_tiled`.
        """
        unscaled = jnp.moveaxis(jnp.asarray(latents) / self.vae.config.scaling_factor, 2, 1)
        ratio = self.vae.config.spatial_compression_ratio
        if _is_large([ratio * side for side in unscaled.shape[-2:]], tile):
            video = decode_tiled(self.vae, self._vae_params, unscaled, tile=tile)
        else:
            clips = [decode_whole(self.vae, self._vae_params, clip[None]) for clip in unscaled]
            video = np.concatenate(clips)
        return np.clip(np.moveaxis(video, 1, -1) / 2 + np.float32(0.5), 0, 1)

    def _compile(self, arguments: tuple) -> Callable:
        """The denoising step for arguments of these shapes."""
        leaves, structure = jax.tree.flatten(arguments)
        key = structure, tuple(np.shape(leaf) for leaf in leaves)
        if key not in self._compiled:
            rows, frames, *_, height, width = arguments[0].x.shape
            logging.info(
                "compiling one denoising step: %d x %d latent frames of %dx%d, %d passes",
                rows,
                frames + arguments[1].shape[1],
                height,
                width,
                arguments[2].shape[0] // rows,
            )
            began = time.monotonic()
            self._compiled[key] = self._step.lower(self._params, *arguments).compile()
            logging.info("compiled in %.1f s", time.monotonic() - began)
        return self._compiled[key]

    def _text(self, text, empty_text, *, guidance: float) -> Array:
        """What the step reads: with guidance the empty text first, as in diffusers."""
        _check_shape("text", text, (len(text), *self.text_shape))
        text = jnp.asarray(text, jnp.float32)
        if guidance <= 1:
            return text
        if empty_text is None:
            raise ValueError(
                f"guidance = {guidance} without empty_text: expected embeddings of the negative "
                "prompt, or a guidance of 1"
            )
        _check_shape("empty_text", empty_text, text.shape)
        return jnp.concatenate([jnp.asarray(empty_text, jnp.float32), text])

    def _clean_latents(
        self, frames: np.ndarray | None, size: VideoSize, shape: tuple[int, ...]
    ) -> Float[Array, "B _ C h w"]:
        """Latents of given frames, encoded without any later one; none are (B, 0, C, h, w)."""
        if frames is None:
            return jnp.zeros((shape[0], 0, *shape[2:]))
        size.check_first_frames(frames.shape[1:4], self.vae.config)
        if len(frames) != shape[0]:
            raise ValueError(f"first_frames of {len(frames)} videos, expected {shape[0]}")
        return self.encode(frames)


def to_pixels(video: Float32[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape"]:
    """[0, 1] to 0..255, rounded as diffusers does for its pictures."""
    return np.round(video * 255).astype(np.uint8)


def _denoise(
    transformer: Transformer,
    params: Params,
    state: SamplerState,
    clean: Array,
    text: Array,
    timesteps: Array,
    row: Coefficients,
    scale: Array,
    noise: Array | None,
) -> SamplerState:
    """One step of the predicted latent frames; twice as many texts as videos are guidance."""
    latents = jnp.concatenate([clean, state.x], axis=1)
    passes = text.shape[0] // latents.shape[0]
    velocity = transformer.apply(
        {"params": params}, jnp.concatenate([latents] * passes), text, timesteps
    )[:, clean.shape[1] :]
    if passes == 2:
        without, with_text = jnp.split(velocity, 2)
        velocity = without + scale * (with_text - without)
    return advance(state, velocity, row, noise)


@jax.jit
def _draw(key: Array, index: Array, like: Array) -> Array:
    return jax.random.normal(jax.random.fold_in(key, index), like.shape)


def _on_device(params: Params, dtype: Any) -> Params:
    """On a CPU the device's arrays are the file's own; `jnp.asarray` would copy them."""
    if jax.default_backend() == "cpu":
        return jax.device_put(params)
    return jax.tree.map(lambda leaf: jax.device_put(np.asarray(leaf).astype(dtype)), params)


def _is_large(size: Any, tile: tuple[int, int]) -> bool:
    return size[0] * size[1] > tile[0] * tile[1]


def _check_shape(name: str, array: Any, expected: tuple[int, ...]) -> None:
    if np.shape(array) != tuple(expected):
        raise ValueError(f"{name} of shape {np.shape(array)}: expected {tuple(expected)}")
