"""The worlds by name: environments and the bodies that can be in them."""

from __future__ import annotations

import functools

from roam_jax.sim.bodies import BODIES
from roam_jax.sim.table_world import TableWorld
from roam_jax.sim.walk_world import WalkWorld
from roam_jax.sim.walkers import WALKERS
from roam_jax.sim.world import World
from roam_jax.spelling import nearest

__all__ = ["WORLDS", "World", "make_world"]

WORLDS: dict[str, tuple[str, ...]] = {
    "reach": tuple(BODIES),
    "push": tuple(BODIES),
    "walk": tuple(WALKERS),
}


@functools.cache
def make_world(environment: str, body: str) -> World:
    """The world of this environment and body, always the same one.

    Raises:
        ValueError: there is no such environment, or not with this body.
    """
    _check("environment", environment, tuple(WORLDS))
    _check(f"body of {environment}", body, WORLDS[environment])
    return (WalkWorld if environment == "walk" else TableWorld)(environment, body)


def _check(what: str, name: str, known: tuple[str, ...]) -> None:
    if name not in known:
        hint = f"did you mean {nearest(name, known)!r}?"
        raise ValueError(f"{what} {name!r}: expected one of {known} ({hint})")
