"""The noise schedule of CogVideoX and its v-prediction targets.

Scaled-linear betas, shifted to a lower signal-to-noise ratio (Esser et al. 2024, section 5.3.2),
then rescaled so that the last step is pure noise (Lin et al. 2024, arXiv:2305.08891): at t = 999
nothing of x0 is left. Velocity is v = sqrt(alpha_bar) noise - sqrt(1 - alpha_bar) x0 (Salimans &
Ho 2022). Plain MSE on v is CogVideoX's training loss, whose weight 1 / (1 - alpha_bar) on the error
of x0 cancels exactly.
"""

from __future__ import annotations

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


@dataclasses.dataclass(frozen=True)
class NoiseSchedule:
    """alpha_bar of each step; the defaults are CogVideoX-2B's.

    Args:
        steps: number of training timesteps; t ranges over 0..steps - 1.
        beta_start, beta_end: first and last beta, linear in their square roots.
        snr_shift_scale: divides the signal-to-noise ratio of every step.

    Raises:
        ValueError: a value is out of range.
    """

    steps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    snr_shift_scale: float = 3.0

    def __post_init__(self):
        if self.steps < 2:
            raise ValueError(f"steps = {self.steps}: expected at least 2")
        if not 0 < self.beta_start <= self.beta_end < 1:
            raise ValueError(
                f"beta_start = {self.beta_start}, beta_end = {self.beta_end}: expected "
                "0 < beta_start <= beta_end < 1"
            )
        if self.snr_shift_scale <= 0:
            raise ValueError(f"snr_shift_scale = {self.snr_shift_scale}: expected a positive scale")

    @functools.cached_property
    def alphas_cumprod(self) -> Float[np.ndarray, " steps"]:
        """alpha_bar in float64, from 0.997 at t = 0 to exactly 0 at the last step."""
        betas = np.linspace(self.beta_start**0.5, self.beta_end**0.5, self.steps) ** 2
        alphas = np.cumprod(1 - betas)
        alphas = alphas / (self.snr_shift_scale + (1 - self.snr_shift_scale) * alphas)
        root = np.sqrt(alphas)
        root = (root - root[-1]) * (root[0] / (root[0] - root[-1]))
        return root**2

    def add_noise(
        self, x0: Float[Array, "*shape"], noise: Float[Array, "*shape"], t: Int[Array, "*batch"]
    ) -> Float[Array, "*shape"]:
        """x_t = sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) noise, float32.

        Args:
            x0, noise: clean data and standard normal noise.
            t: timestep of each row (B,), or of each row and frame (B, F): the leading axes of x0.
                A timestep out of range gives NaN.
        """
        signal, sigma = self._coefficients(t, x0.ndim)
        return signal * x0 + sigma * noise

    def velocity(
        self, x0: Float[Array, "*shape"], noise: Float[Array, "*shape"], t: Int[Array, "*batch"]
    ) -> Float[Array, "*shape"]:
        """v = sqrt(alpha_bar) noise - sqrt(1 - alpha_bar) x0, float32; `t` as in `add_noise`."""
        signal, sigma = self._coefficients(t, x0.ndim)
        return signal * noise - sigma * x0

    def predict_x0(
        self, xt: Float[Array, "*shape"], v: Float[Array, "*shape"], t: Int[Array, "*batch"]
    ) -> Float[Array, "*shape"]:
        """x0 = sqrt(alpha_bar) x_t - sqrt(1 - alpha_bar) v, float32; `t` as in `add_noise`."""
        signal, sigma = self._coefficients(t, xt.ndim)
        return signal * xt - sigma * v

    def _coefficients(self, t: Int[Array, "*batch"], ndim: int) -> tuple[Array, Array]:
        """sqrt(alpha_bar) and sqrt(1 - alpha_bar), shaped to broadcast over trailing axes."""
        t = jnp.asarray(t)
        t = t.reshape(t.shape + (1,) * (ndim - t.ndim))

        def at_t(table):
            return jnp.take(jnp.asarray(table, jnp.float32), t, mode="fill", fill_value=jnp.nan)

        return at_t(np.sqrt(self.alphas_cumprod)), at_t(np.sqrt(1 - self.alphas_cumprod))
