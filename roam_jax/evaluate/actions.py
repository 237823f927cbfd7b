"""Action error: predicted against recorded actions, beside two predictors that learn nothing.

Errors are taken in the normalised units of training ([-1, 1] by q01/q99, grippers 0..1) and, for
each dimension that is no gripper, in its own unit. Targets outside of q01..q99 were clipped to it
by the normalisation, here as in training.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from roam_jax.data.proprio import nearest_turn
from roam_jax.data.statistics import VectorStatistics
from roam_jax.evaluate.bootstrap import estimate_mean

# Above it a gripper value means open; an undecided 0.5 counts as closed.
GRIPPER_OPEN = 0.5


@dataclasses.dataclass(frozen=True)
class ActionWindows:
    """What action error is measured on, in the dimensions of one dataset.

    Args:
        targets: recorded future actions, normalised.
        past: the actions before `t_current`, normalised.
        episodes: episode of each window.
    """

    targets: Float[np.ndarray, "windows P A"]
    past: Float[np.ndarray, "windows n A"]
    episodes: Int[np.ndarray, " windows"]


def action_figures(
    predicted: Float[np.ndarray, "windows p A"],
    windows: ActionWindows,
    *,
    statistics: VectorStatistics,
    resamples: int,
) -> dict[str, Any]:
    """Action error over the predicted chunk and of its first action, THE action at `t_current`.

    Args:
        predicted: normalised actions; as many as the decoder predicts, p <= P.
        windows: what was recorded.
        statistics: scaling of the actions, and what their dimensions are.
        resamples: of the bootstrap.

    Returns:
        {"chunk", "first"}: each with "actions" (how many), "mse" (normalised, with interval),
        "absolute_error" (dimension that is no gripper -> error in its unit, of an angle the smaller
        arc) and, where there is a gripper, "gripper_accuracy".
    """
    targets = windows.targets[:, : predicted.shape[1]]
    return {
        name: _figures(
            predicted[:, :count],
            targets[:, :count],
            episodes=windows.episodes,
            statistics=statistics,
            resamples=resamples,
        )
        for name, count in (("chunk", predicted.shape[1]), ("first", 1))
    }


def _figures(predicted, targets, *, episodes, statistics, resamples) -> dict[str, Any]:
    predicted, targets = predicted.astype(np.float64), targets.astype(np.float64)
    mse = np.square(predicted - targets).mean(axis=(1, 2))
    spec, angles = statistics.spec, statistics.spec.of_kind("angle")
    error = statistics.unnormalise(predicted) - statistics.unnormalise(targets)
    error[..., angles] = nearest_turn(error[..., angles], np.zeros(len(angles)))
    error = np.abs(error).mean(axis=(0, 1)).tolist()
    figures = {
        "actions": predicted.shape[1],
        "mse": estimate_mean(mse, episodes, resamples=resamples).to_json(),
        "absolute_error": {
            spec.names[i]: error[i] for i in spec.of_kind("linear", "angle", "change")
        },
    }
    if grippers := spec.of_kind("gripper"):
        opened = [actions[..., grippers] > GRIPPER_OPEN for actions in (predicted, targets)]
        figures["gripper_accuracy"] = float(np.mean(opened[0] == opened[1]))
    return figures


def baseline_predictions(
    train_targets: Float[np.ndarray, "train P A"], windows: ActionWindows, *, length: int
) -> dict[str, Float[np.ndarray, "windows p A"]]:
    """Predictions of what any policy must beat, on the same windows.

    Args:
        train_targets: normalised future actions of train windows of the same dataset.
        windows: what is predicted.
        length: actions p of the model's chunk.

    Returns:
        "training_mean": the mean training action, the best constant; "previous_action": the last
        action before `t_current`, held; left out with `t_current` = 1, where there is none.
    """
    shape = len(windows.targets), length, windows.targets.shape[2]
    mean = train_targets[:, :length].mean(axis=(0, 1), dtype=np.float64)
    found = {"training_mean": np.broadcast_to(mean, shape)}
    if windows.past.shape[1]:
        found["previous_action"] = np.broadcast_to(windows.past[:, -1:], shape)
    return found
