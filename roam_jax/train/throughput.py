"""The share of a machine's matrix-product rate that a run used.

The rate is that of one large float32 product, timed where the run has just ended, so that the share
says something on any machine. Only the model's FLOPs count, not what remat computes again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
from absl import logging

# Sides of the product: large enough for the full rate, small enough for many within the time.
SIDE, ACCELERATOR_SIDE = 1024, 8192
SECONDS = 0.2


def matmul_rate(seconds: float = SECONDS) -> float:
    """FLOP/s of a square float32 product on the first device, at JAX's default precision.

    Args:
        seconds: for which products are repeated; the fastest counts.
    """
    side = SIDE if jax.default_backend() == "cpu" else ACCELERATOR_SIDE
    a = jnp.ones((side, side), jnp.float32)
    product = jax.jit(jnp.matmul).lower(a, a).compile()
    product(a, a).block_until_ready()
    began, fastest = time.perf_counter(), float("inf")
    while time.perf_counter() - began < seconds:
        start = time.perf_counter()
        product(a, a).block_until_ready()
        fastest = min(fastest, time.perf_counter() - start)
    return 2 * side**3 / fastest


def log_share(
    flops_per_step: Callable[[int], float],
    rounds: Iterable[int],
    *,
    runs: int,
    seconds: float,
    devices: int,
) -> None:
    """Logs what finished steps reached.

    Args:
        flops_per_step: FLOPs of one step of one run, from its number of rounds.
        rounds: of every step.
        runs: trained together.
        seconds: that these steps took.
        devices: that they ran on.
    """
    rounds = list(rounds)
    each = {n: flops_per_step(n) for n in set(rounds)}
    rate = runs * sum(each[n] for n in rounds) / seconds
    share = rate / (devices * matmul_rate())
    logging.info(
        "%d steps%s in %s, %.1f GFLOP/s, %.1f %% of this machine's matrix-product rate",
        len(rounds),
        f" of {runs} seeds" if runs > 1 else "",
        f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.1f} s",
        rate / 1e9,
        100 * share,
    )
