"""What a config asks of the training step beside the optimizer."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from ml_collections import ConfigDict

from roam_jax.contracts import ArraySpec


@dataclasses.dataclass(frozen=True)
class StepOptions:
    """How a step goes through its batch, what it averages, which updates it refuses.

    Args:
        accumulate: parts that a batch passes through the model in, one after the other.
        ema_decay: of the average of what trains, 0 = no average.
        spike_factor: an update is refused whose gradient norm is above so many times the running
            mean of accepted ones, 0 = no limit. What is not finite is refused always.

    Raises:
        ValueError: a value out of range, with its config key.
    """

    accumulate: int = 1
    ema_decay: float = 0.0
    spike_factor: float = 0.0

    def __post_init__(self):
        if self.accumulate < 1:
            raise ValueError(f"train.accumulate = {self.accumulate}: expected 1 or more")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(
                f"optim.ema_decay = {self.ema_decay}: expected 0 (no average) or more, below 1"
            )
        if self.spike_factor and not 1 < self.spike_factor < math.inf:
            raise ValueError(
                f"train.spike_factor = {self.spike_factor}: expected 0 (no limit) or a finite "
                "number above 1"
            )

    @classmethod
    def from_config(cls, config: ConfigDict) -> StepOptions:
        """Of a whole config.

        Raises:
            ValueError: as the class.
        """
        return cls(
            accumulate=config.train.accumulate,
            ema_decay=config.optim.ema_decay,
            spike_factor=config.train.spike_factor,
        )

    def check_rows(self, batch_spec: Mapping[str, ArraySpec], *, shards: int) -> None:
        """Refuses batches that do not come apart into equal parts.

        Args:
            batch_spec: of a global batch.
            shards: devices that its rows are split over.

        Raises:
            ValueError: names the field with its rows and the nearest that work.
        """
        unit = self.accumulate * shards
        for name, spec in batch_spec.items():
            rows = spec.shape[0]
            if self.accumulate > 1 and rows % unit:
                below = rows // unit * unit
                near = f"{below} or {below + unit}" if below else f"{unit}"
                raise ValueError(
                    f"train.accumulate = {self.accumulate} with batches of {rows} rows of {name} "
                    f"over {shards} devices: expected a multiple of {unit} rows (nearest: {near}; "
                    "train.batch_size)"
                )


# A whole batch at once, no average, and no limit but that all is finite.
PLAIN = StepOptions()
