"""Actions and states of cached windows: stored in physical units, scaled where they are read.

A cache then outlives statistics: a run that resumes with its own, or a mixture that puts the
dimensions of several robots together, reads the same files.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

from roam_jax.contracts import Batch
from roam_jax.data.statistics import StateStatistics, VectorStatistics
from roam_jax.data.windows import WindowSource, place_dimensions

ACTIONS = ("past_actions", "action_chunk")
STATES = ("observed_proprio", "future_proprio")
REWARDS = ("observed_reward", "future_reward")
ROBOT_FIELDS = (*ACTIONS, *STATES, *REWARDS)


class _AsStored(StateStatistics):
    """Scales nothing."""

    def normalise(self, rows: Float[np.ndarray, "*rows D"]) -> Float[np.ndarray, "*rows D"]:
        """The rows as they are."""
        return rows


def in_physical_units(source: WindowSource) -> WindowSource:
    """The same windows with actions and states as they were stored or relabelled, unscaled."""
    kinds = {
        name: _AsStored(**{f.name: getattr(scale, f.name) for f in dataclasses.fields(scale)})
        for name, scale in (
            ("actions", source.statistics.actions),
            ("proprio", source.statistics.proprio),
        )
    }
    return source.with_statistics(dataclasses.replace(source.statistics, **kinds))


def own_dimensions(source: WindowSource, window: Batch) -> dict[str, np.ndarray]:
    """Robot fields of a window in this dataset's own dimensions, without those of a mixture."""
    places = {
        **dict.fromkeys(ACTIONS, source.action_places),
        **dict.fromkeys(STATES, source.proprio_places),
    }
    own = {name: window[name][..., places[name]] for name in places}
    return own | {name: window[name] for name in REWARDS}


class Scaling:
    """From stored robot fields to those of a batch: the run's statistics and dimensions.

    Args:
        source: windows of the run.
        template: one window of it, for the sizes and masks of a mixture.
    """

    def __init__(self, source: WindowSource, template: Batch):
        self._kinds = [
            (ACTIONS, source.statistics.actions, source.action_places),
            (STATES, source.statistics.proprio, source.proprio_places),
        ]
        self._widths = {name: template[name].shape[-1] for name in (*ACTIONS, *STATES)}
        masks = ("action_mask", "proprio_mask")
        self._masks = {name: template[name] for name in masks if name in template}

    def __call__(self, stored: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Robot fields and masks of a window."""
        found = {name: stored[name] for name in REWARDS} | self._masks
        for names, statistics, places in self._kinds:
            found |= {name: self._place(name, stored, statistics, places) for name in names}
        return found

    def _place(
        self,
        name: str,
        stored: Mapping[str, np.ndarray],
        statistics: VectorStatistics,
        places: list[int],
    ) -> np.ndarray:
        rows = statistics.normalise(stored[name])
        return place_dimensions(rows, places, self._widths[name])
