"""Cells that may stop before the last round.

After every round a cell has a learned chance to stop. What a loop returns is the mean of the states
over when the cell stops; with mass p_r still running when round r begins it is

    h_0 + sum_r p_r (h_r - h_(r-1)),

which is sum_r w_r h_r with w_r the mass that stops after round r, all that is left after the last.
In this form it is what the loop would return if it ended here, after every round, and exactly h_1
where later rounds change nothing. Below a threshold the rest of a cell's mass stops at once and the
cell is never changed again: then only cells that still run need the block.

Source: adaptive computation time (Graves 2016, arXiv 1603.08983: mean-field states, ponder cost);
PonderNet (Banino, Balaguer, Blundell 2021, arXiv 2107.05407: a chance to stop after each step).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from roam_jax.model.loop_rows import token_value

# Of N cells in a row of the batch, so many are computed: the first of these that is enough.
BUCKETS = (1.0, 0.5, 0.25, 0.125, 0.0)


def stopping_chance(row: dict[str, Array], state: Float[Array, "B N D"]) -> Float[Array, "B N 1"]:
    """sigmoid(a_r + w_r . LN(h)), the chance that a cell which runs stops after the round.

    Args:
        row: one round's parameters, from `LoopRows`.
        state: h after the round.
    """
    return jax.nn.sigmoid(row["halt"] + token_value(row["halt_token"], state))


def mass_left(
    running: Float[Array, "B N 1"], chance: Float[Array, "B N 1"], *, threshold: float | None
) -> Float[Array, "B N 1"]:
    """What still runs after a round.

    Args:
        running: what ran when it began.
        chance: from `stopping_chance`.
        threshold: stopped mass from which a cell stops altogether; None = never.
    """
    left = running * (1 - chance)
    return left if threshold is None else jnp.where(1 - left >= threshold, 0.0, left)


def bucket_sizes(cells: int) -> tuple[int, ...]:
    """Numbers of cells that the block is compiled for, falling from all to none."""
    sizes = (-int(-share * cells // 1) for share in BUCKETS)
    return tuple(dict.fromkeys(sizes))


def choose_bucket(runs: Bool[Array, "B N"], sizes: tuple[int, ...]) -> Int[Array, ""]:
    """Index of the smallest of `sizes` (falling) that holds the running cells of every row."""
    most = jnp.max(jnp.sum(runs, axis=1))
    return jnp.sum(most <= jnp.asarray(sizes)).astype(jnp.int32) - 1


def running_first(runs: Bool[Array, "B N"], count: int) -> Int[Array, "B M"]:
    """Places of the cells that run, in order, then of others, `count` in all."""
    return jnp.argsort(~runs, axis=1, stable=True)[:, :count].astype(jnp.int32)
