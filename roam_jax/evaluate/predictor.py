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

from roam_jax.cogvideox.graft_cells import DATA_FIELDS
from roam_jax.contracts import VIDEO_FIELDS, Batch, Params
from roam_jax.evaluate.placement import put_rows
from roam_jax.evaluate.windows import PURE_NOISE, window_noise
from roam_jax.tasks.graft import GraftModel
from roam_jax.tasks.graft_sampling import sample_actions
from roam_jax.tasks.streams import MASKS, TARGETS

# What the model reads of a window, beside its latents; masks where robots differ.
INPUTS = ("text", *DATA_FIELDS.values(), *TARGETS.values(), *MASKS.values())
# Added to a stream of noise: those of the other cameras and of actions, independent of the video's.
CAMERA_STREAMS, ACTION_STREAMS = 1 << 20, 1 << 21


class GraftPredictor:
    """Compiled functions of one `GraftModel`.

    Args:
        model: the model.
        action_steps: steps in which diffused actions are denoised when the policy is deployed.
        extrapolate: "last" allows more rounds than were trained.
        threshold: with learned halting, the stopped mass from which a cell stops for good; None =
            never.

    Raises:
        ValueError: `action_steps` is out of range.
    """

    def __init__(
        self,
        model: GraftModel,
        *,
        action_steps: int = 1,
        extrapolate: str | None = None,
        threshold: float | None = None,
    ):
        if not 1 <= action_steps <= model.schedule.steps:
            raise ValueError(
                f"eval.action_steps = {action_steps}: expected 1..{model.schedule.steps}"
            )
        self.model = model
        self._options = {"extrapolate": extrapolate, "threshold": threshold}
        self._action_steps = action_steps if model.diffuses_actions else 1
        self._encode = jax.jit(
            lambda vae, videos: model.backbone.encode_batch(
                vae, videos, model.time, fields=model.latent_fields
            )
        )
        self._decode = jax.jit(model.backbone.decode)
        self._predict = jax.jit(self._predict_windows, static_argnames=("rounds", "action_steps"))

    def encode(self, params: Params, batch: Batch) -> Batch:
        """The windows with latents instead of frames, on the devices of `params`."""
        videos = put_rows({name: batch[name] for name in VIDEO_FIELDS if name in batch}, params)
        inputs = put_rows({name: batch[name] for name in INPUTS if name in batch}, params)
        return Batch(**self._encode(params["vae"], videos), **inputs)

    def deploy(
        self, params: Params, windows: Batch, indices: Int[np.ndarray, " B"], *, rounds: int
    ) -> dict:
        """`predict` as the policy is deployed: the future is pure noise, t = 999."""
        last = self.model.schedule.steps - 1
        return self.predict(
            params,
            windows,
            indices,
            timesteps=(last, last + 1),
            stream=PURE_NOISE,
            rounds=rounds,
            action_steps=self._action_steps,
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
        action_steps: int = 1,
    ) -> dict:
        """Predictions on encoded windows.

        Args:
            params: the whole tree.
            windows: from `encode`.
            indices: of the windows in their split; they decide timestep and noise.
            timesteps: half-open range that each window's timestep is drawn from.
            stream: which of a window's draws of noise.
            rounds: static number of rounds.
            action_steps: static number of steps in which diffused actions are denoised.

        Returns:
            {"actions" (B, p, A) normalised, "proprio" (B, F - t_current, J) and "reward"
            (B, F - t_current, 1) where they are predicted, "error" (B,) of the velocity over
            predicted frames, "zero_error" (B,) of predicting zero, where other cameras are
            predicted "camera_error" and "camera_zero_error" (B,) of theirs, "latents" (B, F, C, H,
            W): the observed frames and x0 of the others in one step, "measures": measure -> region
            -> (B, depth, rounds)}.
        """
        drawn = draw_noise(self.model, indices, timesteps=timesteps, stream=stream)
        drawn = put_rows(drawn, params)
        return self._predict(params, windows, *drawn, rounds=rounds, action_steps=action_steps)

    def decode(
        self, params: Params, latents: Float[Array, "B F C h w"]
    ) -> UInt8[Array, "B T H W 3"]:
        """Frames of latents."""
        return self._decode(params["vae"], latents)

    def _predict_windows(self, params, windows, *drawn, rounds: int, action_steps: int) -> dict:
        def one_window(*inputs):
            inputs = jax.tree.map(lambda x: x[None], inputs)
            found = self._predict_batch(params, *inputs, rounds=rounds, action_steps=action_steps)
            measures = found.pop("measures")
            return {**jax.tree.map(lambda x: x[0], found), "measures": measures}

        return jax.vmap(one_window)(windows, *drawn)

    def _predict_batch(
        self, params, batch, timesteps, noise, others, *, rounds: int, action_steps: int
    ) -> dict:
        model = self.model
        inputs = {
            "timesteps": timesteps,
            "noise": noise,
            **others,
            "rounds": rounds,
            **self._options,
        }
        if model.diffuses_actions:
            outputs, measures = sample_actions(model, params, batch, **inputs, steps=action_steps)
        else:
            outputs, measures = model.predict(params, batch, **inputs)
        x0 = model.schedule.predict_x0(outputs["noisy"], outputs["velocity"], timesteps)
        observed = model.time.t_current
        latents = jnp.concatenate([outputs["noisy"][:, :observed], x0[:, observed:]], axis=1)
        return {
            **{stream: outputs[stream] for stream in TARGETS if stream in outputs},
            **self._velocity_errors(outputs),
            "latents": latents,
            "measures": measures,
        }

    def _velocity_errors(self, outputs: dict[str, Array]) -> dict[str, Float[Array, " B"]]:
        """Of the model and of predicting zero, for the video and, if predicted, other cameras."""
        model = self.model
        velocities = [name for name in ("velocity", "camera_velocity") if name in outputs]
        zero = {**outputs, **{name: jnp.zeros_like(outputs[name]) for name in velocities}}
        found = {
            "error": model.diffusion_error(outputs),
            "zero_error": model.diffusion_error(zero),
        }
        if model.predicts_cameras:
            found["camera_error"] = model.camera_error(outputs)
            found["camera_zero_error"] = model.camera_error(zero)
        return found


def draw_noise(
    model: GraftModel,
    indices: Int[Array | np.ndarray, " B"],
    *,
    timesteps: tuple[int, int],
    stream: int,
) -> tuple[Int[Array, " B"], Float[Array, "B F C h w"], dict[str, Array]]:
    """What windows are noised with: a function of each window's index and the stream.

    Args:
        model: says what is noised.
        indices: of the windows in their split.
        timesteps: half-open range that each window's timestep is drawn from.
        stream: which of a window's draws of noise.

    Returns:
        Timesteps, noise of the video, and "camera_noise" and "action_noise" where there are any.
    """
    shape = (model.time.latents, *model.backbone.latent_shape)
    drawn, noise = window_noise(indices, stream, *timesteps, shape=shape)
    others = {
        name: window_noise(indices, stream + offset, *timesteps, shape=shape)[1]
        for name, (offset, shape) in _other_noise(model).items()
    }
    return drawn, noise, others


def _other_noise(model: GraftModel) -> dict[str, tuple[int, tuple[int, ...]]]:
    """Noise beside the video's: argument of the model -> its streams, shape for one window."""
    found = {}
    if model.diffuses_actions:
        chunk = model.time.chunk, model.module.graft_config.action_dim
        found["action_noise"] = ACTION_STREAMS, chunk
    if model.predicts_cameras:
        found["camera_noise"] = CAMERA_STREAMS, model.camera_noise_shape
    return found
