"""A two-layer model and a deterministic batch iterator: all that the trainer knows of a task."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from roam_jax.contracts import ArraySpec, Task
from roam_jax.train.sharding import shard_largest

BATCH, WIDTH, HIDDEN, OUT = 16, 8, 32, 4
TRAINABLE = ("^head/", "hidden/bias")
SHAPES = {
    "hidden/kernel": (WIDTH, HIDDEN),
    "hidden/bias": (HIDDEN,),
    "head/kernel": (HIDDEN, OUT),
    "head/bias": (OUT,),
}
RULES = (("kernel", functools.partial(shard_largest, min_size=1)), ("bias", shard_largest))


def init(rng):
    first, second = jax.random.split(rng)
    return {
        "hidden": {
            "kernel": jax.random.normal(first, (WIDTH, HIDDEN), jnp.bfloat16) / WIDTH**0.5,
            "bias": jnp.zeros(HIDDEN, jnp.bfloat16),
        },
        "head": {
            "kernel": jax.random.normal(second, (HIDDEN, OUT)) / HIDDEN**0.5,
            "bias": jnp.zeros(OUT),
        },
    }


def predict(params, x, rounds):
    for _ in range(rounds):
        kernel = params["hidden"]["kernel"].astype(jnp.float32)
        hidden = jnp.tanh(x @ kernel + params["hidden"]["bias"])
        x = x + hidden[:, :WIDTH]
    return hidden @ params["head"]["kernel"] + params["head"]["bias"]


def loss(params, batch, rng, rounds):
    noise = 0.1 * jax.random.normal(rng, batch["y"].shape)
    error = predict(params, batch["x"], rounds) - batch["y"] - noise
    return jnp.mean(error**2), {"loss/mean_error": jnp.mean(error)}


def make_task(**changes) -> Task:
    fields = {
        "init": init,
        "loss": loss,
        "trainable": TRAINABLE,
        "batch_spec": {
            "x": ArraySpec((BATCH, WIDTH), np.dtype(np.float32)),
            "y": ArraySpec((BATCH, OUT), np.dtype(np.float32)),
        },
    }
    return Task(**(fields | changes))


class ToyBatches:
    """Batch k is a pure function of k; `before[k]` is called before batch k is drawn.

    Batches of `poison` hold a NaN, and those of `skipped` are left out.
    """

    def __init__(self, before=None, poison=(), skipped=()):
        self.position, self.before = 0, before or {}
        self.poison, self.skipped = poison, skipped

    def __next__(self):
        while self.position in self.skipped:
            self.position += 1
        self.before.get(self.position, lambda: None)()
        random = np.random.default_rng(self.position)
        x = random.normal(size=(BATCH, WIDTH)).astype(np.float32)
        y = np.tanh(x[:, :OUT]) * (np.nan if self.position in self.poison else 1)
        self.position += 1
        return {"x": x, "y": y.astype(np.float32)}

    def get_state(self):
        return {"position": self.position}

    def set_state(self, state):
        self.position = state["position"]


def make_config(*, mesh=(1, -1), **train) -> ConfigDict:
    optim = {
        "lr": 0.01,
        "warmup_steps": 3,
        "final_lr_fraction": 0.1,
        "weight_decay": 0.1,
        "clip_norm": 1.0,
        "b1": 0.9,
        "b2": 0.99,
        "eps": 1e-8,
        "ema_decay": 0.0,
    }
    defaults = {
        "steps": 12,
        "batch_size": BATCH,
        "log_every": 1,
        "save_every": 4,
        "eval_every": 0,
        "keep": 2,
        "accumulate": 1,
        "dtype": "auto",
        "keep_best": 0,
        "best_metric": "eval/error",
        "best_mode": "min",
        "keep_hours": 0.0,
        "spike_factor": 0.0,
        "refusals": 3,
        "rollbacks": 2,
        "wandb": "",
        "profile": "",
    }
    optim |= {name: train.pop(name) for name in list(train) if name in optim}
    sizes = {"data": mesh[0], "fsdp": mesh[1]}
    sections = {"optim": optim, "train": defaults | train, "mesh": sizes, "eval": {"ema": True}}
    return ConfigDict({"seed": 3, **sections})
