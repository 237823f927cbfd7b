"""CogVideoX's two samplers: from noise to data in a few steps of a v-prediction model.

"ddim" is DDIM without noise (Song et al. 2021); "dpm" is the second-order multistep DPM-Solver++
for the diffusion SDE (Lu et al. 2022, arXiv:2211.01095), which adds noise at every step but the
last. Both run over trailing timesteps (Lin et al. 2024, section 3.3): the first step is pure noise,
the last one ends at x0.

Both equal diffusers' `CogVideoXDDIMScheduler` and `CogVideoXDPMScheduler`, of which every step is
linear in the sample, the predicted x0, the x0 predicted a step before and the noise. So a sampler
is a table of coefficients, computed in float64, with a row for each step.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int

from roam_jax.diffusion.schedule import NoiseSchedule
from roam_jax.spelling import check_choice

DDIM, DPM = SAMPLERS = ("ddim", "dpm")


class SamplerState(NamedTuple):
    """What goes from step to step: the sample, and the x0 that was predicted in the step before."""

    x: Float[Array, "*shape"]
    previous_x0: Float[Array, "*shape"]


class Coefficients(NamedTuple):
    """One step, or a row for each step (steps,): x0 = signal x - sigma v, and what is summed."""

    signal: Array | np.ndarray
    sigma: Array | np.ndarray
    x: Array | np.ndarray
    x0: Array | np.ndarray
    previous_x0: Array | np.ndarray
    noise: Array | np.ndarray


@dataclasses.dataclass(frozen=True)
class Sampler:
    """A sampling run; hashable, so that it may be a static argument.

    Args:
        kind: "ddim" or "dpm".
        steps: passes through the model.
        schedule: the noise schedule that the model was trained with.

    Raises:
        ValueError: no such kind, or `steps` is not in 1..schedule.steps.
    """

    kind: str
    steps: int
    schedule: NoiseSchedule = NoiseSchedule()

    def __post_init__(self):
        check_choice("sampler", self.kind, SAMPLERS)
        trailing_timesteps(self.schedule, self.steps)

    @functools.cached_property
    def timesteps(self) -> Int[np.ndarray, " steps"]:
        """Timestep of each step, from the last one down; what the model is told."""
        return trailing_timesteps(self.schedule, self.steps)

    @functools.cached_property
    def coefficients(self) -> Coefficients:
        """Of every step, float32 (steps,)."""
        # Where a step leads. diffusers takes a whole number of timesteps off; where `steps` does
        # not divide the schedule, this is not the next one of `timesteps`, and the last step may
        # end at t = 0 instead of at clean data (-1).
        following = self.timesteps - self.schedule.steps // self.steps
        alphas = np.append(self.schedule.alphas_cumprod, 1.0)  # index -1 is clean data
        following = np.maximum(following, -1)
        now, then = alphas[self.timesteps], alphas[following]
        if self.kind == DDIM:
            x = np.sqrt((1 - then) / (1 - now))
            parts = x, np.sqrt(then) - np.sqrt(now) * x, np.zeros_like(x), np.zeros_like(x)
        else:
            parts = _dpm(now, then)
        table = Coefficients(np.sqrt(now), np.sqrt(1 - now), *parts)
        return Coefficients(*(column.astype(np.float32) for column in table))

    def start(self, x: Float[Array | np.ndarray, "*shape"]) -> SamplerState:
        """The state before step 0; `x` is standard normal noise."""
        x = jnp.asarray(x, jnp.float32)
        return SamplerState(x, jnp.zeros_like(x))

    def step(
        self,
        state: SamplerState,
        velocity: Float[Array | np.ndarray, "*shape"],
        index: Int[Array, ""] | int,
        noise: Float[Array | np.ndarray, "*shape"] | None = None,
    ) -> SamplerState:
        """The state after step `index`, which may be traced; float32.

        Args:
            state: before it.
            velocity: the model's, at `timesteps[index]`.
            index: 0..steps - 1.
            noise: standard normal; "ddim" does not use it.

        Raises:
            ValueError: "dpm" without noise.
        """
        if self.kind == DPM and noise is None:
            raise ValueError(f"sampler {self.kind!r} without noise: expected standard normal noise")
        row = Coefficients(*(jnp.asarray(column)[index] for column in self.coefficients))
        return advance(state, velocity, row, noise if self.kind == DPM else None)


def trailing_timesteps(schedule: NoiseSchedule, steps: int) -> Int[np.ndarray, " steps"]:
    """Timesteps of a sampling run, from the last one down: 999, 979, ..., 19 for 50 steps.

    Raises:
        ValueError: `steps` is not in 1..schedule.steps.
    """
    if not 1 <= steps <= schedule.steps:
        raise ValueError(f"sampling steps = {steps}: expected 1..{schedule.steps}")
    spaced = np.arange(schedule.steps, 0, -schedule.steps / steps)
    return np.round(spaced).astype(np.int32)[:steps] - 1


def advance(
    state: SamplerState,
    velocity: Float[Array | np.ndarray, "*shape"],
    row: Coefficients,
    noise: Float[Array | np.ndarray, "*shape"] | None,
) -> SamplerState:
    """One step from its row of `Sampler.coefficients`; without noise where `noise` is None."""
    x0 = row.signal * state.x - row.sigma * velocity
    x = row.x * state.x + row.x0 * x0 + row.previous_x0 * state.previous_x0
    return SamplerState(x if noise is None else x + row.noise * noise, x0)


def _dpm(
    now: Float[np.ndarray, " steps"], then: Float[np.ndarray, " steps"]
) -> tuple[Float[np.ndarray, " steps"], ...]:
    """Coefficients of x, x0, previous x0 and noise; alpha_bar at each step and where it leads."""
    with np.errstate(divide="ignore", invalid="ignore"):
        # Half the logarithm of the signal-to-noise ratio: -inf at t = 999, inf at clean data.
        half_log_snr = lambda alphas: 0.5 * np.log(alphas / (1 - alphas))  # noqa: E731
        growth = half_log_snr(then) - half_log_snr(now)
        growth_before = half_log_snr(now) - half_log_snr(np.append(np.nan, now[:-1]))
        extrapolation = growth / (2 * growth_before)
    # The first step has none before it; the second comes from -inf, so its share is 0 by itself.
    # The last step, to clean data, takes the predicted x0 as it is.
    extrapolation[0] = 0
    extrapolation[then == 1] = 0
    x = np.sqrt((1 - then) / (1 - now)) * np.exp(-growth)
    x0 = -np.expm1(-2 * growth) * np.sqrt(then)
    noise = np.sqrt(1 - then) * np.sqrt(-np.expm1(-2 * growth))
    return x, x0 * (1 + extrapolation), -x0 * extrapolation, noise


def guidance_scales(sampler: Sampler, scale: float, *, dynamic: bool) -> Float32[np.ndarray, "_"]:
    """Weight of classifier-free guidance at every step, as diffusers' CogVideoX pipeline has it.

    Args:
        sampler: the run.
        scale: 1 is no guidance.
        dynamic: whether it changes from step to step: 1 + scale (1 - cos(pi u^5)) / 2 with
            u = (steps - t) / steps. As published t is the timestep, 0..999, not the step's number,
            so the scale jumps between 1 and 1 + scale until t is below `steps`.

    Returns:
        (steps,) float32.
    """
    if not dynamic:
        return np.full(sampler.steps, scale, np.float32)
    steps = sampler.steps
    turns = [math.pi * ((steps - t) / steps) ** 5.0 for t in sampler.timesteps.tolist()]
    return np.array([1 + scale * (1 - math.cos(turn)) / 2 for turn in turns], np.float32)
