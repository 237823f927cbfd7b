from __future__ import annotations

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from roam_jax.train import names, optim, sharding
from roam_jax.train import state as state_lib
from roam_jax.train.step_options import StepOptions
from tests.train import toy


@pytest.fixture(scope="module")
def mesh():
    return sharding.make_mesh(2, 4)


def abstract(task, mesh):
    return state_lib.abstract_params(task, mesh, rules=toy.RULES)


def test_partition_and_merge():
    params = names.unflatten({name: np.zeros(shape) for name, shape in toy.SHAPES.items()})
    trainable, frozen = state_lib.partition(params, toy.TRAINABLE)
    assert set(names.flatten(trainable)) == {"hidden/bias", "head/kernel", "head/bias"}
    assert set(names.flatten(frozen)) == {"hidden/kernel"}
    merged = names.flatten(state_lib.merge(trainable, frozen))
    assert {name: leaf.shape for name, leaf in merged.items()} == toy.SHAPES


def test_patterns_that_match_nothing(mesh):
    with pytest.raises(
        ValueError, match=r"Task.trainable.*'haed/bias' \(nearest name: head/bias\)"
    ):
        abstract(toy.make_task(trainable=("^head/", "haed/bias")), mesh)
    with pytest.raises(ValueError, match=r"Task.no_decay: no parameter matches 'gate'"):
        abstract(toy.make_task(no_decay=("gate",)), mesh)
    with pytest.raises(ValueError, match="Task.trainable is empty"):
        abstract(toy.make_task(trainable=()), mesh)


def test_storage_dtypes_and_shardings(mesh):
    leaves = names.flatten(abstract(toy.make_task(), mesh))
    assert {name: (leaf.dtype, leaf.sharding.spec) for name, leaf in leaves.items()} == {
        "hidden/kernel": (jnp.bfloat16, P(None, "fsdp")),
        "hidden/bias": (jnp.float32, P()),  # trains: float32, whatever init makes
        "head/kernel": (jnp.float32, P("fsdp")),
        "head/bias": (jnp.float32, P()),
    }


def test_fresh_parameters_are_created_sharded_and_as_init_makes_them(mesh):
    task = toy.make_task()
    wanted = abstract(task, mesh)
    params = names.flatten(state_lib.create_params(task, wanted, pretrained={}, seed=5))
    key = jax.random.fold_in(jax.random.key(5), state_lib.INIT_STEP)
    for name, leaf in names.flatten(jax.jit(toy.init)(key)).items():
        np.testing.assert_array_equal(params[name], leaf, err_msg=name)
    assert params["hidden/kernel"].addressable_shards[0].data.shape == (toy.WIDTH, toy.HIDDEN // 4)
    assert params["head/kernel"].addressable_shards[0].data.shape == (toy.HIDDEN // 4, toy.OUT)


def test_a_part_is_created_as_in_the_whole(mesh):
    task = toy.make_task()
    wanted = abstract(task, mesh)
    whole = names.flatten(state_lib.create_params(task, wanted, pretrained={}, seed=5))
    trainable, _ = state_lib.partition(wanted, task.trainable)
    part = names.flatten(state_lib.create_params(task, trainable, pretrained={}, seed=5))
    assert set(part) == {"hidden/bias", "head/kernel", "head/bias"}
    for name, leaf in part.items():
        np.testing.assert_array_equal(leaf, whole[name])


def test_pretrained_parameters_keep_values_and_frozen_dtype(mesh):
    random = np.random.default_rng(0)
    files = {
        "hidden": {
            "kernel": random.normal(size=(toy.WIDTH, toy.HIDDEN)).astype(np.float16),
            "bias": random.normal(size=toy.HIDDEN).astype(ml_dtypes.bfloat16),
        }
    }
    task = toy.make_task(pretrained=lambda: files)
    wanted = abstract(task, mesh)
    pretrained = state_lib.load_pretrained(task, wanted)
    params = state_lib.create_params(task, wanted, pretrained=pretrained, seed=0)
    assert params["hidden"]["kernel"].dtype == jnp.float16
    assert params["hidden"]["bias"].dtype == jnp.float32
    assert params["hidden"]["kernel"].sharding.spec == P(None, "fsdp")
    np.testing.assert_array_equal(params["hidden"]["kernel"], files["hidden"]["kernel"])
    np.testing.assert_array_equal(
        params["hidden"]["bias"], files["hidden"]["bias"].astype(np.float32)
    )


def test_every_pretrained_name_is_accounted_for(mesh):
    files = {"hidden": {"bais": np.zeros(toy.HIDDEN)}, "head": {"bias": np.zeros(5)}}
    task = toy.make_task(pretrained=lambda: files)
    with pytest.raises(ValueError, match="pretrained parameters") as error:
        state_lib.load_pretrained(task, abstract(task, mesh))
    message = str(error.value)
    assert "hidden/bais (32,) is unexpected (nearest: hidden/bias)" in message
    assert "head/bias has shape (5,), expected (4,)" in message
    assert "hidden/kernel (8, 32) is frozen and missing" in message


def test_moments_are_sharded_as_their_parameters(mesh):
    task = toy.make_task()
    tx, _ = optim.make_optimizer(toy.make_config().optim, steps=12)
    trainable, _ = state_lib.partition(abstract(task, mesh), task.trainable)
    like = state_lib.abstract_state(trainable, tx, mesh)
    params = state_lib.create_params(task, trainable, pretrained={}, seed=0)
    state = state_lib.create_state(params, tx, like=like)
    moments = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim == 2]
    assert [leaf.addressable_shards[0].data.shape for leaf in moments] == [(8, toy.OUT)] * 2
    assert jax.tree.map(lambda leaf: leaf.sharding, state) == jax.tree.map(
        lambda leaf: leaf.sharding, like
    )
    # Nothing is stored for the frozen kernel: step, 3 parameters, 2 moments of each, 2 counters.
    assert len(jax.tree.leaves(state)) == 1 + 3 + 6 + 2


def paths(state):
    flat = jax.tree_util.tree_flatten_with_path(state)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in flat}


def test_average_and_guard_are_in_the_tree_where_they_are_kept(mesh):
    task = toy.make_task()
    tx, _ = optim.make_optimizer(toy.make_config().optim, steps=12)
    trainable, _ = state_lib.partition(abstract(task, mesh), task.trainable)
    options = StepOptions(ema_decay=0.9, spike_factor=5.0)
    like = state_lib.abstract_state(trainable, tx, mesh, options)
    params = state_lib.create_params(task, trainable, pretrained={}, seed=0)
    state = state_lib.create_state(params, tx, like=like)
    plain = state_lib.create_state(params, tx, like=state_lib.abstract_state(trainable, tx, mesh))
    more = {f"ema/{name}" for name in names.flatten(trainable)}
    more |= {"guard/mean_norm", "guard/accepted"}
    assert paths(state) == paths(like) == paths(plain) | more
    # As `flax.struct` named them, so that checkpoints from before can be read.
    assert {path.split("/")[0] for path in paths(plain)} == {"step", "trainable", "opt_state"}
    where = jax.tree.map(lambda leaf: leaf.sharding, state)
    assert where == jax.tree.map(lambda leaf: leaf.sharding, like)
    # No buffer is in the state twice, as all of it is donated.
    kernel, mean = state.trainable["head"]["kernel"], state.ema["head"]["kernel"]
    shards = zip(kernel.addressable_shards, mean.addressable_shards, strict=True)
    assert all(a.data.unsafe_buffer_pointer() != b.data.unsafe_buffer_pointer() for a, b in shards)
    np.testing.assert_array_equal(kernel, mean)
    assert state.replace(ema={}).ema == {} and state.replace(ema={}).guard == state.guard
