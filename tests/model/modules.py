"""Small modules with random parameters, and what they compute, in numpy."""

import jax
import numpy as np


def random_params(module, *args, seed=0):
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda key: module.init(key, *args), jax.random.key(0))["params"]
    return jax.tree.map(lambda x: rng.standard_normal(x.shape).astype(np.float32), shapes)


def linear(params, x):
    return x @ params["kernel"] + params["bias"]
