"""One training step: gradients and updates of what trains, nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import optax
from jax.sharding import Mesh, PartitionSpec

from roam_jax.contracts import Batch, Params, Task
from roam_jax.train import optim
from roam_jax.train.state import TrainState, merge

Metrics = dict[str, jax.Array]
# Axis over runs of different seeds: of stacked arrays, and of the mesh that they are spread over.
SEEDS = "seeds"
# Runs that a CPU vmaps over; blocks of them follow each other within the program. What small models
# compute then stays in its caches (benchmarks/seeds.py: a sixth faster than all at once).
CPU_BLOCK = 2


def make_update(
    task: Task, tx: optax.GradientTransformation, schedule: optim.Schedule
) -> Callable[..., tuple[TrainState, Metrics]]:
    """The traceable `update(state, frozen, batch, seed, rounds) -> (state, metrics)` of one run.

    Args:
        task: what is trained.
        tx, schedule: from `optim.make_optimizer`.

    Returns:
        The update. The key of step k is `fold_in(key(seed), k)`: no key needs to be saved. The
        batch of the loss holds "step", the finished updates. Metrics are float32 scalars: loss,
        grad_norm before clipping, lr, and the task's own.
    """

    def update(
        state: TrainState, frozen: Params, batch: Batch, seed: int | jax.Array, rounds: int
    ) -> tuple[TrainState, Metrics]:
        rng = jax.random.fold_in(jax.random.key(seed), state.step)
        batch = {**batch, "step": state.step}

        def loss_fn(trainable: Params):
            return task.loss(merge(trainable, frozen), batch, rng, rounds)

        (loss, metrics), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.trainable)
        updates, opt_state = tx.update(grads, state.opt_state, state.trainable)
        trainable = optax.apply_updates(state.trainable, updates)
        metrics = {
            "loss": loss,
            **metrics,
            "grad_norm": optax.global_norm(grads),
            "lr": schedule(state.step),
        }
        return TrainState(state.step + 1, trainable, opt_state), metrics

    return update


def make_train_step(
    task: Task,
    tx: optax.GradientTransformation,
    schedule: optim.Schedule,
    *,
    seed: int,
    like: TrainState,
) -> Callable[..., tuple[TrainState, Metrics]]:
    """The jitted `step(state, frozen, batch, rounds=R) -> (state, metrics)`.

    Args:
        task, tx, schedule: as for `make_update`.
        seed: of the run.
        like: a state whose shardings the new one keeps; otherwise XLA may choose others and the
            next step would have to compile again.

    Returns:
        The step. `state` is donated, `rounds` is static.
    """
    update = make_update(task, tx, schedule)

    def train_step(state: TrainState, frozen: Params, batch: Batch, rounds: int):
        return update(state, frozen, batch, seed, rounds)

    shardings = jax.tree.map(lambda leaf: leaf.sharding, like)
    return jax.jit(
        train_step,
        static_argnames="rounds",
        donate_argnames="state",
        out_shardings=(shardings, None),
    )


def make_seeds_step(
    task: Task,
    tx: optax.GradientTransformation,
    schedule: optim.Schedule,
    *,
    mesh: Mesh,
    shared_frozen: bool,
) -> Callable[..., tuple[TrainState, Metrics]]:
    """The jitted `step(state, frozen, batch, seeds, rounds=R)` of many runs at once.

    Args:
        task, tx, schedule: as for `make_update`.
        mesh: devices along `SEEDS`; each trains its share of the runs, with no word to the others.
        shared_frozen: frozen parameters are the same of all runs, without an axis over them.

    Returns:
        The step. All else has a first axis over the runs, metrics too; `seeds` is (S,) uint32.
    """
    update = make_update(task, tx, schedule)
    spread = PartitionSpec(SEEDS)
    specs = (spread, PartitionSpec() if shared_frozen else spread, spread, spread)

    def train_step(
        state: TrainState, frozen: Params, batch: Batch, seeds: jax.Array, rounds: int
    ) -> tuple[TrainState, Metrics]:
        def on_device(state, frozen, batch, seeds):
            def one(run):
                state, own, batch, seed = run
                return update(state, frozen if shared_frozen else own, batch, seed, rounds)

            runs = (state, {} if shared_frozen else frozen, batch, seeds)
            return _vmapped(one, runs, count=len(seeds), mesh=mesh)

        return jax.shard_map(
            on_device, mesh=mesh, in_specs=specs, out_specs=spread, check_vma=False
        )(state, frozen, batch, seeds)

    return jax.jit(train_step, static_argnames="rounds", donate_argnames="state")


def _vmapped(function: Callable[[Any], Any], runs: Any, *, count: int, mesh: Mesh) -> Any:
    """The function over the first axis of a tree, all at once or block by block."""
    block = count
    if mesh.devices.flat[0].platform == "cpu":
        block = max(n for n in range(1, CPU_BLOCK + 1) if count % n == 0)
    if block == count:
        return jax.vmap(function)(runs)
    return jax.lax.map(function, runs, batch_size=block)
