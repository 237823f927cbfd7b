"""Measured quantiles of actions beside published ones, to notice another unit or convention.

A dataset that carries a known name but has centimetres, absolute poses or another rate would train
without an error. Quantiles of the same robot's actions agree within a small factor even on a small
part of the data, and those of another unit do not.
"""

from __future__ import annotations

import dataclasses

from roam_jax.data.declaration import DatasetDeclaration, Published
from roam_jax.data.statistics import VectorStatistics

# Measured over published, and its inverse, from which on a quantile is reported.
FACTOR = 3.0


@dataclasses.dataclass(frozen=True)
class QuantileCheck:
    """One quantile of one dimension.

    Args:
        name: the dimension.
        quantile: "q01" or "q99".
        measured, published: its two values.
    """

    name: str
    quantile: str
    measured: float
    published: float

    @property
    def outside(self) -> bool:
        """Whether measured lies outside of 1/3 to 3 times published."""
        bounds = self.published / FACTOR, self.published * FACTOR
        return not min(bounds) <= self.measured <= max(bounds)


def published_for(
    declaration: DatasetDeclaration, *, dataset: str, stride: int
) -> Published | None:
    """The declared figures where they are of this dataset at its own rate, else None.

    Args:
        declaration: that the dataset is read by.
        dataset: its name, with or without a version, such as "bridge_dataset/1.0.0".
        stride: stored steps that one action spans.
    """
    published = declaration.published
    same = published is not None and dataset.split("/")[0] in published.datasets
    return published if same and stride == 1 else None


def compare_with_published(
    statistics: VectorStatistics, published: Published
) -> list[QuantileCheck]:
    """q01 and q99 of every dimension that is scaled; grippers, which are not, are left out.

    Raises:
        ValueError: the figures are of another number of dimensions.
    """
    if not len(published.q01) == len(published.q99) == len(statistics.spec):
        raise ValueError(
            f"published figures of {len(published.q01)} and {len(published.q99)} dimensions, "
            f"expected {len(statistics.spec)}: {', '.join(statistics.spec.names)}"
        )
    return [
        QuantileCheck(
            statistics.spec.names[i],
            quantile,
            getattr(statistics, quantile)[i],
            getattr(published, quantile)[i],
        )
        for i in statistics.spec.scaled
        for quantile in ("q01", "q99")
    ]
