"""Intra-loop self-distillation: the deepest round teaches an earlier exit in the same step.

At every step an exit s is drawn from the rounds before the last. The loss is

    L(all rounds) + lam L(s rounds) + (1 - lam) D(s rounds, stop_gradient(all rounds)),

with L the loss on the data, D the same kind of error between the two outputs, and lam falling from
1 to 0 over training: first the exit learns from the data, later from the deepest round. One run
then serves every number of rounds.

Source: Elastic Looped Transformers (arXiv 2604.09168), Intra-Loop Self Distillation.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Errors = Mapping[str, Float[Array, ""]]


def student_exit(rng: jax.Array, rounds: int) -> Int[Array, ""]:
    """The round after which the student is read, uniform over 1..rounds - 1.

    Args:
        rng: key.
        rounds: of the teacher.

    Raises:
        ValueError: with one round there is no earlier exit.
    """
    if rounds < 2:
        raise ValueError(f"rounds = {rounds}: expected at least 2, the student leaves before")
    return jax.random.randint(rng, (), 1, rounds)


def mix(step: Int[Array, ""] | int | None, steps: int) -> Float[Array, ""]:
    """lam, the share of the data in what the student learns from: 1 at step 0, 0 at the end.

    Args:
        step: finished updates; None where nobody counts them, which is 1.
        steps: of the training, `train.steps`.
    """
    if step is None:
        return jnp.ones((), jnp.float32)
    done = jnp.asarray(step, jnp.float32) / steps
    return jnp.clip(1 - done, 0.0, 1.0)


def blend(data: Errors, distance: Errors, *, share: Float[Array, ""]) -> dict[str, Array]:
    """What the student adds to each part of the loss: share * data + (1 - share) * distance.

    Args:
        data: errors of the student against the data, by part.
        distance: of the same parts, against the teacher's outputs, which carry no gradient.
        share: lam, from `mix`.
    """
    return {name: share * error + (1 - share) * distance[name] for name, error in data.items()}
