"""What the multimodal scene asks, in eight words, and its four answers.

"start at the red shape follow its cores": the colours after 1, 2, 3, 4 hops, where a hop leads from
a shape to the one that has the colour of its core. "where will the red shape be later on": the
quarters of the frame in which it is in frames 2, 3, 4 and 5, of which the last two have no picture.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from roam_jax.data.scene_drawing import COLOURS
from roam_jax.data.scene_random import order_of

CHOICES = ("chain", "future", "both")
STEPS = 4
# Frames in which the named shape is looked for; the video has frames 0 to 3.
LATER = (2, 3, 4, 5)
QUARTERS = ("top-left", "top-right", "bottom-left", "bottom-right")
ANSWERS = (*COLOURS, *QUARTERS)
# The place of the colour in both sentences is that of the gap.
CHAIN = ("start", "at", "the", "_", "shape", "follow", "its", "cores")
FUTURE = ("where", "will", "the", "_", "shape", "be", "later", "on")
LENGTH, GAP = len(CHAIN), CHAIN.index("_")
WORDS = tuple(dict.fromkeys((*ANSWERS, *(w for w in (*CHAIN, *FUTURE) if w != "_"))))


class Question(NamedTuple):
    """`words` (8,) and `answers` (4,) int32; `named` () the shape; `leads_to` (n,) its cores."""

    words: Array
    answers: Array
    named: Array
    leads_to: Array


def step_names(choice: str) -> tuple[str, ...]:
    """What the four answers are called."""
    hops = ("1 hop", "2 hops", "3 hops", "4 hops")
    frames = tuple(f"frame {frame}" for frame in LATER)
    both = tuple(f"{hop} / {frame}" for hop, frame in zip(hops, frames, strict=True))
    return {"chain": hops, "future": frames, "both": both}[choice]


def ask(
    later: Float[Array, "4 n 2"],
    colours: Int[Array, " n"],
    order: Float[Array, " n"],
    cores: Float[Array, " n"],
    kind: Float[Array, ""],
    *,
    choice: str,
) -> Question:
    """A question about one of n shapes, which are at `later` in the frames `LATER`.

    The cores are the same whatever is asked. From the named shape they lead past as many different
    shapes as four hops can, and then anywhere but to the shape itself.

    Args:
        later: places in widths of the frame.
        colours: numbers in `COLOURS`.
        order, cores, kind: random numbers in [0, 1).
        choice: one of `CHOICES`.
    """
    order = order_of(order)
    leads_to = _cores(order, cores)
    named = order[0]
    hops = [named]
    for _ in range(STEPS):
        hops.append(leads_to[hops[-1]])
    chain = colours[jnp.stack(hops[1:])]
    future = len(COLOURS) + quarter(later[:, named])
    is_future = {"chain": jnp.array(False), "future": jnp.array(True)}.get(choice, kind < 0.5)
    words = jnp.where(is_future, _tokens(FUTURE), _tokens(CHAIN)).at[GAP].set(colours[named])
    answers = jnp.where(is_future, future, chain)
    return Question(words.astype(jnp.int32), answers.astype(jnp.int32), named, leads_to)


def quarter(places: Float[Array, "... 2"]) -> Int[Array, "..."]:
    """Number in `QUARTERS` of the quarter of the frame that each place lies in."""
    right, bottom = places[..., 0] > 0.5, places[..., 1] > 0.5
    return 2 * bottom.astype(jnp.int32) + right.astype(jnp.int32)


def _cores(order: Int[Array, " n"], numbers: Float[Array, " n"]) -> Int[Array, " n"]:
    """For each shape the one whose colour its core has.

    Along `order` each leads to the next, for four hops or until the last; the others lead to any
    but themselves, as random numbers in [0, 1) say.
    """
    n = len(order)
    rank = jnp.arange(n)
    anywhere = (rank + 1 + (numbers * (n - 1)).astype(jnp.int32)) % n
    following = jnp.where(rank < min(STEPS, n - 1), (rank + 1) % n, anywhere)
    rank_of = (order == rank[:, None]).argmax(axis=1)
    return order[following][rank_of]


def _tokens(sentence: tuple[str, ...]) -> Array:
    """Numbers of words; the gap's is that of "the", until the colour takes its place."""
    return jnp.array([WORDS.index("the" if word == "_" else word) for word in sentence])
