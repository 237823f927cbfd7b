"""Parameter names: "/"-joined paths of a nested dict, and regular expressions over them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from flax import traverse_util

from roam_jax.spelling import nearest


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dict -> {"blocks/loop/gate": leaf}, in the tree's order."""
    return traverse_util.flatten_dict(dict(tree), sep="/")


def unflatten(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Inverse of `flatten`."""
    return traverse_util.unflatten_dict(dict(leaves), sep="/")


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether any of the regular expressions is found in the name."""
    return any(re.search(pattern, name) for pattern in patterns)


def require_matches(patterns: Sequence[str], names: Iterable[str], *, what: str) -> None:
    """Refuse patterns that match none of the names.

    Args:
        patterns: regular expressions, searched in the names.
        names: parameter names.
        what: what the patterns are, for the message ("Task.trainable").

    Raises:
        ValueError: naming each such pattern and the parameter name nearest to it.
    """
    names = list(names)
    dead = [pattern for pattern in patterns if not any(re.search(pattern, n) for n in names)]
    if dead:
        listed = ", ".join(
            f"{pattern!r} (nearest name: {nearest(pattern, names)})" for pattern in dead
        )
        raise ValueError(f"{what}: no parameter matches {listed}")
