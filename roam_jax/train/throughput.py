"""Steps, tokens and FLOPs a second, and the share of what the devices can do (MFU).

Of a known accelerator the share is of its data sheet's rate; of a CPU, or a device that the table
lacks, of one large product that is timed here, so that it says something on any machine. Only the
model's FLOPs count, not what remat computes again.
"""

from __future__ import annotations

import collections
import functools
import math
import time
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging
from jax.sharding import Mesh
from ml_collections import ConfigDict

from roam_jax import accelerators

# Sides of the product: large enough for the full rate, small enough for many within the time.
SIDE, ACCELERATOR_SIDE = 1024, 8192
SECONDS = 0.2


class Throughput:
    """What a finished step amounts to, as figures of metrics.jsonl.

    Args:
        flops_per_step: FLOPs of one step of one run, from its number of rounds; None = not known.
        tokens_per_step: cells that one step of one run passes through the model: those of a row
            times the rows of the whole batch; 0 = not known.
        examples_per_step: rows of the whole batch of one run.
        devices: that the step runs on, of all hosts.
        device_kind: `jax.Device.device_kind`.
        runs: trained together, each with such a batch.
        dtype: that most products are computed in, which chooses the data sheet's rate.
    """

    def __init__(
        self,
        flops_per_step: Callable[[int], float] | None,
        *,
        tokens_per_step: int,
        examples_per_step: int,
        devices: int,
        device_kind: str,
        runs: int = 1,
        dtype: Any = jnp.bfloat16,
    ):
        self._flops = None if flops_per_step is None else functools.cache(flops_per_step)
        self._tokens, self._examples = tokens_per_step, examples_per_step
        self._devices, self._kind = devices, device_kind
        self._runs, self._dtype = runs, jnp.dtype(dtype)

    @classmethod
    def of_run(
        cls,
        config: ConfigDict,
        mesh: Mesh,
        *,
        flops_per_step: Callable[[int], float] | None,
        tokens_per_step: int,
        runs: int = 1,
    ) -> Throughput:
        """Of the steps of a config on a mesh; other arguments as for the class."""
        return cls(
            flops_per_step,
            tokens_per_step=tokens_per_step,
            examples_per_step=config.train.batch_size,
            devices=mesh.size,
            device_kind=mesh.devices.flat[0].device_kind,
            runs=runs,
            dtype=jnp.float32 if config.train.dtype == "float32" else jnp.bfloat16,
        )

    @functools.cached_property
    def peak(self) -> float:
        """FLOP/s of all devices together; measured, in a part of a second, if no table says."""
        found = accelerators.by_device_kind(self._kind)
        if found is not None:
            fast = self._dtype.itemsize <= 2
            rate = found.bf16_flops if fast else found.float32_flops
            what = f"{found.name}, data sheet, {'bfloat16' if fast else 'float32'}"
        else:
            rate, what = matmul_rate(), f"a float32 product on {self._kind!r}, measured"
        logging.info("MFU is a share of %.4g TFLOP/s a device (%s)", rate / 1e12, what)
        return rate * _whole(self._devices)

    def figures(self, seconds_per_step: float, rounds: int) -> dict[str, float]:
        """The numbers for a line of metrics.

        Args:
            seconds_per_step: of a step of all runs together.
            rounds: of these steps.

        Returns:
            "steps_per_second" and "examples_per_second"; "tokens_per_second", "flops_per_second"
            and "mfu" (0 to 1) where the model is counted. All but the first are of all runs.
        """
        if seconds_per_step <= 0:
            return {}
        runs_a_second = self._runs / seconds_per_step
        found = {
            "steps_per_second": 1 / seconds_per_step,
            "examples_per_second": self._examples * runs_a_second,
        }
        if self._tokens:
            found["tokens_per_second"] = self._tokens * runs_a_second
        if self._flops is not None:
            flops = self._flops(rounds) * runs_a_second
            found |= {"flops_per_second": flops, "mfu": flops / self.peak}
        return found

    def log_share(self, rounds: Iterable[int], *, seconds: float) -> None:
        """Logs what finished steps reached, where the model is counted.

        Args:
            rounds: of every step.
            seconds: that these steps took.
        """
        rounds = collections.Counter(rounds)
        if self._flops is None or not rounds or seconds <= 0:
            return
        each = sum(count * self._flops(n) for n, count in rounds.items())
        rate = self._runs * each / seconds
        if not math.isfinite(rate):  # a model that holds what cannot be counted
            return
        known = accelerators.by_device_kind(self._kind)
        of = "this machine's matrix-product rate" if known is None else f"{known.name}'s data sheet"
        logging.info(
            "%d steps%s in %s, %.1f GFLOP/s, %.1f %% of %s",
            rounds.total(),
            f" of {self._runs} seeds" if self._runs > 1 else "",
            f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.1f} s",
            rate / 1e9,
            100 * rate / self.peak,
            of,
        )


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


def _whole(devices: int) -> int:
    """How many of these devices have a rate of their own: the CPU devices of a host share its."""
    return jax.process_count() if jax.default_backend() == "cpu" else devices
