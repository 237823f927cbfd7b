"""The main task: video and actions from a looped, grafted CogVideoX.

Video is trained as CogVideoX is: v-prediction on noised latents, plain MSE. Frames before
`t_current` enter clean and carry no loss. Actions are regressed; a stated share of the rows is
drawn at t = 999, where the future is pure noise, because that is how the policy is deployed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from roam_jax.cogvideox.graft import GraftedTransformer
from roam_jax.cogvideox.graft_canvas import FUTURE
from roam_jax.cogvideox.graft_cells import DATA_FIELDS, PREDICTED
from roam_jax.contracts import ACTION_DIM, ArraySpec, Batch, Params, TimeSpec
from roam_jax.diffusion.sampler import ddim_step, next_timesteps, trailing_timesteps
from roam_jax.diffusion.schedule import NoiseSchedule
from roam_jax.spelling import check_choice
from roam_jax.tasks.backbone import Backbone
from roam_jax.tasks.rows import share_of_rows

# Output of the model -> field of the batch that it is compared with.
TARGETS = {
    "actions": "action_chunk",
    **{output: region for region, (output, _) in PREDICTED.items()},  # named alike in a batch
}
CLEAN_TIMESTEPS = ("global", "zero")


class NoisedActions(NamedTuple):
    """Actions on their way from noise to a chunk, and how far they are.

    `values` is (B, P, 7), normalised units; `timesteps` (B,) integers 0..999.
    """

    values: Array
    timesteps: Array


@dataclasses.dataclass(frozen=True)
class GraftModel:
    """The grafted model with everything that its loss and its evaluation share.

    Args:
        module: the grafted transformer.
        backbone: the pretrained weights and the VAE.
        time: alignment of the window.
        schedule: the noise schedule.
        deploy_fraction: share of training rows at t = 999.
        weights: loss weights of "diffusion", "action" and what else is predicted.
        clean_timestep: what modulates the observed frames: global, the timestep of the row; zero,
            a timestep of their own, 0.

    Raises:
        ValueError: no such `clean_timestep`, or a fraction out of range.
    """

    module: GraftedTransformer
    backbone: Backbone
    time: TimeSpec
    schedule: NoiseSchedule
    deploy_fraction: float
    weights: Mapping[str, float]
    clean_timestep: str = "global"

    def __post_init__(self):
        check_choice("loss.clean_timestep", self.clean_timestep, CLEAN_TIMESTEPS)
        if not 0 <= self.deploy_fraction <= 1:
            raise ValueError(f"loss.deploy_fraction = {self.deploy_fraction}: expected 0 to 1")

    @property
    def diffuses_actions(self) -> bool:
        """Whether actions are denoised, not regressed."""
        return self.module.graft_config.decoder == "tokens_diffused"

    def init(self, rng: jax.Array, batch_spec: Mapping[str, ArraySpec]) -> Params:
        """Fresh parameters of the whole tree: transformer, loop, graft and VAE."""
        batch = {
            name: jnp.zeros((1, *spec.shape[1:]), spec.dtype)
            for name, spec in batch_spec.items()
            if name == "text" or name in DATA_FIELDS.values()
        }
        zeros = jnp.zeros(1, jnp.int32)
        chunk = jnp.zeros((1, self.time.chunk, ACTION_DIM))
        rng, vae_rng = jax.random.split(rng)
        variables = self.module.init(
            rng,
            jnp.zeros((1, self.time.latents, *self.backbone.latent_shape)),
            batch["text"],
            zeros,
            **self._cells(batch, NoisedActions(chunk, zeros) if self.diffuses_actions else None),
            rounds=1,
        )
        return {**variables["params"], "vae": self.backbone.init_vae(vae_rng)}

    def _cells(self, batch: Batch, actions: NoisedActions | None) -> dict[str, Any]:
        """What the new regions hold, as arguments of the module."""
        regions = self.module.layout.regions
        data = {
            region: jnp.asarray(batch[field])
            for region, field in DATA_FIELDS.items()
            if region in regions
        }
        if actions is None:
            return {"data": data}
        return {"data": {**data, FUTURE: actions.values}, "action_timesteps": actions.timesteps}

    def predict(
        self,
        params: Params,
        batch: Batch,
        *,
        timesteps: Int[Array, " B"],
        noise: Float[Array, "B F C h w"],
        rounds: int,
        actions: NoisedActions | None = None,
        extrapolate: str | None = None,
    ) -> tuple[dict[str, Array], dict]:
        """Model outputs on a batch whose future is noised to `timesteps`.

        Args:
            params: the whole tree.
            batch: windows.
            timesteps: of the future latents of each row.
            noise: standard normal.
            rounds: static number of rounds.
            actions: with the decoder `tokens_diffused`, the noised future actions.
            extrapolate: "last" allows more rounds than were trained.

        Returns:
            {"velocity", "actions", ..., "target" (B, F, C, H, W), "clean", "noisy"} and the round
            measures. With `tokens_diffused` "actions" is the velocity of the actions.
        """
        observed, clean = self.backbone.latents(params["vae"], batch, self.time)
        noisy = self.schedule.add_noise(clean, noise, timesteps)
        noisy = jnp.concatenate([observed, noisy[:, self.time.t_current :]], axis=1)
        transformer = {name: value for name, value in params.items() if name != "vae"}
        outputs, measures = self.module.apply(
            {"params": transformer},
            noisy.astype(self.module.dtype),
            jnp.asarray(batch["text"], self.module.dtype),
            self._modulation(timesteps),
            **self._cells(batch, actions),
            rounds=rounds,
            extrapolate=extrapolate,
        )
        outputs = {name: value.astype(jnp.float32) for name, value in outputs.items()}
        target = self.schedule.velocity(clean, noise, timesteps)
        return {**outputs, "target": target, "clean": clean, "noisy": noisy}, measures

    def _modulation(self, timesteps: Int[Array, " B"]) -> Int[Array, " B"] | Int[Array, "B F"]:
        """The timesteps that the blocks see: of rows, or of latent frames with clean ones at 0."""
        if self.clean_timestep == "global":
            return timesteps
        predicted = np.arange(self.time.latents) >= self.time.t_current
        return timesteps[:, None] * predicted

    def sample(
        self,
        params: Params,
        batch: Batch,
        *,
        timesteps: Int[Array, " B"],
        noise: Float[Array, "B F C h w"],
        action_noise: Float[Array, "B P A"],
        steps: int,
        rounds: int,
        extrapolate: str | None = None,
    ) -> tuple[dict[str, Array], dict]:
        """Actions denoised in a few steps while the future video stays at its timestep.

        Args:
            params, batch, timesteps, noise, rounds, extrapolate: as for `predict`; a policy is
                deployed at t = 999.
            action_noise: standard normal, where the actions start.
            steps: static number of steps, each a pass through the whole model.

        Returns:
            As `predict`, with "actions" (B, P, 7) in normalised units.

        Raises:
            ValueError: `steps` is out of range.
        """
        observed, clean = self.backbone.latents(params["vae"], batch, self.time)
        encoded = {**batch, "observed_latents": observed, "target_latents": clean}
        encoded.pop("frames", None)

        def step(actions, times):
            now, following = times
            outputs, measures = self.predict(
                params,
                encoded,
                timesteps=timesteps,
                noise=noise,
                rounds=rounds,
                actions=NoisedActions(actions, jnp.full(timesteps.shape, now)),
                extrapolate=extrapolate,
            )
            velocity = outputs.pop("actions")
            actions = ddim_step(self.schedule, actions, velocity, now, following)
            return actions, outputs, measures

        now = trailing_timesteps(self.schedule, steps)
        times = np.stack([now, next_timesteps(now)], axis=1)
        actions, _ = jax.lax.scan(lambda a, t: (step(a, t)[0], None), action_noise, times[:-1])
        actions, outputs, measures = step(actions, jnp.asarray(times[-1]))
        return {**outputs, "actions": actions}, measures

    def diffusion_error(self, outputs: dict[str, Array]) -> Float[Array, " B"]:
        """Mean squared error of the velocity over predicted frames, by row."""
        future = slice(self.time.t_current, None)
        error = jnp.square(outputs["velocity"][:, future] - outputs["target"][:, future])
        return error.mean(axis=(1, 2, 3, 4))

    def stream_error(
        self, outputs: dict[str, Array], batch: Batch, stream: str
    ) -> Float[Array, " B"]:
        """Mean squared error of a predicted stream in normalised units, by row.

        The `pooled` decoder predicts the first future action alone.

        Args:
            outputs: from `predict`.
            batch: windows.
            stream: a key of `TARGETS`.
        """
        predicted = outputs[stream]
        target = jnp.asarray(batch[TARGETS[stream]])[:, : predicted.shape[1]]
        return jnp.square(predicted - target).mean(axis=(1, 2))

    def loss(self, params: Params, batch: Batch, rng: jax.Array, rounds: int):
        """Weighted sum of all errors, and each of them apart; see `contracts.Task`."""
        size = batch["text"].shape[0]
        time_rng, noise_rng, deploy_rng, action_rng = jax.random.split(rng, 4)
        timesteps = jax.random.randint(time_rng, (size,), 0, self.schedule.steps)
        deployed = share_of_rows(deploy_rng, size, self.deploy_fraction)
        timesteps = jnp.where(deployed, self.schedule.steps - 1, timesteps)
        shape = (size, self.time.latents, *self.backbone.latent_shape)
        noise = jax.random.normal(noise_rng, shape)
        actions, targets = None, batch
        if self.diffuses_actions:
            actions, velocity = self._noise_actions(batch, action_rng)
            targets = {**batch, TARGETS["actions"]: velocity}
        outputs, _ = self.predict(
            params, batch, timesteps=timesteps, noise=noise, rounds=rounds, actions=actions
        )
        errors = {"diffusion": self.diffusion_error(outputs).mean()}
        for stream in TARGETS:
            if stream in outputs:
                name = "action" if stream == "actions" else stream
                errors[name] = self.stream_error(outputs, targets, stream).mean()
        total = sum(self.weights[name] * error for name, error in errors.items())
        return total, {f"loss/{name}": error for name, error in errors.items()}

    def _noise_actions(self, batch: Batch, rng: jax.Array) -> tuple[NoisedActions, Array]:
        """The batch's chunk at uniformly drawn noise levels, and its velocity."""
        chunk = jnp.asarray(batch["action_chunk"])
        time_rng, noise_rng = jax.random.split(rng)
        timesteps = jax.random.randint(time_rng, chunk.shape[:1], 0, self.schedule.steps)
        noise = jax.random.normal(noise_rng, chunk.shape)
        noised = self.schedule.add_noise(chunk, noise, timesteps)
        return NoisedActions(noised, timesteps), self.schedule.velocity(chunk, noise, timesteps)
