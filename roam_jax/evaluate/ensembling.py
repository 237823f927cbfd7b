"""From chunks of actions to the action of a step: replanning and temporal ensembling.

ACT (Zhao et al. 2023, Algorithm 2) predicts a chunk at every step and averages all predictions of
one step, the i-th oldest with weight exp(-m i). Here a chunk may be predicted every k steps only,
which costs k times less; with k = 1 it is ACT's.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import ml_collections
import numpy as np
from jaxtyping import Float


@dataclasses.dataclass(frozen=True)
class Chunking:
    """How chunks become actions.

    Args:
        replan: steps between predictions, at most the actions of a chunk.
        ensembling: whether overlapping chunks are averaged; else the newest counts alone.
        decay: m of the weights, 0 or more; 0 is the plain mean.

    Raises:
        ValueError: `replan` below 1, or a decay that is negative or not finite.
    """

    replan: int = 1
    ensembling: bool = False
    decay: float = 0.1

    def __post_init__(self):
        if self.replan < 1:
            raise ValueError(f"eval.replan = {self.replan}: expected at least 1 step")
        if not 0 <= self.decay < math.inf:
            raise ValueError(
                f"eval.ensemble_decay = {self.decay}: expected 0 (the plain mean) or more"
            )

    @classmethod
    def of(cls, config: ml_collections.ConfigDict) -> Chunking:
        """Reads the section `eval` of a whole config.

        Raises:
            ValueError: a value is out of range.
        """
        settings = config.eval
        return cls(settings.replan, settings.ensembling, settings.ensemble_decay)


def ensemble_weights(count: int, decay: float) -> Float[np.ndarray, " count"]:
    """exp(-decay i) of predictions from the oldest (i = 0) on, of sum 1."""
    weights = np.exp(-decay * np.arange(count))
    return weights / weights.sum()


class ActionBuffer:
    """Chunks that still tell something of the present step or a later one; of many worlds at once.

    Args:
        chunking: how they are combined.
    """

    def __init__(self, chunking: Chunking):
        self._chunking = chunking
        self._step = 0
        # (step that its first action is for, actions), the oldest first.
        self._chunks: list[tuple[int, np.ndarray]] = []

    def next(self, predict: Callable[[], Float[np.ndarray, "B P J"]]) -> Float[np.ndarray, "B J"]:
        """The actions of the present step; then the step is over.

        Args:
            predict: called where a new chunk is due; its first actions are for the present step.

        Raises:
            ValueError: chunks that are shorter than the steps to the next one.
        """
        now, chunking = self._step, self._chunking
        if now % chunking.replan == 0:
            chunk = np.asarray(predict(), np.float64)
            if chunk.shape[1] < chunking.replan:
                raise ValueError(
                    f"eval.replan = {chunking.replan}: a chunk has {chunk.shape[1]} actions, "
                    "expected no more steps between chunks than that"
                )
            self._chunks.append((now, chunk))
        self._chunks = [(s, chunk) for s, chunk in self._chunks if now < s + chunk.shape[1]]
        self._step += 1
        told = np.stack([chunk[:, now - start] for start, chunk in self._chunks])
        if not chunking.ensembling:
            return told[-1]
        return np.tensordot(ensemble_weights(len(told), chunking.decay), told, axes=1)
