"""One training step: gradients and updates of what trains, nothing else."""

from __future__ import annotations

from collections.abc import Callable

import jax
import optax

from roam_jax.contracts import Batch, Params, Task
from roam_jax.train import optim
from roam_jax.train.state import TrainState, merge

Metrics = dict[str, jax.Array]


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
        task: what is trained.
        tx, schedule: from `optim.make_optimizer`.
        seed: the key of step k is `fold_in(key(seed), k)`: no key needs to be saved.
        like: a state whose shardings the new one keeps; otherwise XLA may choose others and the
            next step would have to compile again.

    Returns:
        The step. `state` is donated, `rounds` is static. Metrics are float32 scalars: loss,
        grad_norm before clipping, lr, and the task's own.
    """

    def train_step(state: TrainState, frozen: Params, batch: Batch, rounds: int):
        rng = jax.random.fold_in(jax.random.key(seed), state.step)

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

    shardings = jax.tree.map(lambda leaf: leaf.sharding, like)
    return jax.jit(
        train_step,
        static_argnames="rounds",
        donate_argnames="state",
        out_shardings=(shardings, None),
    )
