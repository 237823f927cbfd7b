"""Parameters of a saved step: what trained, or its average."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from roam_jax.train import load, optim, sharding
from roam_jax.train import state as state_lib
from roam_jax.train.checkpoint import Checkpoints
from roam_jax.train.step_options import StepOptions
from tests.train import toy

MESH = (2, 4)


def save(folder, options):
    """A state of the toy whose average is twice what trained."""
    task, mesh = toy.make_task(), sharding.make_mesh(*MESH)
    tx, _ = optim.make_optimizer(toy.make_config().optim, steps=12)
    wanted = state_lib.abstract_params(task, mesh, rules=toy.RULES)
    trainable, _ = state_lib.partition(wanted, task.trainable)
    like = state_lib.abstract_state(trainable, tx, mesh, options)
    params = state_lib.create_params(task, trainable, pretrained={}, seed=0)
    state = state_lib.create_state(params, tx, like=like)
    state = state.replace(step=state.step + 4, ema=jax.tree.map(lambda x: 2 * x + 1, state.ema))
    with Checkpoints(folder, keep=1) as checkpoints:
        checkpoints.save(4, state, data={}, config={})
    return jax.device_get(state), like


def load_from(folder, **options):
    # On other devices than it was saved from.
    mesh = sharding.make_mesh(1, 2, devices=jax.devices()[:2])
    arguments = {"mesh": mesh, "rules": toy.RULES, "seed": 0}
    return load.load_params(toy.make_task(), folder, **arguments, **options)


def test_the_average_is_loaded_where_it_is_asked_for(tmp_path):
    state, like = save(tmp_path, StepOptions(ema_decay=0.9, spike_factor=3.0))
    for average, expected in ((False, state.trainable), (True, state.ema)):
        params, step = load_from(tmp_path, average=average)
        assert step == 4
        np.testing.assert_array_equal(params["head"]["kernel"], expected["head"]["kernel"])
        np.testing.assert_array_equal(params["hidden"]["bias"], expected["hidden"]["bias"])
        assert params["hidden"]["kernel"].shape == toy.SHAPES["hidden/kernel"]
    with Checkpoints(tmp_path) as checkpoints:
        restored, *_ = checkpoints.restore(like)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(restored), state)


def test_a_run_without_one_is_refused_by_name(tmp_path):
    save(tmp_path, StepOptions())
    with pytest.raises(ValueError, match="ema/head/bias is missing in the checkpoint"):
        load_from(tmp_path, average=True)
