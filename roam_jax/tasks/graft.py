"""The main task: video and actions from a looped, grafted CogVideoX.

Video is trained as CogVideoX is: v-prediction on noised latents, plain MSE. Frames before
`t_current` enter clean and carry no loss. Actions are regressed; a stated share of the rows is
drawn at t = 999, where the future is pure noise, because that is how the policy is deployed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import ml_collections
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from roam_jax.cogvideox.config import TransformerConfig
from roam_jax.cogvideox.graft import GraftConfig, GraftedTransformer, trainable_patterns
from roam_jax.cogvideox.graft_canvas import graft_layout, graft_topology
from roam_jax.contracts import ACTION_DIM, ArraySpec, Batch, Params, Task, TimeSpec
from roam_jax.diffusion.schedule import NoiseSchedule
from roam_jax.tasks.backbone import Backbone
from roam_jax.tasks.rows import share_of_rows
from roam_jax.train.sharding import shard_largest

# Stacked over depth, gates, biases and norms are matrices, so they are named.
NO_DECAY = (r"^blocks/loop/", r"/(bias|scale)$")
SHARDING_RULES = (
    (r"^(graft|vae)/", PartitionSpec()),
    (r"^blocks/loop/", PartitionSpec()),
    (r"/kernel$", shard_largest),
    (r"/(bias|scale)$", PartitionSpec()),
)


@dataclasses.dataclass(frozen=True)
class GraftModel:
    """The grafted model with everything that its loss and its evaluation share.

    Args:
        module: the grafted transformer.
        backbone: the pretrained weights and the VAE.
        time: alignment of the window.
        schedule: the noise schedule.
        deploy_fraction: share of training rows at t = 999.
        visual_weight, action_weight: loss weights of the two predicted regions.
    """

    module: GraftedTransformer
    backbone: Backbone
    time: TimeSpec
    schedule: NoiseSchedule
    deploy_fraction: float
    visual_weight: float = 1.0
    action_weight: float = 1.0

    def init(self, rng: jax.Array, batch_spec: Mapping[str, ArraySpec]) -> Params:
        """Fresh parameters of the whole tree: transformer, loop, graft and VAE."""
        text = jnp.zeros((1, *batch_spec["text"].shape[1:]))
        past = jnp.zeros((1, self.time.past_actions, ACTION_DIM))
        latents = jnp.zeros((1, self.time.latents, *self.backbone.latent_shape))
        rng, vae_rng = jax.random.split(rng)
        variables = self.module.init(rng, latents, text, jnp.zeros(1, jnp.int32), past, rounds=1)
        return {**variables["params"], "vae": self.backbone.init_vae(vae_rng)}

    def predict(
        self,
        params: Params,
        batch: Batch,
        *,
        timesteps: Array,
        noise: Float[Array, "B F C H W"],
        rounds: int,
        extrapolate: str | None = None,
    ) -> tuple[dict[str, Array], dict]:
        """Model outputs on a batch whose future is noised to `timesteps`.

        Returns:
            {"velocity", "actions", "target" (B, F, C, H, W), "clean", "noisy"} and the round
            measures.
        """
        observed, clean = self.backbone.latents(params["vae"], batch, self.time)
        noisy = self.schedule.add_noise(clean, noise, timesteps)
        noisy = jnp.concatenate([observed, noisy[:, self.time.t_current :]], axis=1)
        transformer = {name: value for name, value in params.items() if name != "vae"}
        outputs, measures = self.module.apply(
            {"params": transformer},
            noisy.astype(self.module.dtype),
            jnp.asarray(batch["text"], self.module.dtype),
            timesteps,
            jnp.asarray(batch["past_actions"]),
            rounds=rounds,
            extrapolate=extrapolate,
        )
        outputs = {name: value.astype(jnp.float32) for name, value in outputs.items()}
        target = self.schedule.velocity(clean, noise, timesteps)
        return {**outputs, "target": target, "clean": clean, "noisy": noisy}, measures

    def diffusion_error(self, outputs: dict[str, Array]) -> Float[Array, " B"]:
        """Mean squared error of the velocity over predicted frames, by row."""
        future = slice(self.time.t_current, None)
        error = jnp.square(outputs["velocity"][:, future] - outputs["target"][:, future])
        return error.mean(axis=(1, 2, 3, 4))

    def action_error(self, outputs: dict[str, Array], batch: Batch) -> Float[Array, " B"]:
        """Mean squared error of the predicted actions in normalised units, by row.

        The `pooled` decoder predicts the first future action alone.
        """
        actions = outputs["actions"]
        target = jnp.asarray(batch["action_chunk"])[:, : actions.shape[1]]
        return jnp.square(actions - target).mean(axis=(1, 2))

    def loss(self, params: Params, batch: Batch, rng: jax.Array, rounds: int):
        """Weighted sum of both errors, and both of them apart; see `contracts.Task`."""
        size = batch["text"].shape[0]
        time_rng, noise_rng, deploy_rng = jax.random.split(rng, 3)
        timesteps = jax.random.randint(time_rng, (size,), 0, self.schedule.steps)
        deployed = share_of_rows(deploy_rng, size, self.deploy_fraction)
        timesteps = jnp.where(deployed, self.schedule.steps - 1, timesteps)
        shape = (size, self.time.latents, *self.backbone.latent_shape)
        noise = jax.random.normal(noise_rng, shape)
        outputs, _ = self.predict(params, batch, timesteps=timesteps, noise=noise, rounds=rounds)
        diffusion = self.diffusion_error(outputs).mean()
        action = self.action_error(outputs, batch).mean()
        total = self.visual_weight * diffusion + self.action_weight * action
        return total, {"loss/diffusion": diffusion, "loss/action": action}


def graft_model(
    config: ml_collections.ConfigDict, *, backbone: Backbone, time: TimeSpec
) -> GraftModel:
    """Builds the grafted model that a config describes, without allocating parameters."""
    sizes: TransformerConfig = backbone.transformer_config
    rows, columns = (side // sizes.patch_size for side in backbone.latent_shape[1:])
    reads_new = float(config.topology.backbone_reads_new)
    layout = graft_layout(
        time=time,
        rows=rows,
        columns=columns,
        width=sizes.width,
        text_length=sizes.max_text_seq_length,
        visual_weight=config.canvas.visual_weight,
        action_weight=config.canvas.action_weight,
        action_cells=config.decoder.kind == "tokens" or reads_new > 0,
    )
    module = GraftedTransformer(
        config=sizes,
        graft_config=GraftConfig(
            rounds=config.loop.rounds,
            gate=config.loop.gate,
            gate_scope=config.loop.gate_scope,
            decoder=config.decoder.kind,
        ),
        layout=layout,
        topology=graft_topology(layout, backbone_reads_new=reads_new),
        dtype=backbone.compute_dtype,
    )
    return GraftModel(
        module=module,
        backbone=backbone,
        time=time,
        schedule=NoiseSchedule(),
        deploy_fraction=config.loss.deploy_fraction,
        visual_weight=config.canvas.visual_weight,
        action_weight=config.canvas.action_weight,
    )


def graft_task(model: GraftModel, *, freeze: str, batch_spec: Mapping[str, ArraySpec]) -> Task:
    """The trainer's view of the model.

    Args:
        model: from `graft_model`.
        freeze: freeze policy.
        batch_spec: of a global batch.

    Raises:
        ValueError: no such policy, or the data's text does not fit the backbone.
    """
    sizes = model.backbone.transformer_config
    expected = sizes.max_text_seq_length, sizes.text_embed_dim
    if batch_spec["text"].shape[1:] != expected:
        raise ValueError(
            f"data.text gives embeddings of shape {batch_spec['text'].shape[1:]}, the backbone "
            f"expects {expected}"
        )
    return Task(
        init=lambda rng: model.init(rng, batch_spec),
        loss=model.loss,
        trainable=trainable_patterns(freeze),
        batch_spec=batch_spec,
        pretrained=model.backbone.pretrained,
        no_decay=NO_DECAY,
        frozen_dtype=model.backbone.frozen_dtype,
    )
