"""What saving costs a run: `python benchmarks/saving_cost.py [--every 20] [--pairs 12]`.

Blocks of `--every` training steps of a config (`configs/bridge_3loop.py:tiny` unless told
otherwise), half of which begin by saving a checkpoint, as the loop does: the blocks of a pair
follow each other, in an order that is drawn. The cost is the ratio of a pair's times, less 1, in
seconds and in processor seconds of all threads; what the background does is in both. The second one
holds on a machine that others use as well. The last line is JSON; the exit code is 1 where the
median of either is above `--most`.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import random
import statistics
import sys
import tempfile
import time
from typing import Any

import jax
import numpy as np
from seeds import median_interval

from roam_jax.cli.arguments import load_config, override, parse
from roam_jax.tasks.build import build
from roam_jax.train import optim, sharding
from roam_jax.train.checkpoint import Checkpoints
from roam_jax.train.state import (
    abstract_params,
    abstract_state,
    create_params,
    create_state,
    load_pretrained,
    partition,
)
from roam_jax.train.step import make_train_step
from roam_jax.train.workdir import plain


class Run:
    """A training run whose steps are called by hand, all on one batch.

    Args:
        config: of a task that `tasks.build` builds.
        checkpoints: open for saving.
    """

    def __init__(self, config: Any, checkpoints: Checkpoints):
        experiment = build(config)
        task, mesh = experiment.task, sharding.make_mesh(**config.mesh)
        shapes = sharding.batch_shapes(task.batch_spec, mesh)
        tx, schedule = optim.make_optimizer(
            config.optim, steps=config.train.steps, no_decay=task.no_decay
        )
        params = abstract_params(task, mesh, rules=experiment.rules)
        made = {"pretrained": load_pretrained(task, params), "seed": config.seed}
        trainable, frozen = partition(params, task.trainable)
        like = abstract_state(trainable, tx, mesh)
        self._frozen = create_params(task, frozen, **made)
        self._state = create_state(create_params(task, trainable, **made), tx, like=like)
        step = make_train_step(task, tx, schedule, seed=config.seed, like=like)
        rounds = config.loop.rounds
        self._step = step.lower(like, self._frozen, shapes, rounds=rounds).compile()
        batches = experiment.batches()
        self._batch = sharding.put_batch(next(batches), shapes)
        self._position = batches.get_state()
        self._config, self._checkpoints, self._done = plain(config), checkpoints, 0
        self.bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(self._state))
        self.blocked: list[float] = []

    def steps(self, count: int) -> None:
        """So many, one at a time as in the loop."""
        for _ in range(count):
            self._state, metrics = self._step(self._state, self._frozen, self._batch)
            jax.block_until_ready(metrics)
        self._done += count

    def save(self) -> None:
        """Begins to save; the next step may begin when this returns."""
        began = time.perf_counter()
        self._checkpoints.save(self._done, self._state, data=self._position, config=self._config)
        self.blocked.append(time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="configs/bridge_3loop.py:tiny")
    parser.add_argument("--every", type=int, default=20)
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--most", type=float, default=0.05)
    args, overrides = parse(parser, sys.argv[1:])
    config = load_config(args.config)
    override(config, overrides)
    order = random.Random(0)
    with (
        tempfile.TemporaryDirectory() as folder,
        Checkpoints(pathlib.Path(folder), keep=config.train.keep) as checkpoints,
    ):
        run = Run(config, checkpoints)
        run.save()  # the first one makes Orbax's threads
        ratios, blocks = [], []
        for _ in range(args.pairs):
            taken = {}
            for saving in order.sample((False, True), 2):
                run.steps(1)
                checkpoints.wait()
                began = np.array([time.perf_counter(), time.process_time()])
                if saving:
                    run.save()
                run.steps(args.every)
                checkpoints.wait()  # seldom at all: the save was done some steps ago
                taken[saving] = np.array([time.perf_counter(), time.process_time()]) - began
            ratios.append(taken[True] / taken[False])
            blocks.append(taken[False])
    found = {"bytes": run.bytes, "seconds_blocked": statistics.median(run.blocked[1:])}
    for name, column, block in zip(
        ("seconds", "processor_seconds"), np.transpose(ratios), np.transpose(blocks), strict=True
    ):
        low, high = median_interval(column)
        cost = statistics.median(column) - 1
        found[name] = {
            "cost": cost,
            "interval": [low - 1, high - 1],
            "block": statistics.median(block),
        }
    print(json.dumps(found))
    costs = [found[name]["cost"] for name in ("seconds", "processor_seconds")]
    sys.exit(0 if max(costs) <= args.most else 1)


if __name__ == "__main__":
    main()
