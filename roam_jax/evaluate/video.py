"""Video prediction: velocity error by timestep bucket, beside predicting zero.

The error depends strongly on the timestep, so that its mean says little: a bucket of low t asks for
fine detail, the last one for the scene itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from roam_jax.evaluate.bootstrap import estimate_mean


def bucket_figures(
    errors: Float[np.ndarray, "windows buckets"],
    zero_errors: Float[np.ndarray, "windows buckets"],
    *,
    buckets: Sequence[tuple[int, int]],
    episodes: Int[np.ndarray, " windows"],
    resamples: int,
) -> dict[str, Any]:
    """The v-prediction loss of each bucket.

    Args:
        errors, zero_errors: mean squared velocity error of the model and of predicting zero, over
            the predicted frames of each window.
        buckets: half-open ranges of timesteps.
        episodes: episode of each window.
        resamples: of the bootstrap.

    Returns:
        {"mse": mean over buckets with interval, "buckets": [{"timesteps": [first, last], "mse":
        with interval, "zero_mse"}]}.
    """
    figures = [
        {
            "timesteps": [int(first), int(end) - 1],
            "mse": estimate_mean(errors[:, i], episodes, resamples=resamples).to_json(),
            "zero_mse": float(zero_errors[:, i].mean()),
        }
        for i, (first, end) in enumerate(buckets)
    ]
    overall = estimate_mean(errors.mean(axis=1), episodes, resamples=resamples)
    return {"mse": overall.to_json(), "buckets": figures}
