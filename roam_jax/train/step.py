"""One training step: gradients and updates of what trains, nothing else.

A step whose loss or gradient is not finite, or whose gradient is a spike, leaves all as it was but
for the number of steps: the update is refused before it touches the state.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, PartitionSpec

from roam_jax.contracts import Batch, Params, Task
from roam_jax.microbatch import split_batch
from roam_jax.train import optim
from roam_jax.train.averages import advance_average, advance_guard, is_spike
from roam_jax.train.norms import group_norms
from roam_jax.train.state import TrainState, merge
from roam_jax.train.step_options import PLAIN, StepOptions

Metrics = dict[str, jax.Array]
# Axis over runs of different seeds: of stacked arrays, and of the mesh that they are spread over.
SEEDS = "seeds"
# Runs that a CPU vmaps over; blocks of them follow each other within the program. What small models
# compute then stays in its caches (benchmarks/seeds.py: a sixth faster than all at once).
CPU_BLOCK = 2


def make_update(
    task: Task,
    tx: optax.GradientTransformation,
    schedule: optim.Schedule,
    options: StepOptions = PLAIN,
) -> Callable[..., tuple[TrainState, Metrics]]:
    """The traceable `update(state, frozen, batch, seed, rounds) -> (state, metrics)` of one run.

    Args:
        task: what is trained.
        tx, schedule: from `optim.make_optimizer`.
        options: parts of a batch, the average, what is refused.

    Returns:
        The update. The key of step k is `fold_in(key(seed), k)`: no key needs to be saved. The
        batch of the loss holds "step", the steps done, and of a part `microbatch.PART`. Metrics are
        float32 scalars: loss, grad_norm before clipping, lr, "refused" (1 where the state is as it
        was), "grad_norm/GROUP", "param_norm/GROUP" and "update_norm/GROUP" of `norms.groups`, and
        the task's own.
    """
    gradients = make_gradients(task, options.accumulate)

    def update(
        state: TrainState, frozen: Params, batch: Batch, seed: int | jax.Array, rounds: int
    ) -> tuple[TrainState, Metrics]:
        rng = jax.random.fold_in(jax.random.key(seed), state.step)
        loss, metrics, grads = gradients(
            state.trainable, frozen, batch, rng, rounds=rounds, step=state.step
        )
        norm = optax.global_norm(grads)
        updates, opt_state = tx.update(grads, state.opt_state, state.trainable)
        trainable = optax.apply_updates(state.trainable, updates)
        new = TrainState(
            state.step + 1,
            trainable,
            opt_state,
            advance_average(state.ema, trainable, decay=options.ema_decay),
            advance_guard(state.guard, norm),
        )
        spike = is_spike(state.guard, norm, factor=options.spike_factor)
        refused = ~(jnp.isfinite(loss) & jnp.isfinite(norm)) | spike
        old = state.replace(step=new.step)
        metrics = {
            "loss": loss,
            **metrics,
            "grad_norm": norm,
            "lr": schedule(_updates_done(state)),
            "refused": refused.astype(jnp.float32),
            **group_norms(grad=grads, param=state.trainable, update=updates),
        }
        return jax.tree.map(lambda a, b: jnp.where(refused, a, b), old, new), metrics

    return update


def make_gradients(task: Task, accumulate: int = 1) -> Callable[..., tuple]:
    """The traceable `gradients(trainable, frozen, batch, rng, *, rounds, step)` of a task's loss.

    Args:
        task: whose loss it is.
        accumulate: parts of a batch; all are given the same key.

    Returns:
        The function, to (loss, metrics, gradients like `trainable`): of the whole batch, and of
        parts the mean of theirs.
    """

    def whole(trainable: Params, frozen: Params, batch: Batch, rng: jax.Array, rounds: int):
        def loss_fn(trainable: Params):
            return task.loss(merge(trainable, frozen), batch, rng, rounds)

        (loss, metrics), grads = jax.value_and_grad(loss_fn, has_aux=True)(trainable)
        return loss, metrics, grads

    def gradients(
        trainable: Params,
        frozen: Params,
        batch: Batch,
        rng: jax.Array,
        *,
        rounds: int,
        step: jax.Array,
    ):
        if accumulate == 1:
            return whole(trainable, frozen, {**batch, "step": step}, rng, rounds)
        part_at = split_batch(batch, accumulate)

        def of_part(index: jax.Array):
            part = {**part_at(index), "step": step}
            found = whole(trainable, frozen, part, rng, rounds)
            return jax.tree.map(lambda x: x.astype(jnp.float32), found)

        zeros = jax.tree.map(
            lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(of_part, jnp.int32(0))
        )

        def add(total, index: jax.Array):
            return jax.tree.map(jnp.add, total, of_part(index)), None

        total, _ = jax.lax.scan(add, zeros, jnp.arange(accumulate))
        return jax.tree.map(lambda x: x / accumulate, total)

    return gradients


def _updates_done(state: TrainState) -> jax.Array:
    """What the optimizer's schedule counts by, refused updates left out."""
    counts = optax.tree.get_all_with_path(state.opt_state, "count")
    return counts[-1][1] if counts else state.step


def make_train_step(
    task: Task,
    tx: optax.GradientTransformation,
    schedule: optim.Schedule,
    *,
    seed: int,
    like: TrainState,
    options: StepOptions = PLAIN,
) -> Callable[..., tuple[TrainState, Metrics]]:
    """The jitted `step(state, frozen, batch, rounds=R) -> (state, metrics)`.

    Args:
        task, tx, schedule: as for `make_update`.
        seed: of the run.
        like: a state whose shardings the new one keeps; otherwise XLA may choose others and the
            next step would have to compile again.
        options: as for `make_update`.

    Returns:
        The step. `state` is donated, `rounds` is static.
    """
    update = make_update(task, tx, schedule, options)

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
    options: StepOptions = PLAIN,
) -> Callable[..., tuple[TrainState, Metrics]]:
    """The jitted `step(state, frozen, batch, seeds, rounds=R)` of many runs at once.

    Args:
        task, tx, schedule: as for `make_update`.
        mesh: devices along `SEEDS`; each trains its share of the runs, with no word to the others.
        shared_frozen: frozen parameters are the same of all runs, without an axis over them.
        options: as for `make_update`.

    Returns:
        The step. All else has a first axis over the runs, metrics too; `seeds` is (S,) uint32.
    """
    update = make_update(task, tx, schedule, options)
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
