"""Which stream lies where on the canvas.

A canvas is a (T, H, W) grid of d_model-wide vectors; a layout names boxes of it. Names and
meanings follow canvas-engineering (`CanvasLayout`, `RegionSpec`), so that a user can move; what it
accepts in silence (overlaps, boxes off the grid, unknown names) is refused here.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from roam_jax.spelling import did_you_mean


def whole_number(name: str, value: Any) -> int:
    """A Python or numpy integer as int.

    Raises:
        ValueError: it is anything else, a bool or 2.0 included.
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise ValueError(f"{name} {value!r}: expected a whole number")
    return int(value)


@dataclasses.dataclass(frozen=True)
class RegionSpec:
    """A box of the canvas that carries one stream.

    Args:
        bounds: half-open (t0, t1, h0, h1, w0, w1).
        period: real frames between two canvas frames of the region.
        is_output: whether the region is predicted.
        loss_weight: weight of its cells in the loss, where it is predicted.
        length: how many cells of the box carry tokens, in row-major order; None = all.
        default_attn: edge kind of the region's queries, where a connection names none.

    Raises:
        ValueError: a value is of a wrong type or out of range.
    """

    bounds: tuple[int, int, int, int, int, int]
    period: int = 1
    is_output: bool = True
    loss_weight: float = 1.0
    length: int | None = None
    default_attn: str = "cross_attention"

    def __post_init__(self):
        if len(self.bounds) != 6:
            raise ValueError(f"bounds {self.bounds}: expected (t0, t1, h0, h1, w0, w1)")
        bounds = tuple(whole_number(f"bounds {self.bounds}:", value) for value in self.bounds)
        object.__setattr__(self, "bounds", bounds)
        object.__setattr__(self, "period", whole_number("period", self.period))
        if self.length is not None:
            object.__setattr__(self, "length", whole_number("length", self.length))
        if not isinstance(self.is_output, bool):
            raise ValueError(f"is_output {self.is_output!r}: expected True or False")
        if self.period < 1:
            raise ValueError(f"period {self.period}: expected at least 1")
        if not 0 <= self.loss_weight < math.inf:
            raise ValueError(
                f"loss_weight {self.loss_weight}: expected a finite number, at least 0"
            )
        low, high = self.bounds[::2], self.bounds[1::2]
        if any(a < 0 or a >= b for a, b in zip(low, high, strict=True)):
            raise ValueError(f"bounds {self.bounds}: expected 0 <= low < high on every axis")
        if self.length is not None and not 0 < self.length <= self.volume:
            raise ValueError(f"length {self.length}: the box {self.bounds} has {self.volume} cells")

    @property
    def shape(self) -> tuple[int, int, int]:
        """Extent of the box along (T, H, W)."""
        t0, t1, h0, h1, w0, w1 = self.bounds
        return t1 - t0, h1 - h0, w1 - w0

    @property
    def volume(self) -> int:
        """Cells of the box, with or without tokens."""
        return int(np.prod(self.shape))

    @property
    def frames(self) -> range:
        """Canvas frames in which the region has tokens; `length` may leave the last ones empty."""
        t0, t1 = self.bounds[:2]
        area = self.volume // (t1 - t0)
        return range(t0, t1 if self.length is None else t0 + -(-self.length // area))


@dataclasses.dataclass(frozen=True)
class CanvasLayout:
    """A canvas grid and its named regions.

    Args:
        T, H, W: size of the grid.
        d_model: width of a cell.
        regions: name -> `RegionSpec`, or plain bounds. Regions may not overlap.
        t_current: first predicted canvas frame.

    Raises:
        ValueError: a size is no whole number above 0, a region leaves the grid, two regions
            overlap, `t_current` is off the grid.
    """

    T: int
    H: int
    W: int
    d_model: int
    regions: Mapping[str, RegionSpec | tuple[int, int, int, int, int, int]]
    t_current: int = 0

    def __post_init__(self):
        specs = {name: _spec(name, given) for name, given in self.regions.items()}
        object.__setattr__(self, "regions", specs)
        for name in ("T", "H", "W", "d_model"):
            object.__setattr__(self, name, whole_number(name, getattr(self, name)))
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)}: expected at least 1")
        object.__setattr__(self, "t_current", whole_number("t_current", self.t_current))
        if not 0 <= self.t_current <= self.T:
            raise ValueError(f"t_current {self.t_current}: expected 0..{self.T}")
        owner = np.full(self.num_positions, -1, np.int32)
        names = list(specs)
        for number, (name, spec) in enumerate(specs.items()):
            _, t1, _, h1, _, w1 = spec.bounds
            if t1 > self.T or h1 > self.H or w1 > self.W:
                raise ValueError(
                    f"region {name!r} with bounds {spec.bounds} leaves the canvas "
                    f"({self.T}, {self.H}, {self.W})"
                )
            cells = self._box(spec.bounds)
            if (owner[cells] >= 0).any():
                other = names[owner[cells].max()]
                raise ValueError(f"regions {other!r} and {name!r} overlap")
            owner[cells] = number

    def _box(self, bounds) -> np.ndarray:
        t0, t1, h0, h1, w0, w1 = bounds
        grid = np.arange(self.num_positions).reshape(self.T, self.H, self.W)
        return grid[t0:t1, h0:h1, w0:w1].reshape(-1)

    @property
    def num_positions(self) -> int:
        """Cells of the grid, T * H * W."""
        return self.T * self.H * self.W

    def region_spec(self, name: str) -> RegionSpec:
        """The declaration of a region; an unknown name raises with the nearest one."""
        if name not in self.regions:
            raise ValueError(f"unknown region {name!r}: {did_you_mean(name, self.regions)}")
        return self.regions[name]

    def region_numel(self, name: str) -> int:
        """Cells of a region that carry tokens."""
        spec = self.region_spec(name)
        return spec.volume if spec.length is None else spec.length

    def region_indices(self, name: str) -> np.ndarray:
        """Flat indices t * H * W + h * W + w of the region's tokens, (n,) int64."""
        return self._box(self.region_spec(name).bounds)[: self.region_numel(name)]

    def region_indices_at_t(self, name: str, t: int) -> np.ndarray:
        """The same for one absolute canvas frame; empty where the region has none."""
        indices = self.region_indices(name)
        return indices[indices // (self.H * self.W) == t]

    def output_mask(self) -> np.ndarray:
        """Flat indices of all cells from `t_current` on."""
        return np.arange(self.t_current * self.H * self.W, self.num_positions)

    def loss_weight_mask(self) -> np.ndarray:
        """(num_positions,) float32: loss weight of output regions' tokens, 0 elsewhere."""
        weights = np.zeros(self.num_positions, np.float32)
        for name, spec in self.regions.items():
            if spec.is_output:
                weights[self.region_indices(name)] = spec.loss_weight
        return weights

    def real_frame(self, name: str, canvas_t: int) -> int:
        """Real frame of a canvas frame counted from the region's start."""
        return canvas_t * self.region_spec(name).period

    def canvas_frame(self, name: str, real_t: int) -> int | None:
        """Canvas frame, from the region's start, of a real frame; None between two updates."""
        spec = self.region_spec(name)
        frame, rest = divmod(real_t, spec.period)
        return frame if rest == 0 and 0 <= frame < spec.shape[0] else None


def _spec(name: str, given: RegionSpec | tuple[int, ...]) -> RegionSpec:
    """A region as it is declared, or from bounds alone."""
    if isinstance(given, RegionSpec):
        return given
    try:
        return RegionSpec(bounds=tuple(given))
    except ValueError as error:
        raise ValueError(f"region {name!r}: {error}") from error
