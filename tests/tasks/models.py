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
    windows = [experiment.train[i] for i in range(4)]
    if encoded:
        rng, time = np.random.default_rng(0), experiment.time
        for window in windows:
            del window["frames"]
            latents = rng.standard_normal((time.latents, 16, 8, 8)).astype(np.float32)
            window |= {"observed_latents": latents[: time.t_current], "target_latents": latents}
    return {name: np.stack([w[name] for w in windows]) for name in windows[0]}
