"""Checks of the values that name a scene."""

from __future__ import annotations

from roam_jax.canvas.layout import whole_number


def check_number(key: str, value: int, allowed: range, *, of: str) -> None:
    """Refuses a number that a scene cannot have.

    Raises:
        ValueError: it is no whole number, or out of range.
    """
    if whole_number(key, value) not in allowed:
        raise ValueError(f"{key} = {value}: {of} has {allowed[0]} to {allowed[-1]}")
