"""Sampling from a v-prediction model in a few deterministic steps.

DDIM without noise (Song et al. 2021) at trailing timesteps (Lin et al. 2024, section 3.3), as
CogVideoX samples: the first step is pure noise, the last one ends at x0.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from roam_jax.diffusion.schedule import NoiseSchedule


def trailing_timesteps(schedule: NoiseSchedule, steps: int) -> Int[np.ndarray, " steps"]:
    """Timesteps of a sampling run, from the last one down: 999, 979, ..., 19 for 50 steps.

    Raises:
        ValueError: `steps` is not in 1..schedule.steps.
    """
    if not 1 <= steps <= schedule.steps:
        raise ValueError(f"sampling steps = {steps}: expected 1..{schedule.steps}")
    spaced = np.arange(schedule.steps, 0, -schedule.steps / steps)
    return np.round(spaced).astype(np.int32)[:steps] - 1


def next_timesteps(timesteps: Int[np.ndarray, " steps"]) -> Int[np.ndarray, " steps"]:
    """Where each step leads: the following timestep, and -1 (clean data) after the last."""
    return np.append(timesteps[1:], -1).astype(np.int32)


def ddim_step(
    schedule: NoiseSchedule,
    xt: Float[Array, "*shape"],
    v: Float[Array, "*shape"],
    t: Int[Array, ""],
    following: Int[Array, ""],
) -> Float[Array, "*shape"]:
    """x at timestep `following`, given x and the velocity at timestep t; float32.

    Args:
        schedule: the noise schedule.
        xt, v: sample and predicted velocity.
        t: 0..999.
        following: a smaller timestep; -1 gives x0.
    """
    alphas = np.append(schedule.alphas_cumprod, 1.0)  # index -1 is clean data
    signals, sigmas = (jnp.asarray(np.sqrt(x), jnp.float32) for x in (alphas, 1 - alphas))
    x0 = signals[t] * xt - sigmas[t] * v
    noise = signals[t] * v + sigmas[t] * xt
    return signals[following] * x0 + sigmas[following] * noise
