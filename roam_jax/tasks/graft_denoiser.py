"""A grafted model on windows: what enters it, and what it makes of noise.

Frames before `t_current` enter clean. Further cameras are treated as the first, with noise of their
own; a goal frame, the one input from the future, enters clean.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from roam_jax.cogvideox.graft import GraftedTransformer
from roam_jax.cogvideox.graft_canvas import FUTURE, GOAL, camera_regions, view_regions
from roam_jax.cogvideox.graft_cells import DATA_FIELDS
from roam_jax.contracts import ArraySpec, Batch, Params, TimeSpec
from roam_jax.diffusion.schedule import NoiseSchedule
from roam_jax.spelling import check_choice
from roam_jax.tasks.backbone import FIRST_CAMERA, Backbone
from roam_jax.tasks.streams import NoisedActions, NoisedVideos

CLEAN_TIMESTEPS = ("global", "zero")


@dataclasses.dataclass(frozen=True, kw_only=True)
class GraftDenoiser:
    """A grafted model with its backbone's weights and VAE.

    Args:
        module: the grafted transformer.
        backbone: the pretrained weights and the VAE.
        time: alignment of the window.
        schedule: the noise schedule.
        clean_timestep: what modulates the observed frames: global, the timestep of the row; zero,
            a timestep of their own, 0.

    Raises:
        ValueError: no such `clean_timestep`.
    """

    module: GraftedTransformer
    backbone: Backbone
    time: TimeSpec
    schedule: NoiseSchedule
    clean_timestep: str = "global"

    def __post_init__(self):
        check_choice("loss.clean_timestep", self.clean_timestep, CLEAN_TIMESTEPS)

    @property
    def diffuses_actions(self) -> bool:
        """Whether actions are denoised, not regressed."""
        return self.module.graft_config.decoder == "tokens_diffused"

    @property
    def latent_fields(self) -> tuple[str, ...]:
        """The latents of a batch that the model reads; of cameras without loss no later frame."""
        cameras, goal = [], []
        if self._cameras:
            cameras = ["observed_camera_latents"]
            if self.predicts_cameras:
                cameras.append("target_camera_latents")
        if GOAL in self.module.layout.regions:
            goal = ["goal_latent"]
        return (*FIRST_CAMERA, *cameras, *goal)

    @property
    def observed_fields(self) -> tuple[str, ...]:
        """Those of `latent_fields` that hold nothing of what is predicted."""
        return tuple(name for name in self.latent_fields if not name.startswith("target"))

    @property
    def predicts_cameras(self) -> bool:
        """Whether cameras beside the first have frames that are predicted."""
        return any(regions[1:] for regions in self._cameras)

    @property
    def camera_noise_shape(self) -> tuple[int, ...]:
        """(V, F - t_current, C, h, w) of one window."""
        future = self.time.latents - self.time.t_current
        return len(self._cameras), future, *self.backbone.latent_shape

    @property
    def _cameras(self) -> list[tuple[str, ...]]:
        """Regions of each camera beside the first."""
        return list(camera_regions(self.module.layout).values())

    def init(self, rng: jax.Array, batch_spec: Mapping[str, ArraySpec]) -> Params:
        """Fresh parameters of the whole tree: transformer, loop, graft and VAE."""
        batch = {
            name: jnp.zeros((1, *spec.shape[1:]), spec.dtype)
            for name, spec in batch_spec.items()
            if name == "text" or name in DATA_FIELDS.values()
        }
        layout, latent = self.module.layout, self.backbone.latent_shape
        views = {
            name: jnp.zeros((1, layout.region_spec(name).shape[0], *latent))
            for regions in view_regions(layout)
            for name in regions
        }
        zeros = jnp.zeros(1, jnp.int32)
        chunk = jnp.zeros((1, self.time.chunk, self.module.graft_config.action_dim))
        rng, vae_rng = jax.random.split(rng)
        variables = self.module.init(
            rng,
            jnp.zeros((1, self.time.latents, *latent)),
            batch["text"],
            zeros,
            **self._cells(
                batch, views, NoisedActions(chunk, zeros) if self.diffuses_actions else None
            ),
            rounds=1,
        )
        return {**variables["params"], "vae": self.backbone.init_vae(vae_rng)}

    def _cells(
        self, batch: Batch, views: Mapping[str, Array], actions: NoisedActions | None
    ) -> dict[str, Any]:
        """What the new regions hold, as arguments of the module."""
        regions = self.module.layout.regions
        data = {
            region: jnp.asarray(batch[field])
            for region, field in DATA_FIELDS.items()
            if region in regions
        }
        data |= views
        if actions is None:
            return {"data": data}
        return {"data": {**data, FUTURE: actions.values}, "action_timesteps": actions.timesteps}

    def _views(
        self, latents: Batch, noised: Float[Array, "B V f C h w"] | None
    ) -> dict[str, Float[Array, "B _ C h w"]]:
        """View region -> its latents: observed ones clean, those that are predicted noised."""
        views = {}
        for number, regions in enumerate(self._cameras):
            parts = [latents["observed_camera_latents"], noised]
            views |= {name: part[:, number] for name, part in zip(regions, parts, strict=False)}
        if GOAL in self.module.layout.regions:
            views[GOAL] = latents["goal_latent"]
        return {name: view.astype(self.module.dtype) for name, view in views.items()}

    def predict(
        self,
        params: Params,
        batch: Batch,
        *,
        timesteps: Int[Array, " B"],
        noise: Float[Array, "B F C h w"],
        rounds: int,
        camera_noise: Float[Array, "B V f C h w"] | None = None,
        actions: NoisedActions | None = None,
        extrapolate: str | None = None,
        threshold: float | None = None,
        wanted: tuple[str, ...] | None = None,
    ) -> tuple[dict[str, Array], dict]:
        """Model outputs on a batch whose future is noised to `timesteps`.

        Args:
            params: the whole tree.
            batch: windows.
            timesteps: of the future latents of each row.
            noise: standard normal.
            rounds: static number of rounds.
            camera_noise: standard normal, of the predicted frames of further cameras where they are
                predicted.
            actions: with the decoder `tokens_diffused`, the noised future actions.
            extrapolate: "last" allows more rounds than were trained.
            threshold: static; with learned halting, when cells stop for good; None = never.
            wanted: outputs of the module that are wanted, the rest is not computed; None = all.

        Returns:
            {"velocity", "actions", ..., "target" (B, F, C, H, W), "clean", "noisy"} and the round
            measures. With `tokens_diffused` "actions" is the velocity of the actions. Where cameras
            are predicted, "camera_velocity" and "camera_target" (B, V, F - t_current, C, H, W).

        Raises:
            ValueError: cameras are predicted and there is no noise for them.
        """
        latents = self.backbone.latents(params["vae"], batch, self.time, fields=self.latent_fields)
        noised, targets = self.noise_videos(latents, timesteps, noise, camera_noise=camera_noise)
        outputs, measures = self.denoise(
            params,
            {**batch, **latents},
            noised,
            timesteps=timesteps,
            rounds=rounds,
            actions=actions,
            extrapolate=extrapolate,
            threshold=threshold,
            wanted=wanted,
        )
        return {**outputs, **targets, "noisy": noised.latents}, measures

    def noise_videos(
        self,
        latents: Mapping[str, Array],
        timesteps: Int[Array, " B"],
        noise: Float[Array, "B F C h w"],
        *,
        camera_noise: Float[Array, "B V f C h w"] | None = None,
    ) -> tuple[NoisedVideos, dict[str, Array]]:
        """The videos of `latent_fields` noised to `timesteps`, and "clean" with the velocities.

        Raises:
            ValueError: cameras are predicted and there is no noise for them.
        """
        now, clean = self.time.t_current, latents["target_latents"]
        noisy = self.schedule.add_noise(clean, noise, timesteps)
        noisy = jnp.concatenate([latents["observed_latents"], noisy[:, now:]], axis=1)
        targets = {"target": self.schedule.velocity(clean, noise, timesteps), "clean": clean}
        cameras = None
        if self.predicts_cameras:
            self.require_camera_noise(camera_noise)
            future = latents["target_camera_latents"][:, :, now:]
            cameras = self.schedule.add_noise(future, camera_noise, timesteps)
            targets["camera_target"] = self.schedule.velocity(future, camera_noise, timesteps)
        return NoisedVideos(noisy, cameras), targets

    def require_camera_noise(self, camera_noise: Array | None) -> None:
        """Refuses to predict further cameras without noise to start from.

        Raises:
            ValueError: cameras are predicted and there is no noise for them.
        """
        if self.predicts_cameras and camera_noise is None:
            raise ValueError(f"no camera_noise: expected (batch, *{self.camera_noise_shape})")

    def denoise(
        self,
        params: Params,
        batch: Batch,
        noised: NoisedVideos,
        *,
        timesteps: Int[Array, " B"],
        rounds: int,
        actions: NoisedActions | None = None,
        extrapolate: str | None = None,
        exit: Int[Array, ""] | None = None,
        threshold: float | None = None,
        wanted: tuple[str, ...] | None = None,
    ) -> tuple[dict[str, Array], dict]:
        """Outputs of the module on videos that are noised already; nothing recorded is needed.

        Args:
            params, timesteps, rounds, actions, extrapolate, threshold, wanted: as for `predict`.
            batch: windows whose observed videos are encoded (`observed_fields`).
            noised: the videos.
            exit: rounds after which every block is left, 1..rounds; None = `rounds`.

        Returns:
            The outputs in float32 and the round measures.
        """
        transformer = {name: value for name, value in params.items() if name != "vae"}
        outputs, measures = self.module.apply(
            {"params": transformer},
            noised.latents.astype(self.module.dtype),
            jnp.asarray(batch["text"], self.module.dtype),
            self._modulation(timesteps),
            **self._cells(batch, self._views(batch, noised.cameras), actions),
            rounds=rounds,
            extrapolate=extrapolate,
            exit=exit,
            threshold=threshold,
            wanted=wanted,
        )
        return {name: value.astype(jnp.float32) for name, value in outputs.items()}, measures

    def _modulation(self, timesteps: Int[Array, " B"]) -> Int[Array, " B"] | Int[Array, "B F"]:
        """The timesteps that the blocks see: of rows, or of latent frames with clean ones at 0."""
        if self.clean_timestep == "global":
            return timesteps
        predicted = np.arange(self.time.latents) >= self.time.t_current
        return timesteps[:, None] * predicted
