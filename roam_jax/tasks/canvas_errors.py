"""Errors of predicted regions by row, and how far two predictions lie apart."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num


def row_errors(
    objective: str,
    output: Float[Array, "B N A"],
    target: Array,
    mask: Bool[Array, "B N A"] | None = None,
) -> Float[Array, " B"]:
    """Mean square over cells and numbers, or cross-entropy in nats over cells.

    Args:
        objective: classification, or another.
        output: velocities, values, or logits.
        target: (B, N, A), or tokens (B, N).
        mask: which numbers there are, not of a classification; None = all. A row without any has no
            error.
    """
    if objective == "classification":
        return cross_entropy(output, target).mean(axis=1)
    squares = jnp.square(output - target)
    if mask is None:
        return squares.mean(axis=(1, 2))
    there = mask.sum(axis=(1, 2))
    return jnp.where(mask, squares, 0).sum(axis=(1, 2)) / jnp.maximum(there, 1)


def cross_entropy(logits: Float[Array, "B N A"], tokens: Int[Array, "B N"]) -> Float[Array, "B N"]:
    """-log of the chance of each cell's token, in nats."""
    chances = jax.nn.log_softmax(logits)
    return -jnp.take_along_axis(chances, tokens[..., None], axis=-1)[..., 0]


def distance(
    objective: str,
    output: Float[Array, "B N A"],
    teacher: Float[Array, "B N A"],
    mask: Bool[Array, "B N A"] | None = None,
) -> Float[Array, " B"]:
    """By row, how far an output is from another: mean square, or divergence of the classes.

    Args:
        objective: classification, or another.
        output, teacher: velocities, values, or logits. Of logits it is KL(teacher | output) in
            nats, cross-entropy with the teacher's chances less what no output could mend.
        mask: as for `row_errors`.
    """
    if objective != "classification":
        return row_errors(objective, output, teacher, mask)
    wanted, found = jax.nn.log_softmax(teacher), jax.nn.log_softmax(output)
    return (jnp.exp(wanted) * (wanted - found)).sum(axis=-1).mean(axis=1)


def mean_over(
    errors: Float[Array, " B"],
    counts: Bool[Array, " B"] | Num[Array, " B"],
    *,
    total: Float[Array, ""] | None = None,
) -> Float[Array, ""]:
    """Mean over the rows that count, weighted where these are numbers; 0 where none does.

    Args:
        errors: by row.
        counts: whether a row counts, or how much.
        total: of one of several parts of a batch, what counts come to in the whole batch divided by
            the number of parts, so that the mean over parts is that of the batch.
    """
    counted = jnp.where(counts > 0, errors * counts, 0).sum()
    if total is None:
        return counted / jnp.maximum(counts.sum(), 1)
    return counted / jnp.where(total > 0, total, 1)
