"""Seeds as one program against one after another: `python benchmarks/seeds.py [--repeats 12]`.

Training steps of a canvas config (`configs/canvas_toy.py` unless told otherwise), forward, backward
and update. Both sides take turns in one process: one vmapped step of all seeds, then one step of
each seed alone; the ratio is of neighbours. Losses are compared first. The last line is JSON; the
exit code is 1 where the ratio or the losses are not what is required.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from against_torch import alternate, machine

from roam_jax.cli.arguments import load_config, override, parse
from roam_jax.tasks.experiment import Trainable
from roam_jax.tasks.scene_build import scene_experiment
from roam_jax.train import sharding, step
from roam_jax.train.memory import needed_bytes
from roam_jax.train.optim import make_optimizer
from roam_jax.train.seeds import with_seed
from roam_jax.train.seeds_program import Programs
from roam_jax.train.throughput import matmul_rate

RATIO = 1.05
TOLERANCE = 1e-5
RESAMPLES = 2000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="configs/canvas_toy.py")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=12)
    parser.add_argument(
        "--block", type=int, default=step.CPU_BLOCK, help="seeds that a CPU vmaps over"
    )
    parser.add_argument("--json", action="store_true", help="only the last line")
    args, overrides = parse(parser, sys.argv[1:])
    step.CPU_BLOCK = args.block
    config = load_config(args.config)
    override(config, overrides)
    experiment = scene_experiment(config)
    many, alone = Vmapped(experiment, args.seeds), InSequence(experiment, args.seeds)
    error = max(compare(many, alone) for _ in range(3))
    timings, _ = alternate([many.step, alone.step], repeats=args.repeats)
    ratios = np.array([a / b for a, b in zip(*(t.seconds for t in timings), strict=True)])
    ratio, interval = statistics.median(ratios), median_interval(ratios)
    seconds = [statistics.median(timing.seconds) for timing in timings]
    flops = args.seeds * experiment.flops_per_step(config.loop.rounds)
    shares = [flops / taken / matmul_rate() for taken in seconds]
    if not args.json:
        print(machine(), jax.devices()[0].device_kind)
        print(f"{args.config}, {args.seeds} seeds, relative error of losses {error:.1e}")
        for name, taken, share, side in zip(
            ("vmapped", "in sequence"), seconds, shares, (many, alone), strict=True
        ):
            print(
                f"  {name:<12} {1e3 * taken:8.1f} ms a step of all, {share:.0%} of the "
                f"matrix-product rate, compiled in {side.compile_seconds:.0f} s, "
                f"{side.bytes / 1e6:,.0f} MB"
            )
        low, high = interval
        print(f"  ratio {ratio:.3f} ({low:.3f} to {high:.3f}), required: {RATIO:.2f}")
    found = {"seeds": args.seeds, "error": error, "ratio": ratio, "interval": interval}
    found |= {"seconds": seconds, "shares": shares, "device": jax.devices()[0].device_kind}
    print(json.dumps(found))
    sys.exit(0 if ratio <= RATIO and error <= TOLERANCE else 1)


def median_interval(ratios: np.ndarray) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the median."""
    draws = np.random.default_rng(0).choice(ratios, (RESAMPLES, len(ratios)))
    low, high = np.quantile(np.median(draws, axis=1), (0.025, 0.975))
    return float(low), float(high)


def compare(many: Vmapped, alone: InSequence) -> float:
    """The largest relative difference of a seed's loss, after one step more of both."""
    ours, theirs = np.array(many.step()), np.array(alone.step())
    return float(np.max(np.abs(ours / theirs - 1)))


def batches_of(experiment: Trainable, seed: int) -> Any:
    """The batches of a seed."""
    own = dataclasses.replace(experiment, config=with_seed(experiment.config, seed))
    return own.batches()


def timed(make: Callable[[], Any]) -> tuple[Any, float]:
    """What is made, and the seconds that it took."""
    began = time.perf_counter()
    made = make()
    return made, time.perf_counter() - began


class Vmapped:
    """All seeds as `train.py --seeds` trains them.

    Args:
        experiment: of a canvas model.
        count: seeds 0 to count - 1.
    """

    def __init__(self, experiment: Trainable, count: int):
        config, rounds = experiment.config, experiment.config.loop.rounds
        programs = Programs(
            experiment.task, config=config, curriculum=experiment.rounds, rules=experiment.rules
        )
        self._program, self.compile_seconds = timed(lambda: programs.of(count, start=0))
        self.bytes = needed_bytes(self._program.steps[rounds])
        seeds = list(range(count))
        self._step = self._program.train_steps(seeds)[rounds]
        self._frozen = self._program.create_frozen(seeds)
        join = self._program.arrangement.join
        states = [jax.device_get(self._program.create(seed)) for seed in seeds]
        batches = [next(batches_of(experiment, seed)) for seed in seeds]
        self._state = self._program.put(join(states))
        self._batch = self._program.put(join(batches))

    def step(self) -> list[float]:
        """One step of all; their losses."""
        self._state, metrics = self._step(self._state, self._frozen, self._batch)
        return metrics["loss"].tolist()


class InSequence:
    """The seeds as `train.py` trains each, one step of one after a step of the other.

    Args:
        experiment: of a canvas model.
        count: seeds 0 to count - 1.
    """

    def __init__(self, experiment: Trainable, count: int):
        task, config = experiment.task, experiment.config
        programs = Programs(
            task, config=config, curriculum=experiment.rounds, rules=experiment.rules
        )
        mesh = sharding.make_mesh(1, 1, devices=jax.devices()[:1])
        shapes = sharding.batch_shapes(task.batch_spec, mesh)
        optimizer = make_optimizer(config.optim, steps=config.train.steps, no_decay=task.no_decay)
        # As `make_train_step`, but compiled once for all seeds.
        update = jax.jit(
            step.make_update(task, *optimizer), static_argnames="rounds", donate_argnames="state"
        )
        seed = jax.ShapeDtypeStruct((), np.uint32)
        lowered = update.lower(programs.one, {}, shapes, seed, rounds=config.loop.rounds)
        self._step, self.compile_seconds = timed(lowered.compile)
        self.bytes = needed_bytes(self._step)
        self._states = [programs.create(seed) for seed in range(count)]
        self._batches = [
            sharding.put_batch(next(batches_of(experiment, seed)), shapes) for seed in range(count)
        ]

    def step(self) -> list[float]:
        """One step of each; their losses."""
        losses = []
        for i, batch in enumerate(self._batches):
            self._states[i], metrics = self._step(self._states[i], {}, batch, np.uint32(i))
            losses.append(float(metrics["loss"]))
        return losses


if __name__ == "__main__":
    main()
