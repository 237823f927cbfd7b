"""Trained runs as they lie on disk, without any training."""

import jax
import numpy as np

from roam_jax.tasks.build import build
from roam_jax.train import names, optim
from roam_jax.train.checkpoint import Checkpoints
from roam_jax.train.state import TrainState, partition
from roam_jax.train.workdir import Workdir, plain
from tests.evaluate.conftest import make_config


def write_run(path, *, weights, root, changes, steps=(5,)):
    """A workdir with random trained parameters; returns it, and them by name at the last step."""
    config = make_config(weights, root)
    for key, value in changes.items():
        section, _, leaf = key.rpartition(".")
        (config[section] if section else config)[leaf] = value
    experiment = build(config)
    task, workdir = experiment.task, Workdir(path)
    workdir.create(config, experiment.provenance())
    shapes, _ = partition(jax.eval_shape(task.init, jax.random.key(0)), task.trainable)
    rng = np.random.default_rng(0)
    trained = {
        name: 0.3 * rng.standard_normal(leaf.shape).astype(np.float32)
        for name, leaf in names.flatten(shapes).items()
    }
    tx, _ = optim.make_optimizer(config.optim, steps=100, no_decay=task.no_decay)
    with Checkpoints(workdir.checkpoints, keep=len(steps)) as checkpoints:
        for step in steps:
            trained = {name: 1.5 * value for name, value in trained.items()}
            tree = names.unflatten(trained)
            state = TrainState(np.int32(step), tree, tx.init(tree))
            checkpoints.save(step, state, data={}, config=plain(config))
    return workdir.path, trained
