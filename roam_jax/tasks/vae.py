"""Trains a small CogVideoX VAE on windows of video; config `configs/tiny_vae.py`.

The loss is |error| + error^2 in pixels and a slight pull of the posterior to a unit normal. So that
weights learned on simulated scenes also serve natural images, each clip is cropped or shrunk,
mirrored, recoloured by a random 3x3 matrix and partly overlaid with random textures. Small clips
also make a step affordable on a CPU, and single frames, a ninth of the cost of a clip, teach most
of what there is to learn; clips then teach time.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import ml_collections
from einops import rearrange
from flax import traverse_util
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int, UInt8

from roam_jax.cogvideox.load import load_vae
from roam_jax.cogvideox.vae import VAE
from roam_jax.cogvideox.vae_config import VAEConfig
from roam_jax.contracts import FRAMES_PER_LATENT, ArraySpec, Batch, Params, Task
from roam_jax.microbatch import Part, part_of
from roam_jax.tasks.augment import refuse
from roam_jax.tasks.backbone import (
    refuse_dtype,
    refuse_remat,
    refuse_views,
    to_video,
    weights_folder,
)

# 0.69 M parameters, 1.4 MB in float16. Few channels at full resolution, where all the time goes.
TINY = VAEConfig(
    block_out_channels=(8, 16, 32, 32),
    layers_per_block=1,
    norm_num_groups=4,
    sample_height=64,
    sample_width=64,
    scaling_factor=1.0,
)
SHARDING_RULES = ((r"^(encoder|decoder)/", PartitionSpec()),)
NO_DECAY = (r"/(bias|scale)$",)

# Pixels of a training clip's side, or the frames' own where they are smaller.
CLIP_SIZE = 32
KL_WEIGHT = 1e-4
# Log-variance at the start: the decoder first learns from nearly noiseless latents.
FIRST_LOGVAR = -6.0
# Residual branches start small, and latents modulate norms slightly, around a gain of 1.
BRANCH_SCALE = 0.2
# Share of clips with textures, and the sizes of their grids.
TEXTURED = 0.25
TEXTURE_GRIDS = (2, 4, 8)


@dataclasses.dataclass(frozen=True)
class VAEModel:
    """A VAE under training.

    Args:
        config: sizes.
        single_frames: whether every latent's last frame is a clip of its own.
    """

    config: VAEConfig
    single_frames: bool = False

    @property
    def vae(self) -> VAE:
        """The module."""
        return VAE(self.config)

    def init(self, rng: jax.Array) -> Params:
        """Random parameters, drawn at once: some 200 draws apart take half a minute to compile."""
        size = self.config.spatial_compression_ratio
        video = jax.ShapeDtypeStruct((1, self.config.in_channels, 1, size, size), jnp.float32)
        shapes = traverse_util.flatten_dict(jax.eval_shape(self.vae.init, rng, video)["params"])
        normal = jax.random.normal(rng, (sum(leaf.size for leaf in shapes.values()),))
        params, offset = {}, 0
        for path, leaf in shapes.items():
            noise = normal[offset : offset + leaf.size].reshape(leaf.shape)
            params[path] = _initial(path, noise)
            offset += leaf.size
        return traverse_util.unflatten_dict(params)

    def reconstruct(
        self, params: Params, frames: UInt8[Array, "B T H W 3"]
    ) -> Float[Array, "B T H W 3"]:
        """Decoded posterior means of the frames, RGB in 0..255; T = 4n + 1."""
        video = self.vae.apply({"params": params}, to_video(frames))
        return jnp.clip(rearrange(video, "B C T H W -> B T H W C") * 127.5 + 127.5, 0, 255)

    def encode(
        self, params: Params, frames: UInt8[Array, "B T H W 3"]
    ) -> Float[Array, "B C F h w"]:
        """Posterior means, unscaled."""
        return self.vae.apply({"params": params}, to_video(frames), method="encode")[0]

    def loss(self, params: Params, batch: Batch, rng: jax.Array, rounds: int):
        """See `contracts.Task`; a VAE has no rounds."""
        del rounds
        clip_rng, noise_rng = jax.random.split(rng)
        frames = batch["frames"]
        if self.single_frames:
            frames = rearrange(frames[:, ::FRAMES_PER_LATENT], "B T H W C -> (B T) 1 H W C")
        draws = ClipDraws.of(len(frames), part_of(batch))
        video = augment(to_video(frames), clip_rng, draws=draws)
        variables = {"params": params}
        mean, logvar = self.vae.apply(variables, video, method="encode")
        noise = draws(lambda n: jax.random.normal(noise_rng, (n, *mean.shape[1:])))
        latents = mean + jnp.exp(0.5 * logvar) * noise
        error = self.vae.apply(variables, latents, method="decode") - video
        absolute, squared = jnp.abs(error).mean(), jnp.square(error).mean()
        divergence = 0.5 * (jnp.square(mean) + jnp.exp(logvar) - 1 - logvar).mean()
        metrics = {
            "loss/absolute": absolute,
            "loss/squared": squared,
            "loss/divergence": divergence,
            "latent_std": mean.std(),
        }
        return absolute + squared + KL_WEIGHT * divergence, metrics


def vae_task(
    config: ml_collections.ConfigDict, *, batch_spec: Mapping[str, ArraySpec]
) -> tuple[VAEModel, Task]:
    """The small VAE and the trainer's view of it.

    Args:
        config: the whole config; read are `data.frames`, `data.clip_frames` and `backbone.path`,
            a converted folder whose VAE is trained further ("" = from scratch).
        batch_spec: of a global batch; only `frames` is used.

    Raises:
        ValueError: clips of another length than 1 or the window; further cameras or a goal;
            `data.augment`, because the task has an augmentation of its own.
    """
    refuse_views(config)
    refuse(config)
    refuse_remat(config)
    refuse_dtype(config)
    frames, clip = config.data.frames, config.data.clip_frames
    if clip not in (1, frames):
        raise ValueError(f"data.clip_frames = {clip}: expected 1 or data.frames = {frames}")
    sizes, start = TINY, None
    if config.backbone.path:
        start = weights_folder(config.backbone.path)
        sizes = load_vae(start)[0].config
    model = VAEModel(sizes, single_frames=clip == 1)
    task = Task(
        init=model.init,
        loss=model.loss,
        trainable=(".*",),
        batch_spec=batch_spec,
        pretrained=(lambda: load_vae(start)[1]) if start else None,
        no_decay=NO_DECAY,
    )
    return model, task


@dataclasses.dataclass(frozen=True)
class ClipDraws:
    """Random numbers for the clips of a batch: of its even rows, then of its odd ones.

    Args:
        count: clips that numbers are drawn for, of the whole batch.
        places: of these clips among them; None = they are all.
    """

    count: int
    places: Int[Array, " B"] | None = None

    @classmethod
    def of(cls, rows: int, part: Part | None) -> ClipDraws:
        """For the rows of a batch, or of a part of one.

        Raises:
            ValueError: a part begins with an odd row of the batch.
        """
        if part is None:
            return cls(rows)
        if rows // part.shards % 2:
            raise ValueError(
                f"train.accumulate = {part.count}: parts of {rows // part.shards} clips a device, "
                "but train.task = vae crops even rows and makes odd ones smaller; expected parts "
                "of an even number (train.batch_size)"
            )
        count = rows * part.count
        numbers = part.take(jnp.arange(count))
        odd = (count + 1) // 2
        return cls(count, jnp.concatenate([numbers[::2] // 2, odd + numbers[1::2] // 2]))

    def __call__(self, draw: Callable[[int], Array]) -> Array:
        """`draw(count)`, of these clips."""
        return draw(self.count) if self.places is None else draw(self.count)[self.places]

    def even(self, draw: Callable[[int], Array]) -> Array:
        """The same of even rows alone."""
        drawn = draw((self.count + 1) // 2)
        return drawn if self.places is None else drawn[self.places[: (len(self.places) + 1) // 2]]


def augment(
    video: Float[Array, "B 3 T H W"], rng: jax.Array, *, draws: ClipDraws | None = None
) -> Float[Array, "B 3 T h w"]:
    """Smaller clips of other looks: size, mirror, colours, textures; each clip its own.

    Even rows are crops, odd rows whole frames made smaller (and square), so that the statistics of
    both a detail and a scene are learned.

    Args:
        video: in [-1, 1].
        rng: of the step.
        draws: of a part of a batch; None = these rows are a batch.
    """
    draws = draws or ClipDraws(len(video))
    size = min(CLIP_SIZE, *video.shape[-2:])
    shrunk = jax.image.resize(video[1::2], (*video[1::2].shape[:3], size, size), "linear")
    crop_rng, mirror_rng, texture_rng, colour_rng = jax.random.split(rng, 4)
    crops = jax.vmap(lambda row, rng: _crop(row, rng, size))(
        video[::2], draws.even(lambda n: jax.random.split(crop_rng, n))
    )
    clips = jnp.concatenate([crops, shrunk])
    for axis, mirror in ((-1, mirror_rng), (-2, jax.random.fold_in(mirror_rng, 1))):
        flipped = draws(
            lambda n, mirror=mirror: jax.random.bernoulli(mirror, shape=(n, 1, 1, 1, 1))
        )
        clips = jnp.where(flipped, jnp.flip(clips, axis), clips)
    clips = clips + _textures(texture_rng, clips.shape, draws=draws)
    return jnp.clip(_recolour(clips, colour_rng, draws=draws), -1, 1)


def _crop(clip: Float[Array, "3 T H W"], rng: jax.Array, size: int) -> Float[Array, "3 T h w"]:
    height, width = clip.shape[-2:]
    top, left = jax.random.randint(rng, (2,), 0, jnp.array([height - size + 1, width - size + 1]))
    return jax.lax.dynamic_slice(clip, (0, 0, top, left), (*clip.shape[:2], size, size))


def _textures(
    rng: jax.Array, shape: tuple[int, ...], *, draws: ClipDraws
) -> Float[Array, "B 3 1 H W"]:
    """Sums of smooth noise of several scales, still in time; 0 for the rows without."""
    batch, channels, _, height, width = shape
    chosen_rng, *rngs = jax.random.split(rng, 1 + len(TEXTURE_GRIDS))
    total = jnp.zeros((batch, channels, 1, height, width))
    for grid, grid_rng in zip(TEXTURE_GRIDS, rngs, strict=True):
        noise_rng, strength_rng = jax.random.split(grid_rng)
        size = (channels, 1, grid, grid)
        noise = draws(functools.partial(_normal, noise_rng, size))
        strength = draws(
            lambda n, rng=strength_rng: jax.random.exponential(rng, (n, 1, 1, 1, 1)) * 0.12
        )
        total += strength * jax.image.resize(noise, (batch, channels, 1, height, width), "linear")
    chosen = draws(lambda n: jax.random.bernoulli(chosen_rng, TEXTURED, (n, 1, 1, 1, 1)))
    return jnp.where(chosen, total, 0)


def _recolour(
    clips: Float[Array, "B 3 T H W"], rng: jax.Array, *, draws: ClipDraws
) -> Float[Array, "B 3 T H W"]:
    """A random matrix near a permutation of channels, contrast and brightness for each clip."""
    order_rng, matrix_rng, contrast_rng, shift_rng = jax.random.split(rng, 4)
    keys = draws(lambda n: jax.random.split(order_rng, n))
    orders = jax.vmap(lambda r: jax.random.permutation(r, 3))(keys)
    matrix = jnp.eye(3)[orders] + 0.15 * draws(functools.partial(_normal, matrix_rng, (3, 3)))
    contrast = draws(lambda n: jax.random.uniform(contrast_rng, (n, 1, 1), minval=0.6, maxval=1.3))
    shift = 0.2 * draws(functools.partial(_normal, shift_rng, (3, 1, 1, 1)))
    return jnp.einsum("BcC,BCTHW->BcTHW", matrix * contrast, clips) + shift


def _normal(rng: jax.Array, shape: tuple[int, ...], count: int) -> Array:
    """Unit normal numbers of this shape for each of so many clips."""
    return jax.random.normal(rng, (count, *shape))


def _initial(path: tuple[str, ...], noise: jax.Array) -> jax.Array:
    """One parameter at the start, from unit normal noise of its shape."""
    *_, layer, kind = path
    if kind == "scale" or (layer == "conv_y" and kind == "bias"):
        return jnp.ones_like(noise)
    if kind == "bias":
        if path[:2] == ("encoder", "conv_out"):
            latents = noise.size // 2
            return jnp.repeat(jnp.array([0.0, FIRST_LOGVAR]), latents)
        return jnp.zeros_like(noise)
    fan_in = noise.size // noise.shape[-1]
    scale = BRANCH_SCALE if layer in ("conv2", "conv_y", "conv_b") else 1.0
    return noise * (scale / fan_in**0.5)
