"""Norms by group of parameters, for the log: where a gradient is large, and how far a step goes."""

from __future__ import annotations

import jax
import optax

from roam_jax.contracts import Params
from roam_jax.train import names

# Groups by two parts of a name, such as "blocks/loop", where there are no more than so many.
MOST_GROUPS = 12


def groups(params: Params) -> dict[str, list[str]]:
    """Group -> names of its parameters: by the first parts of the name, two of them where few.

    The last part, such as "kernel", is never one of them but where it is the only one.
    """
    parts = {name: name.split("/")[:-1] or [name] for name in names.flatten(params)}
    for length in (2, 1):
        found: dict[str, list[str]] = {}
        for name, first in parts.items():
            found.setdefault("/".join(first[:length]), []).append(name)
        if len(found) <= MOST_GROUPS:
            break
    return found


def group_norms(**trees: Params) -> dict[str, jax.Array]:
    """ "KIND_norm/GROUP" -> norm over a group, for trees of the same names given as KIND=tree."""
    found = {}
    for kind, tree in trees.items():
        leaves = names.flatten(tree)
        for group, members in groups(tree).items():
            found[f"{kind}_norm/{group}"] = optax.global_norm([leaves[n] for n in members])
    return found
