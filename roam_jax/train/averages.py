"""What a step keeps beside parameters and moments: an average of what trains, and what spikes are.

The average is the exponential one of Polyak's (here without a correction for its start, which is
the initial parameters). A spike is a gradient whose norm is far above the mean of those before it.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from roam_jax.contracts import Params

# Accepted updates before any is called a spike, and over how many the running mean looks back.
SPIKE_WARMUP = 20
SPIKE_WINDOW = 100


def start_guard(spike_factor: float) -> Params:
    """What `is_spike` knows before the first step; {} without a limit."""
    if not spike_factor:
        return {}
    return {"mean_norm": jnp.zeros((), jnp.float32), "accepted": jnp.zeros((), jnp.int32)}


def is_spike(guard: Params, norm: Float[Array, ""], *, factor: float) -> Bool[Array, ""]:
    """Whether a gradient's norm is above the limit; never in the first `SPIKE_WARMUP` updates.

    Args:
        guard: of the state.
        norm: of all gradients.
        factor: times the running mean, 0 = no limit.
    """
    if not factor:
        return jnp.zeros((), bool)
    return (guard["accepted"] >= SPIKE_WARMUP) & (norm > factor * guard["mean_norm"])


def advance_guard(guard: Params, norm: Float[Array, ""]) -> Params:
    """After an accepted update: the mean of all norms, then of about the last `SPIKE_WINDOW`."""
    if not guard:
        return guard
    accepted = guard["accepted"] + 1
    weight = 1 / jnp.minimum(accepted, SPIKE_WINDOW).astype(jnp.float32)
    mean = guard["mean_norm"] + weight * (norm - guard["mean_norm"])
    return {"mean_norm": mean, "accepted": accepted}


def advance_average(ema: Params, trainable: Params, *, decay: float) -> Params:
    """decay ema + (1 - decay) trainable; {} stays {}."""
    if not decay:
        return ema
    return jax.tree.map(lambda mean, new: mean + (1 - decay) * (new - mean), ema, trainable)
