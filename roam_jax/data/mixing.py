"""Which member of a mixture gives the window at each place, in exact proportions.

Grain's own mixing rounds weights to whole numbers of which the smallest is about 100: shares of 0.7
and 0.3 become 0.6997 and 0.3003, and drift apart for as long as a run goes on. Its rule for
interleaving is kept here, on exact fractions.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from fractions import Fraction

# Weights are taken for the nearest fractions with at most this denominator.
FINEST = 10**6


class Proportions:
    """A selection map for `grain.MapDataset.select_from_datasets`, without end.

    At no place is a member as many windows from its share as there are members.

    Args:
        weights: of the members, above 0; in proportion to their sum.
    """

    def __init__(self, weights: Sequence[float]):
        shares = [Fraction(weight).limit_denominator(FINEST) for weight in weights]
        common = math.lcm(*(share.denominator for share in shares))
        self._parts = tuple(int(share * common) for share in shares)

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, place: int) -> tuple[int, int]:
        """(member, how many windows it gave before) at a place.

        The first member takes its share of all places, spread evenly; the next one its share of
        what is left, and so on.
        """
        if place < 0:
            raise IndexError(f"place {place} of a mixture: expected 0 or more")
        rest = sum(self._parts)
        here, after = place, place + 1  # places among those that are left, before and after
        for member, part in enumerate(self._parts[:-1]):
            left_here = here * (rest - part) // rest
            left_after = after * (rest - part) // rest
            if here - left_here != after - left_after:
                return member, here - left_here
            rest, here, after = rest - part, left_here, left_after
        return len(self._parts) - 1, here
