"""Figures of one region of a canvas model, and of what knows nothing: arrays in, JSON out.

Every region has an "error", the kind of its training loss: squared velocity error at pure noise of
what is diffused, squared error of what is regressed, cross-entropy of what is classified. Intervals
are over examples, which are independent.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from roam_jax.evaluate.bootstrap import estimate_mean, estimate_ratio
from roam_jax.evaluate.video import bucket_figures


@dataclasses.dataclass(frozen=True)
class Answers:
    """What was said in the cells of a classified region, and what is right.

    Args:
        predicted, targets: class of each example's cell.
        cell_names: of the cells.
        classes: how many there are.
    """

    predicted: Int[np.ndarray, "examples cells"]
    targets: Int[np.ndarray, "examples cells"]
    cell_names: tuple[str, ...]
    classes: int

    @property
    def right(self) -> Float[np.ndarray, "examples cells"]:
        """1 where the answer is right, else 0."""
        return (self.predicted == self.targets).astype(float)

    def cell(self, number: int) -> Answers:
        """One cell's alone."""
        here = slice(number, number + 1)
        return dataclasses.replace(
            self,
            predicted=self.predicted[:, here],
            targets=self.targets[:, here],
            cell_names=self.cell_names[here],
        )


def diffusion_figures(
    errors: Float[np.ndarray, "examples noises"],
    *,
    zero_errors: Float[np.ndarray, "examples noises"],
    buckets: Sequence[tuple[int, int]],
    resamples: int,
) -> dict[str, Any]:
    """Velocity error at pure noise and by bucket of timesteps.

    Args:
        errors: mean squared velocity error: at pure noise first, then in each bucket.
        zero_errors: the same of predicting zero.
        buckets: half-open ranges of timesteps.
        resamples: of the bootstrap.
    """
    every = np.arange(len(errors))
    return {
        "error": estimate_mean(errors[:, 0], every, resamples=resamples).to_json(),
        "timesteps": bucket_figures(
            errors[:, 1:],
            zero_errors[:, 1:],
            buckets=buckets,
            episodes=every,
            resamples=resamples,
        ),
    }


def regression_figures(errors: Float[np.ndarray, " examples"], *, resamples: int) -> dict[str, Any]:
    """Mean squared error."""
    every = np.arange(len(errors))
    return {"error": estimate_mean(errors, every, resamples=resamples).to_json()}


def classification_figures(
    cross_entropy: Float[np.ndarray, "examples cells"], answers: Answers, *, resamples: int
) -> dict[str, Any]:
    """Cross-entropy in nats and accuracy, over all cells and by cell; of two classes also F1.

    Args:
        cross_entropy: of each cell.
        answers: what was said.
        resamples: of the bootstrap.
    """
    every, right = np.arange(len(cross_entropy)), answers.right

    def mean(values):
        return estimate_mean(values, every, resamples=resamples).to_json()

    return {
        "error": mean(cross_entropy.mean(axis=1)),
        "accuracy": mean(right.mean(axis=1)),
        "cells": [
            {
                "name": name,
                "error": mean(cross_entropy[:, i]),
                "accuracy": mean(right[:, i]),
                **_detection(answers.cell(i), resamples=resamples),
            }
            for i, name in enumerate(answers.cell_names)
        ],
        **_detection(answers, resamples=resamples),
    }


def most_frequent(answers: Answers, *, resamples: int) -> dict[str, Any]:
    """The best that needs no input: each cell's class frequencies, and its most frequent class.

    Of two classes, F1 is that of always saying the second one, which is the best of a constant.

    Args:
        answers: whose targets count; what was said does not.
        resamples: of the bootstrap.
    """
    targets = answers.targets
    counts = np.stack([np.bincount(t, minlength=answers.classes) for t in targets.T])
    shares = counts / len(targets)
    cells = np.arange(targets.shape[1])
    predicted = np.broadcast_to(shares.argmax(axis=1).astype(targets.dtype), targets.shape)
    constant = dataclasses.replace(answers, predicted=predicted)
    always = dataclasses.replace(answers, predicted=np.ones_like(targets))
    figures = classification_figures(-np.log(shares[cells, targets]), constant, resamples=resamples)
    for i, cell in enumerate(figures["cells"]):
        cell |= _detection(always.cell(i), resamples=resamples)
    return {**figures, **_detection(always, resamples=resamples)}


def _detection(answers: Answers, *, resamples: int) -> dict[str, Any]:
    """{"f1", "precision", "recall"} of class 1, over all cells; {} of more classes than two."""
    if answers.classes != 2:
        return {}
    said, true = answers.predicted == 1, answers.targets == 1
    hits, said, true = (x.sum(axis=1).astype(float) for x in (said & true, said, true))
    ratios = {"f1": (2 * hits, said + true), "precision": (hits, said), "recall": (hits, true)}
    return {
        name: estimate_ratio(part, whole, resamples=resamples).to_json()
        for name, (part, whole) in ratios.items()
    }
