"""Sampling from a grafted model: actions alone, or the continued video with its actions.

A policy needs the actions only, so the future video stays what it is deployed at, pure noise, while
actions are denoised. Sampling jointly takes video and actions down the same timesteps. Observed
frames are clean in every step, as in training, and nothing of the recorded future is read.

Guidance (Ho & Salimans 2022) moves the velocity of videos away from that under an empty
instruction. Actions come from the conditional pass alone: the empty instruction was never among
their training data, and to push a regression of a mean beyond it gives no likelier action.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from roam_jax.contracts import VIDEO_FIELDS, Batch, Params
from roam_jax.diffusion.samplers import DDIM, Sampler, SamplerState
from roam_jax.tasks.graft import GraftModel
from roam_jax.tasks.streams import TARGETS, NoisedActions, NoisedVideos, present_dimensions

# What a step moves on, in the order of their step noise.
VIDEO, CAMERAS, ACTIONS = "latents", "camera_latents", "actions"
# Video that is sampled -> output of the module that is its velocity.
VELOCITIES = {VIDEO: "velocity", CAMERAS: "camera_velocity"}


def encode_observed(model: GraftModel, params: Params, batch: Batch) -> Batch:
    """The windows with latents of what was observed in place of frames; no later frame is read.

    Args:
        model: the model.
        params: the whole tree.
        batch: windows; frames after the observed ones may be missing, latents may be there already.
    """
    return _encode(model, params, batch, model.observed_fields)


def _encode(model: GraftModel, params: Params, batch: Batch, fields: tuple[str, ...]) -> Batch:
    """The windows with some of their latents in place of all frames."""
    latents = model.backbone.latents(params["vae"], batch, model.time, fields=fields)
    return Batch(**{n: x for n, x in batch.items() if n not in VIDEO_FIELDS} | latents)


def pure_noise(
    model: GraftModel,
    windows: Batch,
    noise: Float[Array, "B F C h w"],
    *,
    camera_noise: Float[Array, "B V f C h w"] | None = None,
) -> NoisedVideos:
    """The videos at t = 999, where alpha_bar is exactly 0: observed frames, then noise.

    Args:
        model: the model.
        windows: from `encode_observed`.
        noise, camera_noise: standard normal.

    Raises:
        ValueError: cameras are predicted and there is no noise for them.
    """
    model.require_camera_noise(camera_noise)
    latents = jnp.concatenate(
        [windows["observed_latents"], noise[:, model.time.t_current :]], axis=1
    )
    return NoisedVideos(latents, camera_noise if model.predicts_cameras else None)


def denoise_actions(
    model: GraftModel,
    params: Params,
    windows: Batch,
    noised: NoisedVideos,
    *,
    timesteps: Int[Array, " B"],
    action_noise: Float[Array, "B P A"],
    steps: int,
    rounds: int,
    extrapolate: str | None = None,
    threshold: float | None = None,
    wanted: tuple[str, ...] | None = None,
) -> tuple[dict[str, Array], dict]:
    """Diffused actions denoised in a few DDIM steps while the videos stay at their timestep.

    Dimensions that a robot lacks stay 0 throughout, as they are in training.

    Args:
        model: the model, with the decoder `tokens_diffused`.
        params: the whole tree.
        windows: with encoded videos.
        noised: the videos, at `timesteps`; a policy is deployed at t = 999 (`pure_noise`).
        timesteps: of the videos.
        action_noise: standard normal, where the actions start.
        steps: static number of steps, each a pass through what actions need of the model.
        rounds, extrapolate, threshold: as for `GraftModel.predict`.
        wanted: outputs of the last step, actions among them; None = all.

    Returns:
        As `GraftModel.denoise`, with "actions" (B, P, A) in normalised units.

    Raises:
        ValueError: `steps` is out of range.
    """
    present = present_dimensions(windows, "actions")
    sampler = Sampler(DDIM, steps, model.schedule)
    times = jnp.asarray(sampler.timesteps)

    def step(state: SamplerState, index, wanted):
        actions = NoisedActions(state.x, jnp.full(timesteps.shape, times[index]))
        outputs, measures = model.denoise(
            params,
            windows,
            noised,
            timesteps=timesteps,
            rounds=rounds,
            actions=actions,
            extrapolate=extrapolate,
            threshold=threshold,
            wanted=wanted,
        )
        state = sampler.step(state, outputs.pop("actions") * present, index)
        return state, outputs, measures

    state, _ = jax.lax.scan(
        lambda state, index: (step(state, index, (ACTIONS,))[0], None),
        sampler.start(action_noise * present),
        np.arange(steps - 1),
    )
    state, outputs, measures = step(state, steps - 1, wanted)
    return {**outputs, ACTIONS: state.x}, measures


def sample_actions(
    model: GraftModel,
    params: Params,
    batch: Batch,
    *,
    timesteps: Int[Array, " B"],
    noise: Float[Array, "B F C h w"],
    action_noise: Float[Array, "B P A"],
    steps: int,
    rounds: int,
    camera_noise: Float[Array, "B V f C h w"] | None = None,
    extrapolate: str | None = None,
    threshold: float | None = None,
    wanted: tuple[str, ...] | None = None,
) -> tuple[dict[str, Array], dict]:
    """`GraftModel.predict` with its actions denoised by `denoise_actions`.

    Args:
        model, params, batch, timesteps, noise, rounds, camera_noise, extrapolate, threshold: as
            there.
        action_noise, steps, wanted: as for `denoise_actions`.

    Returns:
        As `GraftModel.predict`, with "actions" (B, P, A) in normalised units.

    Raises:
        ValueError: `steps` is out of range, or there is no noise for cameras that are predicted.
    """
    windows = _encode(model, params, batch, model.latent_fields)
    noised, targets = model.noise_videos(windows, timesteps, noise, camera_noise=camera_noise)
    outputs, measures = denoise_actions(
        model,
        params,
        windows,
        noised,
        timesteps=timesteps,
        action_noise=action_noise,
        steps=steps,
        rounds=rounds,
        extrapolate=extrapolate,
        threshold=threshold,
        wanted=wanted,
    )
    return {**outputs, **targets, "noisy": noised.latents}, measures


def sample_jointly(
    model: GraftModel,
    params: Params,
    batch: Batch,
    *,
    sampler: Sampler,
    noise: Float[Array, "B F C h w"],
    step_noise_key: jax.Array,
    rounds: int,
    action_noise: Float[Array, "B P A"] | None = None,
    camera_noise: Float[Array, "B V f C h w"] | None = None,
    extrapolate: str | None = None,
    threshold: float | None = None,
    guidance: Float[Array | np.ndarray, " steps"] | None = None,
    empty_text: Float[Array | np.ndarray, "S D"] | None = None,
) -> dict[str, Any]:
    """The future video from pure noise, and the actions that go with it.

    Traceable, and one trace for all steps. Videos are encoded once, before the first step.

    Args:
        model: the model.
        params: the whole tree.
        batch: windows, of whose videos only observed frames are read.
        sampler: kind and number of steps.
        noise: standard normal, where the future frames start.
        step_noise_key: of the noise that a stochastic sampler adds on the way; one key for the
            whole batch, so that windows with keys of their own are mapped over (`jax.vmap`).
        rounds: static number of rounds.
        action_noise: standard normal, where diffused actions start.
        camera_noise: the same for the predicted frames of further cameras.
        extrapolate: "last" allows more rounds than were trained.
        threshold: static; with learned halting, when cells stop for good; None = never.
        guidance: scale of each step, 1 = none; None = no second pass at all.
        empty_text: embedding of the empty instruction, with `guidance`.

    Returns:
        {"latents" (B, F, C, h, w): the observed frames unchanged, then the sampled ones;
        "camera_latents" (B, V, F - t_current, C, h, w) where cameras are predicted; "actions"
        (B, p, A) and the other predicted streams, normalised; "last": stream -> its reading at the
        last step}. Diffused actions are denoised at the timesteps of the video. All that is
        regressed is read at the FIRST step, where the future is pure noise: that is how a policy
        is deployed and what `loss.deploy_fraction` trains. At the last step it follows the sampled
        future instead.

    Raises:
        ValueError: noise or the empty text is missing, or as many scales as steps are not given.
    """
    model.require_camera_noise(camera_noise)
    if model.diffuses_actions and action_noise is None:
        raise ValueError(
            f"no action_noise: expected (batch, {model.time.chunk}, "
            f"{model.module.graft_config.action_dim}), because the decoder tokens_diffused "
            "denoises actions"
        )
    windows = encode_observed(model, params, batch)
    scales = _scales(guidance, empty_text, steps=sampler.steps)
    denoise = _denoiser(
        model,
        params,
        windows,
        options={"rounds": rounds, "extrapolate": extrapolate, "threshold": threshold},
        empty_text=None if guidance is None else empty_text,
    )
    starts = {VIDEO: noise[:, model.time.t_current :]}
    if model.predicts_cameras:
        starts[CAMERAS] = camera_noise
    present = present_dimensions(windows, "actions")
    if model.diffuses_actions:
        starts[ACTIONS] = action_noise * present

    def step(states: dict[str, SamplerState], inputs):
        index, timestep, scale = inputs
        outputs = denoise({name: state.x for name, state in states.items()}, timestep, scale)
        key = jax.random.fold_in(step_noise_key, index)
        moved = {}
        for number, (name, state) in enumerate(states.items()):
            drawn = jax.random.normal(jax.random.fold_in(key, number), state.x.shape)
            drawn = drawn * present if name == ACTIONS else drawn
            velocity = outputs[VELOCITIES.get(name, name)]
            if name == ACTIONS:
                velocity = velocity * present
            moved[name] = sampler.step(state, velocity, index, drawn)
        read = {n: outputs[n] for n in TARGETS if n in outputs and n not in states}
        return moved, read

    states = {name: sampler.start(x) for name, x in starts.items()}
    steps = np.arange(sampler.steps, dtype=np.int32), sampler.timesteps, scales
    states, read = jax.lax.scan(step, states, steps)
    found = {name: state.x for name, state in states.items()}
    observed = windows["observed_latents"]
    return {
        **jax.tree.map(lambda x: x[0], read),
        **found,
        VIDEO: jnp.concatenate([observed, found[VIDEO]], axis=1),
        "last": jax.tree.map(lambda x: x[-1], read),
    }


def _scales(
    guidance: Array | np.ndarray | None, empty_text: Array | np.ndarray | None, *, steps: int
) -> Float[Array | np.ndarray, " steps"]:
    """The scale of each step; ones without guidance."""
    if guidance is None:
        return np.ones(steps, np.float32)
    if empty_text is None:
        raise ValueError("guidance without empty_text: expected the embedding of ''")
    if np.shape(guidance) != (steps,):
        raise ValueError(
            f"guidance of shape {np.shape(guidance)}: expected ({steps},), a scale for each step"
        )
    return jnp.asarray(guidance, jnp.float32)


def _denoiser(
    model: GraftModel,
    params: Params,
    windows: Batch,
    *,
    options: dict[str, Any],
    empty_text: Float[Array | np.ndarray, "S D"] | None,
) -> Callable[[dict[str, Array], Array, Array], dict[str, Array]]:
    """From what moves, a timestep and a scale to the model's outputs, with guided velocities.

    "velocity" is of the predicted frames alone. With an empty text both passes are one batch;
    `options` go to every pass.
    """
    observed = windows["observed_latents"]
    size = observed.shape[0]
    if empty_text is not None:
        text = jnp.asarray(windows["text"])
        empty = jnp.broadcast_to(jnp.asarray(empty_text, text.dtype), text.shape)
        windows = jax.tree.map(
            lambda x, y: jnp.concatenate([x, y]), windows, Batch(**{**windows, "text": empty})
        )

    def denoise(moving: dict[str, Array], timestep: Array, scale: Array) -> dict[str, Array]:
        latents = jnp.concatenate([observed, moving[VIDEO]], axis=1)
        timesteps = jnp.full(size, timestep)
        given = (
            NoisedVideos(latents, moving.get(CAMERAS)),
            timesteps,
            NoisedActions(moving[ACTIONS], timesteps) if ACTIONS in moving else None,
        )
        if empty_text is not None:
            given = jax.tree.map(lambda x: jnp.concatenate([x, x]), given)
        noised, timesteps, actions = given
        outputs, _ = model.denoise(
            params,
            windows,
            noised,
            timesteps=timesteps,
            actions=actions,
            **options,
        )
        outputs["velocity"] = outputs["velocity"][:, model.time.t_current :]
        if empty_text is None:
            return outputs
        found = {name: x[:size] for name, x in outputs.items()}
        for name in VELOCITIES.values():
            if name in found:
                without = outputs[name][size:]
                found[name] = without + scale * (found[name] - without)
        return found

    return denoise
