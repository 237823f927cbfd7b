"""Error of the predicted robot state and reward, beside holding the last observed one."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float, Int

from roam_jax.cogvideox.graft_config import PREDICTED
from roam_jax.evaluate.bootstrap import estimate_mean

# Predicted stream -> fields of a batch with its future and its observed values.
STREAMS = {output: (region, f"observed_{output}") for region, (output, _) in PREDICTED.items()}


def stream_figures(
    predicted: Float[np.ndarray, "windows F D"],
    targets: Float[np.ndarray, "windows F D"],
    observed: Float[np.ndarray, "windows t_current D"],
    *,
    episodes: Int[np.ndarray, " windows"],
    resamples: int,
) -> dict[str, Any]:
    """Mean squared errors in normalised units, with intervals over episodes.

    Args:
        predicted, targets: of the latent frames from `t_current` on.
        observed: of those before.
        episodes: episode of each window.
        resamples: of the bootstrap.

    Returns:
        {"mse"} of the model and {"last_observed_mse"} of the last observed value, held.
    """

    def error(guess):
        squares = np.square(guess.astype(np.float64) - targets).mean(axis=(1, 2))
        return estimate_mean(squares, episodes, resamples=resamples).to_json()

    return {"mse": error(predicted), "last_observed_mse": error(observed[:, -1:])}
