"""AdamW with linear warm-up, a cosine to a floor, and clipping by the global norm."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from roam_jax.contracts import Params
from roam_jax.train import names

Schedule = Callable[[jax.Array | int], jax.Array]


def warmup_cosine(
    *, lr: float, warmup_steps: int, steps: int, final_lr_fraction: float
) -> Schedule:
    """Learning rate of the update that follows `step` finished ones.

    It rises as lr (step + 1) / warmup_steps, so that no step is spent at rate 0, and falls by half
    a cosine from `lr` at step `warmup_steps` to lr x final_lr_fraction at `steps`.

    Raises:
        ValueError: a value out of range, with its config key.
    """
    if not lr > 0:
        raise ValueError(f"optim.lr = {lr}: expected a rate above 0")
    if not 0 <= warmup_steps <= steps:
        raise ValueError(f"optim.warmup_steps = {warmup_steps}: expected 0..{steps} (train.steps)")
    if not 0 <= final_lr_fraction <= 1:
        raise ValueError(f"optim.final_lr_fraction = {final_lr_fraction}: expected 0..1")
    floor = lr * final_lr_fraction

    def schedule(step: jax.Array | int) -> jax.Array:
        step = jnp.asarray(step, jnp.float32)
        rising = lr * (step + 1) / max(1, warmup_steps)
        progress = jnp.clip((step - warmup_steps) / max(1, steps - warmup_steps), 0, 1)
        falling = floor + (lr - floor) * 0.5 * (1 + jnp.cos(jnp.pi * progress))
        return jnp.where(step < warmup_steps, rising, falling)

    return schedule


def decay_mask(trainable: Params, no_decay: Sequence[str]) -> Params:
    """True where weight decay applies: two axes or more, and no `no_decay` pattern in the name.

    Depth is stacked on axis 0, so a bias of a stacked block has two axes: name it in `no_decay`.
    """
    return names.unflatten(
        {
            name: leaf.ndim > 1 and not names.matches(name, no_decay)
            for name, leaf in names.flatten(trainable).items()
        }
    )


def make_optimizer(
    optim: ConfigDict, *, steps: int, no_decay: Sequence[str] = ()
) -> tuple[optax.GradientTransformation, Schedule]:
    """The optimizer of a config, and its learning rate for the log.

    Args:
        optim: config section with lr, warmup_steps, final_lr_fraction, weight_decay, clip_norm,
            b1, b2, eps.
        steps: updates of the whole run, where the cosine ends.
        no_decay: regular expressions of parameters without weight decay.

    Raises:
        ValueError: a value out of range, with its config key.
    """
    if not optim.clip_norm > 0:
        raise ValueError(f"optim.clip_norm = {optim.clip_norm}: expected above 0 (inf = no limit)")
    if not optim.weight_decay >= 0:
        raise ValueError(f"optim.weight_decay = {optim.weight_decay}: expected 0 or more")
    schedule = warmup_cosine(
        lr=optim.lr,
        warmup_steps=optim.warmup_steps,
        steps=steps,
        final_lr_fraction=optim.final_lr_fraction,
    )
    adamw = optax.adamw(
        schedule,
        b1=optim.b1,
        b2=optim.b2,
        eps=optim.eps,
        weight_decay=optim.weight_decay,
        mask=lambda trainable: decay_mask(trainable, no_decay),
    )
    return optax.chain(optax.clip_by_global_norm(optim.clip_norm), adamw), schedule
