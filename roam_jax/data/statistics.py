"""What robots do and where they are, in figures, and the scaling that follows from them.

Linear dimensions and angles go to [-1, 1] by their 1 % and 99 % quantiles, as OpenVLA scales
actions; grippers stay in 0..1. How the figures are made is in accumulate.py and
cached_statistics.py.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from typing import Any

import numpy as np
from jaxtyping import Float

from roam_jax.contracts import VectorSpec
from roam_jax.data.proprio import nearest_turn

PER_DIMENSION = ("mean", "std", "minimum", "maximum", "q01", "q99")


@dataclasses.dataclass(frozen=True)
class VectorStatistics:
    """Figures over rows of D numbers, such as actions; angles near their circular mean.

    `unnormalise` gives angles between q01 and q99, which may lie outside of (-pi, pi].

    Args:
        spec: the D dimensions.
        count: rows.
        mean, std, minimum, maximum, q01, q99: D values each, in the units of `spec`; std divides
            by `count`.

    Raises:
        ValueError: not D finite numbers.
    """

    spec: VectorSpec
    count: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    minimum: tuple[float, ...]
    maximum: tuple[float, ...]
    q01: tuple[float, ...]
    q99: tuple[float, ...]

    def __post_init__(self):
        for name in PER_DIMENSION:
            values = getattr(self, name)
            if len(values) != len(self.spec) or not np.isfinite(values).all():
                raise ValueError(
                    f"statistics: {name} = {values}, expected {len(self.spec)} finite numbers"
                )

    @classmethod
    def from_fields(cls, fields: Any) -> VectorStatistics:
        """Takes what `dataclasses.asdict` gave, through JSON or not.

        Raises:
            ValueError: other fields than expected.
        """
        _check_fields(cls, fields)
        values = {name: tuple(fields[name]) for name in PER_DIMENSION}
        return cls(**fields | {"spec": _spec_from(fields["spec"])} | values)

    @property
    def constant(self) -> tuple[str, ...]:
        """Dimensions with q99 = q01 that are scaled; 0 when normalised, q01 when restored."""
        _, span, scaled = self._scaling
        return tuple(self.spec.names[i] for i in np.flatnonzero(scaled & (span <= 0)))

    def normalise(self, rows: Float[np.ndarray, "*rows D"]) -> Float[np.ndarray, "*rows D"]:
        """To [-1, 1], clipped where a number lies outside of q01..q99; grippers are untouched.

        An angle is first taken at the turn nearest to the middle of q01..q99, so that one which
        lies outside is clipped to the nearer end.

        Raises:
            ValueError: rows of another length than D.
        """
        turned, (low, span, scaled) = self.turn(rows), self._scaling
        values = 2 * (turned - low) / np.where(span > 0, span, 1) - 1
        values = np.where(span > 0, np.clip(values, -1, 1), 0)
        return np.where(scaled, values, rows).astype(rows.dtype)

    def turn(self, rows: Float[np.ndarray, "*rows D"]) -> Float[np.ndarray, "*rows D"]:
        """The rows with each angle at the turn nearest to the middle of q01..q99; float64.

        Raises:
            ValueError: rows of another length than D.
        """
        self._check_width(rows)
        low, span, _ = self._scaling
        turned, angles = rows.astype(np.float64), self.spec.of_kind("angle")
        turned[..., angles] = nearest_turn(turned[..., angles], (low + span / 2)[angles])
        return turned

    def unnormalise(self, rows: Float[np.ndarray, "*rows D"]) -> Float[np.ndarray, "*rows D"]:
        """Back to the units of `spec`, the inverse of `normalise` for what it did not clip.

        Raises:
            ValueError: rows of another length than D.
        """
        self._check_width(rows)
        low, span, scaled = self._scaling
        return np.where(scaled, (rows + 1) / 2 * span + low, rows).astype(rows.dtype)

    @functools.cached_property
    def _scaling(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """q01, q99 - q01, and which dimensions are scaled by them."""
        low, high = np.asarray(self.q01), np.asarray(self.q99)
        return low, high - low, np.array([kind != "gripper" for kind in self.spec.kinds])

    def _check_width(self, rows: np.ndarray) -> None:
        if rows.shape[-1:] != (len(self.spec),):
            raise ValueError(
                f"rows of shape {rows.shape}, expected {len(self.spec)} numbers each: "
                f"{', '.join(self.spec.names)}"
            )


@dataclasses.dataclass(frozen=True)
class StateStatistics(VectorStatistics):
    """Figures over robot states, whose grippers may open a little further than 1."""

    def normalise(self, rows: Float[np.ndarray, "*rows D"]) -> Float[np.ndarray, "*rows D"]:
        """As for actions; gripper openings clipped to 0..1.

        Raises:
            ValueError: rows of another length than D.
        """
        values, grippers = super().normalise(rows), self.spec.of_kind("gripper")
        values[..., grippers] = np.clip(values[..., grippers], 0, 1)
        return values


@dataclasses.dataclass(frozen=True)
class RobotStatistics:
    """Scaling of all that robots of a train split do and feel.

    Args:
        actions: over target actions.
        proprio: over the states of kept steps.
        episodes: episodes that both come from.
        fingerprint: hash of the records and of the rules that made rows of them.
        root: the dataset's folder when they were last used.
        rate: actions a second.
    """

    actions: VectorStatistics
    proprio: StateStatistics
    episodes: int
    fingerprint: str
    root: str
    rate: float

    def to_json(self) -> str:
        """One JSON object; `from_json` gives back exactly these numbers."""
        return json.dumps(dataclasses.asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> RobotStatistics:
        """Reads what `to_json` wrote.

        Raises:
            ValueError: not JSON, or other fields than expected.
        """
        fields = json.loads(text)
        _check_fields(cls, fields)
        parts = {"actions": VectorStatistics, "proprio": StateStatistics}
        return cls(
            **fields | {name: kind.from_fields(fields[name]) for name, kind in parts.items()}
        )


def require_finite(rows: np.ndarray, spec: VectorSpec, *, where: str) -> None:
    """Refuses rows with NaN or infinite numbers.

    Raises:
        ValueError: names the dimensions that have some.
    """
    finite = np.isfinite(rows).all(axis=0)
    if not finite.all():
        named = ", ".join(n for n, good in zip(spec.names, finite, strict=True) if not good)
        raise ValueError(f"{where}: NaN or infinite numbers in {named}; expected finite ones")


def _check_fields(kind: type, fields: Any) -> None:
    expected = {field.name for field in dataclasses.fields(kind)}
    if not isinstance(fields, dict) or set(fields) != expected:
        raise ValueError(f"statistics: expected a JSON object with {sorted(expected)}")


def _spec_from(fields: Any) -> VectorSpec:
    _check_fields(VectorSpec, fields)
    return VectorSpec(**{name: tuple(values) for name, values in fields.items()})
