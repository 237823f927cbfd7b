"""One process of a toy run: `python -m tests.train.host_child CHOICES FLAGS`.

CHOICES is JSON of what a test chooses, see `Choices`; FLAGS are those of `cluster.add_options`.
Without them it is the whole run by itself.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import pathlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from roam_jax.cli.arguments import run_command
from roam_jax.evaluate.placement import on_each_host
from roam_jax.train import cluster, hosts, loop, sharding
from roam_jax.train.shares import share_of
from tests.train import toy


@dataclasses.dataclass(frozen=True)
class Choices:
    """What a test chooses.

    Args:
        workdir: of each process; the last one counts for all that follow.
        mesh: devices along data and fsdp.
        seeds: of each process, likewise.
        signals: {number of a batch: signal that the second process gets before it}, as JSON has it.
        broken: number of a batch at which the second process fails; -1 = none.
        shared_seconds: how long to look for the other process's file.
        heartbeat_seconds: after how long a process counts as lost.
    """

    workdir: Sequence[str]
    mesh: Sequence[int]
    seeds: Sequence[int] = (3,)
    signals: dict[str, int] = dataclasses.field(default_factory=dict)
    broken: int = -1
    shared_seconds: float = 60.0
    heartbeat_seconds: int = 100


class SharedBatches(toy.ToyBatches):
    """The rows of every toy batch that this process's devices need."""

    def __init__(self, mesh, before):
        super().__init__(before)
        self.index, self.count = share_of(mesh)

    def __next__(self):
        rows = toy.BATCH // self.count
        here = slice(self.index * rows, (self.index + 1) * rows)
        return {name: values[here] for name, values in super().__next__().items()}


def fail() -> None:
    raise ValueError("a broken record")


def evaluate(params, step: int) -> dict[str, float]:
    """A figure that needs every shard of a kernel."""

    def size(whole) -> dict[str, float]:
        return {"size": jnp.linalg.norm(whole["hidden"]["kernel"]) + whole["head"]["bias"].sum()}

    return on_each_host(size, params, rules=toy.RULES, what=f"evaluation of step {step}")


def main(argv: Sequence[str]) -> None:
    """Trains the toy task as the test has chosen."""
    parser = argparse.ArgumentParser()
    parser.add_argument("choices", type=lambda text: Choices(**json.loads(text)))
    cluster.add_options(parser)
    options = parser.parse_args(argv)
    chosen = options.choices
    hosts.SHARED_SECONDS = chosen.shared_seconds
    hosts.HEARTBEAT_SECONDS = chosen.heartbeat_seconds
    hosts.start(options)
    process = jax.process_index()
    config = toy.make_config(mesh=chosen.mesh, eval_every=6)
    config.seed = chosen.seeds[min(process, len(chosen.seeds) - 1)]
    before = {}
    if process == 1:
        before = {int(k): lambda n=n: os.kill(os.getpid(), n) for k, n in chosen.signals.items()}
        before[chosen.broken] = fail
    loop.run(
        toy.make_task(),
        SharedBatches(sharding.make_mesh(**config.mesh), before),
        config=config,
        workdir=pathlib.Path(chosen.workdir[min(process, len(chosen.workdir) - 1)]),
        rounds=2,
        rules=toy.RULES,
        evaluate=evaluate,
    )


if __name__ == "__main__":
    run_command(main)
