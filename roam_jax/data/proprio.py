"""Robot state and reward at latent frames, and angles that do not jump.

Euler angles lie in (-pi, pi] and jump by a turn where the arm passes the seam (published
relabelling of Bridge without wrapping has yaw changes of 6.28). Each angle is therefore taken at
the turn nearest to a fixed centre, the middle of what the train split holds: the seam moves half a
turn away from the data, and a value depends on its own step alone. Unwrapping along an episode
would need its history, and would leave episodes that begin on either side of the seam a turn apart.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from roam_jax.contracts import FRAMES_PER_LATENT, VectorSpec


def nearest_turn(
    angle: Float[np.ndarray, "*rows A"], centre: Float[np.ndarray, " A"]
) -> Float[np.ndarray, "*rows A"]:
    """The same angles within half a turn of their centre, in rad; float64.

    What lies there already keeps every bit.
    """
    turns = np.round((angle - centre) / (2 * np.pi))
    return angle - 2 * np.pi * turns


class CircularMean:
    """Direction of the mean unit vector of each angle of rows that come in pieces.

    Args:
        spec: of the rows; other dimensions are not looked at.
    """

    def __init__(self, spec: VectorSpec):
        self._places = spec.of_kind("angle")
        self._sines = np.zeros(len(self._places))
        self._cosines = np.zeros(len(self._places))

    def update(self, rows: Float[np.ndarray, "rows D"]) -> None:
        """Counts rows, angles in rad."""
        angles = rows[:, self._places].astype(np.float64)
        self._sines += np.sin(angles).sum(axis=0)
        self._cosines += np.cos(angles).sum(axis=0)

    def finish(self) -> Float[np.ndarray, " A"]:
        """In (-pi, pi]; 0 where the vectors cancel exactly, or there is none."""
        return np.arctan2(self._sines, self._cosines)


def latent_states(state: Float[np.ndarray, "T A"]) -> Float[np.ndarray, "F A"]:
    """States at environment frames 0, 4, ..: the last that each latent frame covers."""
    return state[::FRAMES_PER_LATENT]


def latent_rewards(reward: Float[np.ndarray, " T"]) -> Float[np.ndarray, "F 1"]:
    """Rewards summed over the environment frames that each latent frame covers."""
    rest = reward[1:].reshape(-1, FRAMES_PER_LATENT).sum(axis=1)
    return np.concatenate([reward[:1], rest])[:, None]
