"""Which checkpoints of a run stay: the last ones, the best ones, one every so many hours.

The three rules are Orbax's preservation policies; a checkpoint stays if any of them wants it.
"""

from __future__ import annotations

import dataclasses
import datetime
import math
from collections.abc import Mapping, Sequence

from ml_collections import ConfigDict
from orbax.checkpoint import checkpoint_managers as policies

MODES = ("min", "max")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Keep:
    """What is kept.

    Args:
        last: so many of the latest steps, 1 or more.
        best: so many of those with the best `metric`; of equal ones the later.
        metric: its name in the metrics that a step is saved with. Steps without it, or where it
            is not finite, are none of the best.
        mode: whether the best one is the "min" or the "max".
        hours: the first step, and from then on the next one after so many hours; 0 = none.

    Raises:
        ValueError: a number or a mode that is out of range; names the config's key.
    """

    last: int = 2
    best: int = 0
    metric: str = "eval/action_mse"
    mode: str = "min"
    hours: float = 0.0

    def __post_init__(self):
        for key, value, least in (
            ("train.keep", self.last, 1),
            ("train.keep_best", self.best, 0),
            ("train.keep_hours", self.hours, 0),
        ):
            if value < least:
                raise ValueError(f"{key} = {value}: expected {least} or more")
        if self.mode not in MODES:
            raise ValueError(
                f"train.best_mode = {self.mode!r}: expected one of {', '.join(map(repr, MODES))}"
            )
        if self.best and not self.metric:
            raise ValueError("train.best_metric = '': expected a name of metrics.jsonl")

    @classmethod
    def from_config(cls, train: ConfigDict) -> Keep:
        """From the section `train` of a config."""
        return cls(
            last=train.keep,
            best=train.keep_best,
            metric=train.best_metric,
            mode=train.best_mode,
            hours=train.keep_hours,
        )

    def chosen(self, saved: Sequence[Saved]) -> set[int]:
        """The steps that stay.

        Args:
            saved: all checkpoints, oldest first.
        """
        rules = [policies.LatestN(self.last)]
        if self.best:
            rules.append(
                policies.BestN(
                    get_metric_fn=lambda metrics: metrics[self.metric],
                    reverse=self.mode == "min",  # it keeps the end of the sorted list
                    n=self.best,
                    keep_checkpoints_without_metrics=False,
                )
            )
        if self.hours:
            rules.append(policies.EveryNSeconds(interval_secs=3600 * self.hours))
        infos = [
            one if self._measured(one) else dataclasses.replace(one, metrics=None) for one in saved
        ]
        flags = policies.AnyPreservationPolicy(rules).should_preserve(
            infos, context=policies.PreservationContext()
        )
        return {one.step for one, stays in zip(saved, flags, strict=True) if stays}

    def _measured(self, one: Saved) -> bool:
        value = (one.metrics or {}).get(self.metric)
        return value is not None and math.isfinite(value)


@dataclasses.dataclass(frozen=True)
class Saved:
    """What the rules know of a checkpoint, as Orbax's `PolicyCheckpointInfo`.

    Args:
        step: finished updates.
        time: when it was saved, with its zone.
        metrics: that it was saved with.
    """

    step: int
    time: datetime.datetime
    metrics: Mapping[str, float | None] | None
