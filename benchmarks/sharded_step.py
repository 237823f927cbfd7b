"""Sharded steps against one device: `python benchmarks/sharded_step.py [--config FILE[:VARIANT]]`.

The step of a config runs on one of eight fake CPU devices and on meshes of all eight, along each
axis and several, with the same parameters, batch and keys. A mesh that `--meshes` names is
DATAxFSDPxSEQUENCExTENSOR. Loss and gradients must agree within 1e-5 (absolute for the loss
and each gradient entry, relative L2 for the whole gradient); otherwise the exit code is 1.
"""

from __future__ import annotations

import os

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"

import argparse
import dataclasses
import sys
import time

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from roam_jax.cli.arguments import load_config, override
from roam_jax.contracts import Batch
from roam_jax.tasks.build import Experiment, build
from roam_jax.train import names, sharding
from roam_jax.train.state import (
    abstract_params,
    abstract_state,
    create_params,
    create_state,
    load_pretrained,
    partition,
)
from roam_jax.train.step import make_train_step

# Devices along data, fsdp, sequence and tensor.
MESHES = (
    (8, 1, 1, 1),
    (1, 8, 1, 1),
    (1, 1, 8, 1),
    (2, 1, 1, 4),
    (2, 4, 1, 1),
    (2, 2, 1, 2),
    (2, 2, 2, 1),
    (1, 2, 2, 2),
)
TOLERANCE = 1e-5


def keep_gradients() -> optax.GradientTransformation:
    """An optimizer whose state is the last gradient and which changes nothing."""

    def init(params):
        return jax.tree.map(jax.numpy.zeros_like, params)

    def update(grads, state, params=None):
        return init(grads), grads

    return optax.GradientTransformation(init, update)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="configs/bridge_3loop.py:tiny")
    parser.add_argument("--meshes", nargs="+", default=["x".join(map(str, m)) for m in MESHES])
    args, overrides = parser.parse_known_args()
    config = load_config(args.config)
    override(config, overrides)

    experiment = build(config)
    batch = next(experiment.batches())
    steps = {"one device": one_step(experiment, one_device(), batch)}
    for name in args.meshes:
        steps[name] = one_step(experiment, sharding.make_mesh(*map(int, name.split("x"))), batch)
    sys.exit(0 if report(steps) <= TOLERANCE else 1)


@dataclasses.dataclass(frozen=True)
class Step:
    """What one step gave, and what it took.

    Args:
        loss: of the batch.
        grads: by parameter name, gathered.
        shards: bytes of all parameters on the first device.
        seconds: of a second, compiled step.
    """

    loss: float
    grads: dict[str, np.ndarray]
    shards: int
    seconds: float


def one_device() -> Mesh:
    return sharding.make_mesh(1, 1, devices=jax.devices()[:1])


def one_step(experiment: Experiment, mesh: Mesh, batch: Batch) -> Step:
    """The training step of the config with an optimizer that only keeps the gradients."""
    task, config, tx = experiment.task, experiment.config, keep_gradients()
    wanted = abstract_params(task, mesh, rules=experiment.rules)
    params = create_params(task, wanted, pretrained=load_pretrained(task, wanted), seed=config.seed)
    trainable, frozen = partition(params, task.trainable)
    like = abstract_state(partition(wanted, task.trainable)[0], tx, mesh)
    state = create_state(trainable, tx, like=like)
    step = make_train_step(task, tx, lambda step: step, seed=config.seed, like=like)
    placed = sharding.put_batch(batch, sharding.batch_shapes(task.batch_spec, mesh))
    state, metrics = step(state, frozen, placed, rounds=config.loop.rounds)
    loss = float(metrics["loss"])
    grads = {name: np.asarray(g) for name, g in names.flatten(state.opt_state).items()}
    began = time.perf_counter()
    state, metrics = step(state, frozen, placed, rounds=config.loop.rounds)
    jax.block_until_ready(metrics)
    seconds = time.perf_counter() - began
    leaves = jax.tree.leaves((state.trainable, frozen))
    shards = sum(leaf.addressable_shards[0].data.nbytes for leaf in leaves)
    return Step(loss, grads, shards, seconds)


def report(steps: dict[str, Step]) -> float:
    """Prints one line a mesh; the worst of all errors."""
    columns = ("loss", "loss error", "largest error", "relative L2", "MiB a device", "s a step")
    print(f"{'mesh':<14}" + "".join(f"{column:>14}" for column in columns))
    reference, worst = next(iter(steps.values())), 0.0
    norm = np.linalg.norm([np.linalg.norm(grad) for grad in reference.grads.values()])
    for name, step in steps.items():
        errors = [step.grads[key] - grad for key, grad in reference.grads.items()]
        loss_error = abs(step.loss - reference.loss)
        largest = max(float(np.abs(error).max()) for error in errors)
        relative = float(np.linalg.norm([np.linalg.norm(error) for error in errors]) / norm)
        worst = max(worst, loss_error, largest, relative)
        print(
            f"{name:<14}{step.loss:>14.7f}{loss_error:>14.1e}{largest:>14.1e}{relative:>14.1e}"
            f"{step.shards / 2**20:>14.2f}{step.seconds:>14.2f}"
        )
    print(f"gradient norm {norm:.4g}; worst error {worst:.1e}, required: {TOLERANCE:.0e}")
    return worst


if __name__ == "__main__":
    main()
