"""A two-layer model and a deterministic batch iterator: all that the trainer knows of a task."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from roam_jax.contracts import ArraySpec, Task

BATCH, WIDTH_IN, HIDDEN, WIDTH_OUT = 16, 8, 32, 4
TRAINABLE = ("^head/", "hidden/bias")


def init(rng):
    """Two dense layers; float32 but for one frozen kernel."""
    first, second = jax.random.split(rng)
    return {
        "hidden": {
            "kernel": jax.random.normal(first, (WIDTH_IN, HIDDEN), jnp.float32) / WIDTH_IN**0.5,
            "bias": jnp.zeros(HIDDEN),
        },
        "head": {
            "kernel": jax.random.normal(second, (HIDDEN, WIDTH_OUT)) / HIDDEN**0.5,
            "bias": jnp.zeros(WIDTH_OUT),
        },
    }


def predict(params, x, rounds):
    for _ in range(rounds):
        hidden = x @ params["hidden"]["kernel"].astype(jnp.float32) + params["hidden"]["bias"]
        x = x + jnp.tanh(hidden)[:, :WIDTH_IN]
    return jnp.tanh(hidden) @ params["head"]["kernel"] + params["head"]["bias"]


def loss(params, batch, rng, rounds):
    noise = 0.1 * jax.random.normal(rng, batch["y"].shape)
    error = predict(params, batch["x"], rounds) - batch["y"] - noise
    return jnp.mean(error**2), {"loss/bias": jnp.mean(error)}


def make_task(**changes) -> Task:
    fields = {
        "init": init,
        "loss": loss,
        "trainable": TRAINABLE,
        "batch_spec": {
            "x": ArraySpec((BATCH, WIDTH_IN), np.dtype(np.float32)),
            "y": ArraySpec((BATCH, WIDTH_OUT), np.dtype(np.float32)),
        },
    }
    return Task(**(fields | changes))


class ToyBatches:
    """Batch k is a pure function of k; `poison` makes the targets of one batch NaN."""

    def __init__(self, poison: int | None = None):
        self.position, self.poison = 0, poison

    def __iter__(self):
        return self

    def __next__(self):
        random = np.random.default_rng(self.position)
        x = random.normal(size=(BATCH, WIDTH_IN)).astype(np.float32)
        y = np.tanh(x[:, :WIDTH_OUT]) * (np.nan if self.position == self.poison else 1)
        self.position += 1
        return {"x": x, "y": y.astype(np.float32)}

    def get_state(self):
        return {"position": self.position}

    def set_state(self, state):
        self.position = state["position"]


def make_config(**train) -> ConfigDict:
    return ConfigDict(
        {
            "seed": 3,
            "optim": {
                "lr": 0.01,
                "warmup_steps": 3,
                "final_lr_fraction": 0.1,
                "weight_decay": 0.1,
                "clip_norm": 1.0,
                "b1": 0.9,
                "b2": 0.99,
                "eps": 1e-8,
            },
            "train": {
                "steps": 12,
                "batch_size": BATCH,
                "log_every": 1,
                "save_every": 4,
                "eval_every": 0,
                "keep": 2,
            }
            | train,
            "mesh": {"data": 1, "fsdp": -1},
        }
    )
