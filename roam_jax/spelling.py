"""What to try instead of a name that does not exist: the hint at the end of an error message."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that looks most like `name`; None where nothing is known."""
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.0)
    return found[0] if found else None


def check_choice(key: str, value: str, known: Iterable[str]) -> None:
    """Refuses a value that is not among the known ones, and names them all.

    Raises:
        ValueError: `value` is unknown.
    """
    known = list(known)
    if value not in known:
        close = difflib.get_close_matches(value, known, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"{key} = {value!r}: expected one of {', '.join(known)}{hint}")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """ "did you mean 'x'?" where a known name is close, else all of them."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"known: {', '.join(known)}" if known else "there is none"
