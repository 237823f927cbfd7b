"""How many heads run together."""

from __future__ import annotations


def largest_divisor(number: int, *, most: int) -> int:
    """The largest divisor that is not above `most`; at least 1."""
    return max(n for n in range(1, number + 1) if number % n == 0 and (n == 1 or n <= most))
