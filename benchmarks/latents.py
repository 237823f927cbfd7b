"""Training on encoded windows against encoding within the step: `python benchmarks/latents.py`.

A config's training windows are encoded into a temporary folder; then blocks of steps on frames and
on that folder alternate, with the trainer's own step, loader and prefetch. Losses must be equal bit
for bit and a step on the folder must wait for data less than 2 % of its time; otherwise the exit
code is 1. How much faster it is depends on what the VAE's share of a step is, which is told.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import pathlib
import statistics
import tempfile
import time
from typing import NamedTuple

import jax
import ml_collections
import numpy as np

from roam_jax.cli.arguments import load_config, override
from roam_jax.tasks.build import Experiment, build
from roam_jax.tasks.latents import layout_encoder, make_encoder, plan_encodings
from roam_jax.train import optim, sharding
from roam_jax.train.prefetch import DevicePrefetch
from roam_jax.train.state import (
    abstract_params,
    abstract_state,
    create_params,
    create_state,
    load_pretrained,
    partition,
)
from roam_jax.train.step import make_train_step

WAITING = 0.02
GOAL = 5.0
ENCODE_BATCH = 8


class Block(NamedTuple):
    """What some steps took, in seconds a step, and their losses."""

    seconds: float
    waiting: float
    losses: list[float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="configs/bridge_3loop.py:tiny")
    parser.add_argument("--steps", type=int, default=20, help="of a block")
    parser.add_argument("--blocks", type=int, default=5, help="of each kind")
    args, overrides = parser.parse_known_args()
    config = load_config(args.config)
    override(config, overrides)
    config.data.encode_once = 0

    with tempfile.TemporaryDirectory() as folder:
        rate, size = encode(config, pathlib.Path(folder))
        print(f"encoding: {rate:.1f} windows/s, {size / 1e3:.1f} kB a window on disk")
        cached = config.copy_and_resolve_references()
        cached.data.latents = folder
        with Run(build(config)) as frames, Run(build(cached)) as latents:
            blocks = {frames: [], latents: []}
            for run in (frames, latents):
                run.block(3)  # compiled, and read ahead
            for number in range(args.blocks):
                for run in (frames, latents)[:: 1 if number % 2 else -1]:
                    blocks[run].append(run.block(args.steps))
            report(blocks[frames], blocks[latents], vae=vae_seconds(frames.experiment))
            if [b.losses for b in blocks[frames]] != [b.losses for b in blocks[latents]]:
                parser.exit(1, "losses differ\n")
            share = sum(b.waiting for b in blocks[latents]) / sum(
                b.seconds for b in blocks[latents]
            )
    if share >= WAITING:
        parser.exit(1, "a step waits for data too long\n")


def encode(config: ml_collections.ConfigDict, folder: pathlib.Path) -> tuple[float, float]:
    """Windows a second, compiling left out, and bytes of a window."""
    experiment = build(config)
    plan = {"copies": 0, "dtype": "float32", "shard_windows": 256}
    encodings = plan_encodings(experiment, folder, **plan)
    encoder = layout_encoder(experiment, encodings[0].layout)
    window = experiment.members[0].train[0]
    videos = {n: np.stack([window[n]] * ENCODE_BATCH) for n in window if "frame" in n}
    jax.block_until_ready(encoder(videos))
    began = time.perf_counter()
    for encoding in encodings:
        encoding.run(encoder, batch_size=ENCODE_BATCH)
    layouts = [encoding.layout for encoding in encodings]
    windows = sum(layout.windows for layout in layouts)
    return windows / (time.perf_counter() - began), layouts[0].window_bytes


class Run(contextlib.ExitStack):
    """A training run without its folder."""

    def __init__(self, experiment: Experiment):
        super().__init__()
        self.experiment = experiment
        config, task = experiment.config, experiment.task
        mesh = sharding.make_mesh(**config.mesh)
        shapes = sharding.batch_shapes(task.batch_spec, mesh)
        params = abstract_params(task, mesh, rules=experiment.rules)
        pretrained = load_pretrained(task, params)
        trainable, frozen = partition(params, task.trainable)
        tx, schedule = optim.make_optimizer(config.optim, steps=10_000, no_decay=task.no_decay)
        like = abstract_state(trainable, tx, mesh)
        self._frozen = create_params(task, frozen, pretrained=pretrained, seed=0)
        fresh = create_params(task, trainable, pretrained=pretrained, seed=0)
        self._state = create_state(fresh, tx, like=like)
        step = make_train_step(task, tx, schedule, seed=0, like=like)
        rounds = experiment.rounds.rounds_at(0)
        self._step = step.lower(like, self._frozen, shapes, rounds=rounds).compile()
        put = functools.partial(sharding.put_batch, shapes=shapes)
        batches = self.enter_context(contextlib.closing(experiment.batches()))
        self._ready = self.enter_context(DevicePrefetch(batches, put))

    def block(self, steps: int) -> Block:
        """Some steps, one after another as the trainer does them."""
        losses, began = [], time.perf_counter()
        self._ready.seconds_waited()
        for _ in range(steps):
            self._state, metrics = self._step(self._state, self._frozen, next(self._ready))
            jax.block_until_ready(metrics)
            losses.append(float(metrics["loss"]))
        seconds = time.perf_counter() - began
        return Block(seconds / steps, self._ready.seconds_waited() / steps, losses)


def vae_seconds(experiment: Experiment) -> float:
    """What encoding a batch takes alone, the fastest of five."""
    batch = next(experiment.batches())
    encoder = make_encoder(
        experiment.model.backbone, experiment.time, experiment.model.latent_fields
    )
    videos = {name: batch[name] for name in batch if "frame" in name}
    taken = []
    for _ in range(6):
        began = time.perf_counter()
        jax.block_until_ready(encoder(videos))
        taken.append(time.perf_counter() - began)
    return min(taken[1:])


def report(frames: list[Block], latents: list[Block], *, vae: float) -> None:
    """Steps a second, their ratio, and what bounds it."""
    for name, blocks in (("frames", frames), ("folder", latents)):
        seconds = [block.seconds for block in blocks]
        waiting = sum(block.waiting for block in blocks) / sum(seconds)
        middle = statistics.median(seconds)
        print(
            f"{name}:   {1 / middle:.2f} steps/s ({middle:.3f} s, {min(seconds):.3f} to "
            f"{max(seconds):.3f}), waiting for data {waiting:.3%} of a step"
        )
    ratios = sorted(a.seconds / b.seconds for a, b in zip(frames, latents, strict=True))
    rest = min(block.seconds for block in latents)
    print(
        f"ratio:    {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}), paired; "
        f"the goal is {GOAL:g}"
    )
    print(
        f"bound:    encoding a batch alone takes {vae:.3f} s, a step without it {rest:.3f} s: "
        f"{1 + vae / rest:.2f}"
    )


if __name__ == "__main__":
    main()
