"""How near predicted frames come to the true ones: PSNR and SSIM, frame by frame.

SSIM is that of Wang et al. 2004 (an 11 x 11 Gaussian window of sigma 1.5, K1 = 0.01, K2 = 0.03,
windows wholly inside the frame), taken of each colour channel and averaged. LPIPS is not measured:
none of the dependencies has it, and its networks' weights would have to come from elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import dm_pix
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, UInt8

from roam_jax.evaluate.bootstrap import estimate_mean

METRICS = ("psnr", "ssim")
# Metrics that a reader may look for -> why they are not measured.
ABSENT = {"lpips": "no library with its weights is among the dependencies"}
PEAK = 255.0
# Mean squared error of rounding to whole numbers: two frames of 8 bits that agree are no nearer to
# each other than that. It bounds PSNR at 58.9 dB where frames are the same.
ROUNDING = 1 / 12


def frame_quality(
    predicted: UInt8[np.ndarray, "B T H W 3"], true: UInt8[np.ndarray, "B T H W 3"]
) -> dict[str, Float[np.ndarray, "B T"]]:
    """`METRICS` of every frame: PSNR in dB, at most 58.9, and SSIM in -1..1.

    Args:
        predicted, true: frames of at least 11 x 11 pixels.
    """
    error = np.square(predicted.astype(np.float64) - true).mean(axis=(2, 3, 4))
    rows = [x.reshape(-1, *x.shape[2:]) for x in (predicted, true)]
    similar = np.asarray(_similarity(*rows), np.float64).reshape(predicted.shape[:2])
    return {"psnr": 10 * np.log10(PEAK**2 / np.maximum(error, ROUNDING)), "ssim": similar}


@jax.jit
def _similarity(a: UInt8[jax.Array, "N H W 3"], b: UInt8[jax.Array, "N H W 3"]) -> jax.Array:
    a, b = (x.astype(jnp.float32) / PEAK for x in (a, b))
    # One frame at a time: its intermediates are a dozen frames in float32.
    return jax.lax.map(lambda pair: dm_pix.ssim(*pair), (a, b))


def horizon_figures(
    values: Float[np.ndarray, "windows frames"],
    latents: Sequence[int],
    *,
    episodes: Int[np.ndarray, " windows"],
    resamples: int,
) -> dict[str, Any]:
    """A metric over all predicted frames, by frame, and by latent frame.

    Args:
        values: of each window and predicted frame.
        latents: latent frame of each predicted frame.
        episodes: episode of each window.
        resamples: of the bootstrap.

    Returns:
        {"mean", "interval", "frames": [{"mean", "interval"}], "latents": [the same]}; the latter
        two in order of time.
    """

    def estimate(part: np.ndarray) -> dict[str, Any]:
        return estimate_mean(part.mean(axis=1), episodes, resamples=resamples).to_json()

    owner = np.asarray(latents)
    return {
        **estimate(values),
        "frames": [estimate(values[:, i : i + 1]) for i in range(values.shape[1])],
        "latents": [estimate(values[:, owner == latent]) for latent in np.unique(owner)],
    }


def quality_figures(
    quality: Mapping[str, Float[np.ndarray, "windows frames"]],
    latents: Sequence[int],
    *,
    episodes: Int[np.ndarray, " windows"],
    resamples: int,
) -> dict[str, Any]:
    """`horizon_figures` of each metric; arguments as there."""
    return {
        name: horizon_figures(quality[name], latents, episodes=episodes, resamples=resamples)
        for name in METRICS
    }
