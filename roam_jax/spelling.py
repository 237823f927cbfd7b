"""What to try instead of a name that does not exist: the hint at the end of an error message."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that looks most like `name`; None where nothing is known."""
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.0)
    return found[0] if found else None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """ "did you mean 'x'?" where a known name is close, else all of them."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"known: {', '.join(known)}" if known else "there is none"
