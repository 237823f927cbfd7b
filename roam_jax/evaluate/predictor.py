"""A grafted model's predictions on windows, compiled once for each number of rounds.

Windows are encoded once and then predicted for every number of rounds and every timestep. Each
window is predicted as a batch of its own (`vmap`), because the round measures are norms over a
batch: they are then figures of one window, whatever it shares a batch with.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from roam_jax.contracts import Batch, Params
from roam_jax.evaluate.placement import put_rows
from roam_jax.evaluate.windows import PURE_NOISE, window_noise
from roam_jax.tasks.graft import GraftModel

# What the model reads of a window, beside its latents.
INPUTS = ("text", "past_actions", "action_chunk")


class GraftPredictor:
    """Compiled functions of one `GraftModel`.

    Args:
        model: the model.
        extrapolate: "last" allows more rounds than were trained.
    """

    def __init__(self, model: GraftModel, *, extrapolate: str | None = None):
        self.model, self._extrapolate = model, extrapolate
        self._encode = jax.jit(lambda vae, frames: model.backbone.encode(vae, frames, model.time))
        self._decode = jax.jit(model.backbone.decode)
        self._predict = jax.jit(self._predict_windows, static_argnames="rounds")

    def encode(self, params: Params, batch: Batch) -> Batch:
        """The windows with latents instead of frames, on the devices of `params`."""
        frames = put_rows(batch["frames"], params)
        observed, target = self._encode(params["vae"], frames)
        inputs = put_rows({name: batch[name] for name in INPUTS}, params)
        return Batch(observed_latents=observed, target_latents=target, **inputs)

    def deploy(
        self, params: Params, windows: Batch, indices: Int[np.ndarray, " B"], *, rounds: int
    ) -> dict:
        """`predict` as the policy is deployed: the future is pure noise, t = 999."""
        last = self.model.schedule.steps - 1
        return self.predict(
            params, windows, indices, timesteps=(last, last + 1), stream=PURE_NOISE, rounds=rounds
        )

    def predict(
        self,
        params: Params,
        windows: Batch,
        indices: Int[np.ndarray, " B"],
        *,
        timesteps: tuple[int, int],
        stream: int,
        rounds: int,
    ) -> dict:
        """Predictions on encoded windows.

        Args:
            params: the whole tree.
            windows: from `encode`.
            indices: of the windows in their split; they decide timestep and noise.
            timesteps: half-open range that each window's timestep is drawn from.
            stream: which of a window's draws of noise.
            rounds: static number of rounds.

        Returns:
            {"actions" (B, p, 7) normalised, "error" (B,) of the velocity over predicted frames,
            "zero_error" (B,) of predicting zero, "latents" (B, F, C, H, W): the observed frames and
            x0 of the others in one step, "measures": measure -> stream -> (B, depth, rounds)}.
        """
        shape = (self.model.time.latents, *self.model.backbone.latent_shape)
        drawn = window_noise(indices, stream, *timesteps, shape=shape)
        return self._predict(params, windows, *put_rows(drawn, params), rounds=rounds)

    def decode(
        self, params: Params, latents: Float[Array, "B F C h w"]
    ) -> UInt8[Array, "B T H W 3"]:
        """Frames of latents."""
        return self._decode(params["vae"], latents)

    def _predict_windows(self, params, windows, timesteps, noise, rounds: int) -> dict:
        def one_window(window, timestep, noise):
            window, timestep, noise = jax.tree.map(lambda x: x[None], (window, timestep, noise))
            found = self._predict_batch(params, window, timestep, noise, rounds)
            measures = found.pop("measures")
            return {**jax.tree.map(lambda x: x[0], found), "measures": measures}

        return jax.vmap(one_window)(windows, timesteps, noise)

    def _predict_batch(self, params, batch, timesteps, noise, rounds: int) -> dict:
        model = self.model
        outputs, measures = model.predict(
            params,
            batch,
            timesteps=timesteps,
            noise=noise,
            rounds=rounds,
            extrapolate=self._extrapolate,
        )
        x0 = model.schedule.predict_x0(outputs["noisy"], outputs["velocity"], timesteps)
        observed = model.time.t_current
        latents = jnp.concatenate([outputs["noisy"][:, :observed], x0[:, observed:]], axis=1)
        zero = {**outputs, "velocity": jnp.zeros_like(outputs["velocity"])}
        return {
            "actions": outputs["actions"],
            "error": model.diffusion_error(outputs),
            "zero_error": model.diffusion_error(zero),
            "latents": latents,
            "measures": measures,
        }
