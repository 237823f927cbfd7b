"""What the graft predicts of vectors, actions above all: targets, errors, noise.

A batch of several robots may say which dimensions each of them has; the others carry no loss.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from roam_jax.cogvideox.graft_config import PREDICTED
from roam_jax.contracts import Batch
from roam_jax.diffusion.schedule import NoiseSchedule
from roam_jax.microbatch import draw_rows, part_of

# Output of the model -> field of the batch that it is compared with.
TARGETS = {
    "actions": "action_chunk",
    **{output: region for region, (output, _) in PREDICTED.items()},  # named alike in a batch
}
# Output of the module -> its name among losses and their weights.
LOSSES = {
    "velocity": "diffusion",
    "actions": "action",
    "proprio": "proprio",
    "reward": "reward",
    "camera_velocity": "camera",
}
# Output -> field of the batch that says which of its dimensions a row's robot has.
MASKS = {"actions": "action_mask", "proprio": "proprio_mask"}


class NoisedActions(NamedTuple):
    """Actions on their way from noise to a chunk, and how far they are.

    `values` is (B, P, A), normalised units; `timesteps` (B,) integers 0..999.
    """

    values: Array
    timesteps: Array


class NoisedVideos(NamedTuple):
    """Latents of a window on their way from noise, where observed frames are clean throughout.

    `latents` is (B, F, C, h, w), of the first camera; `cameras` (B, V, F - t_current, C, h, w), the
    predicted frames of the others, or None where they are not predicted.
    """

    latents: Array
    cameras: Array | None


def present_dimensions(batch: Batch, stream: str) -> Float[Array, "#B 1 #A"]:
    """1 for each dimension of a stream that a row's robot has, 0 for the others.

    Args:
        batch: windows; without a mask every robot has all dimensions, and one 1 stands for them.
        stream: a key of `MASKS`.
    """
    if MASKS[stream] in batch:
        return jnp.asarray(batch[MASKS[stream]])[:, None]
    return jnp.ones((1, 1, 1))


def stream_error(predicted: Float[Array, "B N A"], batch: Batch, stream: str) -> Float[Array, " B"]:
    """Mean squared error of a predicted stream in normalised units, by row.

    Only the first N targets count, because the `pooled` decoder predicts the first future action
    alone; only dimensions that a row's robot has, and 0 for a row that has none.

    Args:
        predicted: output of the model.
        batch: windows.
        stream: a key of `TARGETS`.
    """
    target = jnp.asarray(batch[TARGETS[stream]])[:, : predicted.shape[1]]
    error = jnp.square(predicted - target)
    if MASKS.get(stream) not in batch:
        return error.mean(axis=(1, 2))
    present = present_dimensions(batch, stream)[:, 0]
    return (error.mean(axis=1) * present).sum(axis=1) / jnp.maximum(present.sum(axis=1), 1)


def noise_actions(
    schedule: NoiseSchedule, batch: Batch, rng: jax.Array
) -> tuple[NoisedActions, Float[Array, "B P A"]]:
    """The batch's chunk at uniformly drawn noise levels, and its velocity.

    Dimensions that a robot lacks have no noise: they enter as the 0 that the data holds, so that
    they look the same at every level and when the policy is deployed, and their velocity is 0.
    """
    chunk = jnp.asarray(batch["action_chunk"])
    time_rng, noise_rng = jax.random.split(rng)
    drawn = functools.partial(draw_rows, part_of(batch), len(chunk))
    timesteps = drawn(lambda n: jax.random.randint(time_rng, (n,), 0, schedule.steps))
    noise = drawn(lambda n: jax.random.normal(noise_rng, (n, *chunk.shape[1:])))
    noise = noise * present_dimensions(batch, "actions")
    noised = schedule.add_noise(chunk, noise, timesteps)
    return NoisedActions(noised, timesteps), schedule.velocity(chunk, noise, timesteps)
