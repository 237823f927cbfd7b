from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from roam_jax.train import names, sharding
from roam_jax.train import state as state_lib
from roam_jax.train.step import make_train_step
from tests.train import toy

SEED = 3


def one_step(mesh, rounds):
    """(state after, gradients, metrics, parameters before, frozen) of a step.

    Plain gradient descent at rate 1 makes the update minus the gradient.
    """
    task, tx = toy.make_task(), optax.sgd(1.0)
    wanted = state_lib.abstract_params(task, mesh, rules=toy.RULES)
    params = state_lib.create_params(task, wanted, pretrained={}, seed=SEED)
    trainable, frozen = state_lib.partition(params, task.trainable)
    like = state_lib.abstract_state(state_lib.partition(wanted, task.trainable)[0], tx, mesh)
    before = jax.tree.map(np.asarray, params)
    state = state_lib.create_state(trainable, tx, like=like)
    step = make_train_step(task, tx, lambda step: 0.5 + step, seed=SEED, like=like)
    batch = sharding.put_batch(next(toy.ToyBatches()), sharding.batch_shapes(task.batch_spec, mesh))
    state, metrics = step(state, frozen, batch, rounds=rounds)
    after = names.flatten(state.trainable)
    grads = {name: names.flatten(before)[name] - np.asarray(after[name]) for name in after}
    return state, grads, jax.device_get(metrics), before, frozen


@pytest.fixture(scope="module")
def single():
    return one_step(sharding.make_mesh(1, 1, devices=jax.devices()[:1]), rounds=1)


def test_loss_and_gradients_by_hand(single):
    state, grads, metrics, before, _ = single
    batch = next(toy.ToyBatches())
    kernel = np.asarray(before["hidden"]["kernel"], np.float64)
    hidden = np.tanh(batch["x"] @ kernel + before["hidden"]["bias"])
    rng = jax.random.fold_in(jax.random.key(SEED), 0)
    target = batch["y"] + 0.1 * np.asarray(jax.random.normal(rng, batch["y"].shape))
    error = hidden @ before["head"]["kernel"] + before["head"]["bias"] - target
    outer = 2 * error / error.size
    inner = outer @ before["head"]["kernel"].T * (1 - hidden**2)
    expected = {
        "head/kernel": hidden.T @ outer,
        "head/bias": outer.sum(0),
        "hidden/bias": inner.sum(0),
    }
    assert grads.keys() == expected.keys()
    for name, grad in expected.items():
        np.testing.assert_allclose(grads[name], grad, atol=1e-6, err_msg=name)
    norm = np.sqrt(sum((grad**2).sum() for grad in expected.values()))
    np.testing.assert_allclose(metrics["loss"], (error**2).mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-5)
    np.testing.assert_allclose(metrics["loss/mean_error"], error.mean(), atol=1e-6)
    assert metrics["lr"] == 0.5
    assert int(state.step) == 1


def test_frozen_parameters_are_not_touched(single):
    _, _, _, before, frozen = single
    assert set(names.flatten(frozen)) == {"hidden/kernel"}
    assert frozen["hidden"]["kernel"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(frozen["hidden"]["kernel"], before["hidden"]["kernel"])


@pytest.mark.parametrize(
    ("data", "fsdp", "shard"), [(8, 1, (32, 4)), (1, 8, (4, 4)), (2, 4, (8, 4))]
)
def test_sharded_step_equals_one_device(single, data, fsdp, shard):
    state, grads, metrics, _, _ = one_step(sharding.make_mesh(data, fsdp), rounds=1)
    kernel = state.trainable["head"]["kernel"]
    assert {s.data.shape for s in kernel.addressable_shards} == {shard}
    np.testing.assert_allclose(metrics["loss"], single[2]["loss"], atol=1e-5, rtol=0)
    for name, grad in single[1].items():
        np.testing.assert_allclose(grads[name], grad, atol=1e-5, rtol=0, err_msg=name)


def test_the_loss_is_told_the_step():
    """Finished updates, in the batch; two steps of a loss that is nothing else."""

    def loss(params, batch, rng, rounds):
        bias = params["head"]["bias"]
        return jnp.sum(bias) * batch["step"], {"step": batch["step"] + 0.5}

    mesh = sharding.make_mesh(1, 1, devices=jax.devices()[:1])
    task, tx = toy.make_task(loss=loss), optax.sgd(1.0)
    wanted = state_lib.abstract_params(task, mesh, rules=toy.RULES)
    params = state_lib.create_params(task, wanted, pretrained={}, seed=SEED)
    trainable, frozen = state_lib.partition(params, task.trainable)
    like = state_lib.abstract_state(state_lib.partition(wanted, task.trainable)[0], tx, mesh)
    state = state_lib.create_state(trainable, tx, like=like)
    step = make_train_step(task, tx, lambda step: 1.0, seed=SEED, like=like)
    batch = sharding.put_batch(next(toy.ToyBatches()), sharding.batch_shapes(task.batch_spec, mesh))
    for finished in range(3):
        state, metrics = step(state, frozen, batch, rounds=1)
        assert metrics["step"] == finished + 0.5
    np.testing.assert_array_equal(state.trainable["head"]["bias"], [-3.0] * toy.OUT)  # -(0 + 1 + 2)


def test_rounds_are_static_and_matter(single):
    mesh = sharding.make_mesh(1, 1, devices=jax.devices()[:1])
    assert one_step(mesh, rounds=2)[2]["loss"] != single[2]["loss"]
