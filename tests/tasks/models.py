"""Parameters and batches of an experiment."""

import jax
import numpy as np

from roam_jax.train.sharding import make_mesh
from roam_jax.train.state import abstract_params, create_params, load_pretrained


def fresh_params(experiment):
    """Pretrained and initial values, on one device."""
    mesh = make_mesh(1, 1, devices=jax.devices()[:1])
    like = abstract_params(experiment.task, mesh, rules=experiment.rules)
    pretrained = load_pretrained(experiment.task, like)
    return create_params(experiment.task, like, pretrained=pretrained, seed=0)


def make_params(experiment):
    """Parameters in which predictions depend on what is read."""
    params = fresh_params(experiment)
    # Decoders start at zero; moved, so that what they predict depends on what they read.
    for name, module in params["graft"].items():
        if name.endswith("decoder"):
            module["out"]["kernel"] = module["out"]["kernel"] + 0.1
    return params


def first_batch(experiment, *, encoded=False):
    """Four windows; `encoded` with latents that no VAE had to make."""
    train = experiment.members[0].train
    windows = [train[i] for i in range(4)]
    if encoded:
        rng, time = np.random.default_rng(0), experiment.time
        for window in windows:
            del window["frames"]
            latents = rng.standard_normal((time.latents, 16, 8, 8)).astype(np.float32)
            window |= {"observed_latents": latents[: time.t_current], "target_latents": latents}
    return {name: np.stack([w[name] for w in windows]) for name in windows[0]}


def random_batch(task, *, seed=0):
    """A batch of noise in the shapes of a task's spec; grippers and masks are 0 or 1."""
    rng, batch = np.random.default_rng(seed), {}
    for name, spec in task.batch_spec.items():
        if spec.dtype == np.uint8:
            # Smooth, as a picture is, so that the VAE does not average all of it away.
            coarse = rng.integers(0, 256, (*spec.shape[:-3], 4, 4, 3))
            rows, columns = spec.shape[-3] // 4, spec.shape[-2] // 4
            batch[name] = coarse.repeat(rows, -3).repeat(columns, -2).astype(np.uint8)
        elif name.endswith("_mask"):
            batch[name] = np.ones(spec.shape, np.float32)
        elif spec.dtype == np.int32:
            batch[name] = np.arange(*spec.shape, dtype=np.int32)
        else:
            batch[name] = rng.uniform(-1, 1, spec.shape).astype(np.float32)
    return batch
