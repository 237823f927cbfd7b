"""Pretraining a small CogVideoX transformer on video: how the package's tiny backbone was made.

Text-to-video with v-prediction, as CogVideoX was trained; in a share of the rows the first frames
enter clean and carry no loss, as they will in the graft.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import ml_collections
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float

from roam_jax.cogvideox.block import BLOCK_RULES
from roam_jax.cogvideox.config import TransformerConfig
from roam_jax.cogvideox.transformer import Transformer
from roam_jax.contracts import ArraySpec, Batch, Params, Task, TimeSpec
from roam_jax.diffusion.schedule import NoiseSchedule
from roam_jax.logical import shard_largest
from roam_jax.microbatch import draw_rows, part_of
from roam_jax.tasks.augment import Augmentation
from roam_jax.tasks.backbone import FIRST_CAMERA, Backbone, refuse_remat, refuse_views
from roam_jax.tasks.rows import share_of_rows

# Pixels that one latent pixel spans in every CogVideoX VAE.
SPATIAL_FACTOR = 8
SHARDING_RULES = (
    (r"^vae/", PartitionSpec()),
    *BLOCK_RULES,
    (r"/kernel$", shard_largest),
    (r"/(bias|scale)$", PartitionSpec()),
)


def scratch_config(
    config: ml_collections.ConfigDict, *, text: tuple[int, int]
) -> TransformerConfig:
    """Sizes of a transformer from scratch, for text embeddings (S, D) and the data's frames."""
    scratch = config.backbone.scratch
    height, width = (side // SPATIAL_FACTOR for side in config.data.image_size)
    return TransformerConfig(
        num_layers=scratch.layers,
        num_attention_heads=scratch.heads,
        attention_head_dim=scratch.head_dim,
        time_embed_dim=scratch.time_embed_dim,
        max_text_seq_length=text[0],
        text_embed_dim=text[1],
        sample_width=width,
        sample_height=height,
        sample_frames=config.data.frames,
        spatial_interpolation_scale=1.0,
    )


@dataclasses.dataclass(frozen=True)
class VideoModel:
    """A CogVideoX transformer under pretraining, and the frozen VAE that makes its latents.

    Args:
        backbone: sizes, and the VAE's weights.
        time: alignment of the window.
        schedule: the noise schedule.
        observed_fraction: share of rows whose frames before `t_current` enter clean.
        augmentation: of the frames, in training alone.
    """

    backbone: Backbone
    time: TimeSpec
    schedule: NoiseSchedule
    observed_fraction: float
    augmentation: Augmentation = Augmentation()

    @property
    def latent_fields(self) -> tuple[str, ...]:
        """The latents of a batch that the model reads."""
        return FIRST_CAMERA

    @property
    def module(self) -> Transformer:
        """The transformer."""
        return Transformer(self.backbone.transformer_config, self.backbone.compute_dtype)

    def init(self, rng: jax.Array) -> Params:
        """Random parameters of transformer and VAE."""
        sizes = self.backbone.transformer_config
        latents = jnp.zeros((1, self.time.latents, *self.backbone.latent_shape))
        text = jnp.zeros((1, sizes.max_text_seq_length, sizes.text_embed_dim))
        rng, vae_rng = jax.random.split(rng)
        params = self.module.init(rng, latents, text, jnp.zeros(1, jnp.int32))["params"]
        return {**params, "vae": self.backbone.init_vae(vae_rng)}

    def errors(
        self,
        params: Params,
        batch: Batch,
        *,
        timesteps: Array,
        noise: Float[Array, "B F C H W"],
        observed: Bool[Array, " B"],
    ) -> tuple[Float[Array, " B"], Float[Array, " B"]]:
        """Mean squared error of the velocity by row, and that of predicting zero.

        Args:
            observed: rows whose frames before `t_current` enter clean and carry no loss.
        """
        latents = self.backbone.latents(params["vae"], batch, self.time)
        seen, clean = latents["observed_latents"], latents["target_latents"]
        noisy = self.schedule.add_noise(clean, noise, timesteps)
        frames = jnp.arange(self.time.latents)
        kept = (observed[:, None] & (frames < self.time.t_current))[:, :, None, None, None]
        seen = jnp.pad(seen, [(0, 0), (0, self.time.latents - seen.shape[1])] + [(0, 0)] * 3)
        transformer = {name: value for name, value in params.items() if name != "vae"}
        velocity = self.module.apply(
            {"params": transformer},
            jnp.where(kept, seen, noisy).astype(self.backbone.compute_dtype),
            jnp.asarray(batch["text"], self.backbone.compute_dtype),
            timesteps,
        )
        target = self.schedule.velocity(clean, noise, timesteps)
        return _mean_square(velocity - target, ~kept), _mean_square(target, ~kept)

    def loss(self, params: Params, batch: Batch, rng: jax.Array, rounds: int):
        """Mean velocity error; `rounds` has no meaning here. See `contracts.Task`."""
        time_rng, noise_rng, observed_rng, augment_rng = jax.random.split(rng, 4)
        drawn = functools.partial(draw_rows, part_of(batch), batch["text"].shape[0])
        shape = (self.time.latents, *self.backbone.latent_shape)
        error, _ = self.errors(
            params,
            self.augmentation(batch, augment_rng),
            timesteps=drawn(lambda n: jax.random.randint(time_rng, (n,), 0, self.schedule.steps)),
            noise=drawn(lambda n: jax.random.normal(noise_rng, (n, *shape))),
            observed=drawn(lambda n: share_of_rows(observed_rng, n, self.observed_fraction)),
        )
        return error.mean(), {"loss/diffusion": error.mean()}


def _mean_square(x: Array, where: Array) -> Array:
    return jnp.mean(jnp.square(x), axis=(1, 2, 3, 4), where=jnp.broadcast_to(where, x.shape))


def video_model(
    config: ml_collections.ConfigDict, *, backbone: Backbone, time: TimeSpec
) -> VideoModel:
    """Builds the model that a config describes, without allocating parameters.

    Raises:
        ValueError: a value of the config is out of range, or it asks for further cameras or a goal.
    """
    refuse_views(config)
    refuse_remat(config)
    return VideoModel(
        backbone=backbone,
        time=time,
        schedule=NoiseSchedule(),
        observed_fraction=config.loss.observed_fraction,
        augmentation=Augmentation.from_config(config),
    )


def video_task(model: VideoModel, *, batch_spec: Mapping[str, ArraySpec]) -> Task:
    """The trainer's view of the model: the whole transformer trains, the VAE is frozen."""
    return Task(
        init=model.init,
        loss=model.loss,
        trainable=(r"^(?!vae/)",),
        batch_spec=batch_spec,
        pretrained=model.backbone.pretrained,
        no_decay=(r"/(bias|scale)$",),
        frozen_dtype=model.backbone.frozen_dtype,
    )
