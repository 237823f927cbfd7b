"""What all endless batches have in common: a share of every batch, and a position that is saved."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Process:
    """Which rows of every batch are made here.

    Args:
        index: of the share, 0 <= index < count.
        count: equal shares of a batch. Where the devices of several processes need the same rows,
            these processes have one share together, and each makes it.
    """

    index: int = 0
    count: int = 1


def place_of(process: Process | None) -> tuple[int, int]:
    """Index and count of a share; None = all.

    Raises:
        ValueError: the index is none of 0..count - 1.
    """
    index, count = (process.index, process.count) if process else (0, 1)
    if not 0 <= index < count:
        raise ValueError(f"process {index} of {count}: expected 0 <= index < count")
    return index, count


def saved_position(state: Mapping[str, Any], identity: Mapping[str, Any]) -> int:
    """The position of a saved state.

    Args:
        state: as a loader saved it.
        identity: what it must hold to be of this loader.

    Raises:
        ValueError: it is of another loader; names what differs.
    """
    differing = [
        f"{name}: saved {state.get(name)!r}, now {value!r}"
        for name, value in identity.items()
        if state.get(name) != value
    ]
    if differing or "position" not in state:
        listed = "; ".join(differing) or f"no position in {sorted(state)}"
        raise ValueError(f"data state of another loader: {listed}")
    return state["position"]
