"""What to try instead of a name that does not exist: the hint at the end of an error message."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

# From this likeness on, of 0 to 1, a name is taken for a misspelt one.
CLOSE = 0.6


def nearest(name: str, known: Iterable[str], *, cutoff: float = 0.0) -> str | None:
    """The known name that looks most like `name`; None where none is as like as `cutoff`."""
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return found[0] if found else None


def check_choice(key: str, value: str, known: Iterable[str]) -> None:
    """Refuses a value that is not among the known ones, and names them all.

    Raises:
        ValueError: `value` is unknown.
    """
    known = list(known)
    if value not in known:
        close = nearest(value, known, cutoff=CLOSE)
        hint = f"; did you mean {close!r}?" if close else ""
        raise ValueError(f"{key} = {value!r}: expected one of {', '.join(known)}{hint}")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """ "did you mean 'x'?" where a known name is close, else all of them."""
    known = sorted(known)
    close = nearest(name, known, cutoff=CLOSE)
    if close:
        return f"did you mean {close!r}?"
    return f"known: {', '.join(known)}" if known else "there is none"
