"""What varies between episodes of a world, drawn for many at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float, Int


@dataclasses.dataclass(frozen=True)
class Draws:
    """Starts of B episodes; where a world has no such thing, zeros.

    Args:
        joints: positions of the driven joints at the start in rad or m, which is also commanded.
        goal: a point in m.
        prop: x, y (m) and yaw (rad) of the prop at the start.
        shape: of the prop, places in `tabletop.SHAPES`.
        size: half width of the prop in m.
        mass: of the prop or the torso in kg.
        friction: dry friction of a prop on the table in N; coefficient of a walker's feet.
        rgb: of the prop, a reached goal or the torso, in [0, 1].
    """

    joints: Float[np.ndarray, "B J"]
    goal: Float[np.ndarray, "B 3"]
    prop: Float[np.ndarray, "B 3"]
    shape: Int[np.ndarray, " B"]
    size: Float[np.ndarray, " B"]
    mass: Float[np.ndarray, " B"]
    friction: Float[np.ndarray, " B"]
    rgb: Float[np.ndarray, "B 3"]

    def __len__(self) -> int:
        return len(self.joints)

    def __getitem__(self, rows: slice) -> Draws:
        """The episodes of a slice."""
        return self.take(np.arange(len(self))[rows])

    def take(self, rows: Int[np.ndarray, " M"] | list[int]) -> Draws:
        """The episodes at these places."""
        rows = np.asarray(rows)
        return Draws(**{f.name: getattr(self, f.name)[rows] for f in dataclasses.fields(self)})


def no_draws(count: int, joints: Float[np.ndarray, "B J"]) -> dict[str, np.ndarray]:
    """The fields of `Draws` with nothing but joints."""
    return {
        "joints": joints,
        "goal": np.zeros((count, 3)),
        "prop": np.zeros((count, 3)),
        "shape": np.zeros(count, np.int64),
        "size": np.zeros(count),
        "mass": np.zeros(count),
        "friction": np.zeros(count),
        "rgb": np.zeros((count, 3)),
    }


def rejected(
    draw: Callable[[int], dict[str, np.ndarray]],
    accept: Callable[[dict[str, np.ndarray]], Bool[np.ndarray, " B"]],
    count: int,
) -> dict[str, np.ndarray]:
    """Rejection sampling: draws `count` rows that are accepted, in the order that they came.

    Raises:
        ValueError: none are asked for.
    """
    if count < 1:
        raise ValueError(f"{count} episodes to draw, expected at least 1")
    kept: list[dict[str, np.ndarray]] = []
    found = 0
    while found < count:
        rows = draw(2 * (count - found) + 8)
        good = np.flatnonzero(accept(rows))[: count - found]
        kept.append({name: value[good] for name, value in rows.items()})
        found += len(good)
    return {name: np.concatenate([part[name] for part in kept]) for name in kept[0]}
