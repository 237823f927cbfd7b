"""How a loop runs: rounds written out or scanned, what they computed kept or computed again."""

from __future__ import annotations

from jaxtyping import Array


def loop_form(
    streams: dict[str, Array], rounds: int, *, unroll: bool | None, remat: bool | None
) -> tuple[bool, bool]:
    """(whether rounds are written out, whether they compute again what they have not saved).

    Args:
        streams: of the loop, (B, N, D) each.
        rounds: to run.
        unroll, remat: what is asked for; None = what is faster for a loop of this size.
    """
    small = rounds * sum(x.size for x in streams.values()) <= 1 << 20
    return small if unroll is None else unroll, not small if remat is None else remat
