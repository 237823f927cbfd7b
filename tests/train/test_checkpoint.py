from __future__ import annotations

import shutil

import jax
import numpy as np
import pytest

from roam_jax.train import optim, sharding
from roam_jax.train import state as state_lib
from roam_jax.train.checkpoint import Checkpoints
from tests.train import toy


def abstract(mesh):
    task = toy.make_task()
    tx, _ = optim.make_optimizer(toy.make_config().optim, steps=12)
    params = state_lib.abstract_params(task, mesh, rules=toy.RULES)
    return state_lib.abstract_state(state_lib.partition(params, task.trainable)[0], tx, mesh)


def numbers(like, step):
    """A state with other values in every leaf and every step."""
    leaves, tree = jax.tree.flatten(like)
    made = [
        jax.device_put(
            (np.arange(leaf.size) + 100 * i + step).reshape(leaf.shape).astype(leaf.dtype),
            leaf.sharding,
        )
        for i, leaf in enumerate(leaves)
    ]
    return jax.tree.unflatten(tree, made)


@pytest.fixture(scope="module")
def saved_once(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoints")
    like = abstract(sharding.make_mesh(2, 4))
    states = {step: numbers(like, step) for step in (1, 2, 3)}
    with Checkpoints(path, keep=2) as checkpoints:
        for step, state in states.items():
            checkpoints.save(step, state, data={"position": 10 * step}, config={"step": step})
    return path, like, states


@pytest.fixture
def saved(saved_once, tmp_path):
    """(folder with the steps 2 and 3 of 1..3, abstract state, states)."""
    path = shutil.copytree(saved_once[0], tmp_path / "checkpoints")
    return path, *saved_once[1:]


def test_the_last_are_kept_and_the_latest_is_restored(saved):
    path, like, states = saved
    with Checkpoints(path) as checkpoints:
        assert checkpoints.steps == [2, 3]
        state, data, config = checkpoints.restore(like)
        jax.tree.map(np.testing.assert_array_equal, state, states[3])
        assert (data, config) == ({"position": 30}, {"step": 3})
        assert jax.tree.structure(state) == jax.tree.structure(states[3])
        jax.tree.map(np.testing.assert_array_equal, checkpoints.restore(like, step=2)[0], states[2])


def test_restores_onto_another_mesh(saved):
    path, _, states = saved
    other = abstract(sharding.make_mesh(8, 1))
    with Checkpoints(path) as checkpoints:
        state = checkpoints.restore(other)[0]
    jax.tree.map(np.testing.assert_array_equal, state, states[3])
    kernel = state.trainable["head"]["kernel"]
    assert kernel.sharding == other.trainable["head"]["kernel"].sharding
    assert kernel.addressable_shards[0].data.shape == (toy.HIDDEN, toy.OUT)


def test_only_the_parameters(saved):
    path, like, states = saved
    with Checkpoints(path) as checkpoints:
        trainable = checkpoints.restore_trainable(like.trainable, step=2)
    jax.tree.map(np.testing.assert_array_equal, trainable, states[2].trainable)


def test_a_step_that_is_not_there(saved):
    with (
        Checkpoints(saved[0]) as checkpoints,
        pytest.raises(FileNotFoundError, match=r"of step 1 in .*; there are: \[2, 3\]"),
    ):
        checkpoints.restore(saved[1], step=1)


def test_no_checkpoints(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoints at"):
        Checkpoints(tmp_path / "nowhere")


def test_half_written_folders_are_never_picked(saved):
    path, like, states = saved
    (path / "4.orbax-checkpoint-tmp" / "state").mkdir(parents=True)
    (path / "5" / "state").mkdir(parents=True)
    with Checkpoints(path) as reader:  # reading changes nothing
        assert reader.steps == [2, 3]
        assert reader.restore(like)[1] == {"position": 30}
    assert (path / "5").exists()
    with Checkpoints(path, keep=2) as checkpoints:
        assert checkpoints.steps == [2, 3]
        checkpoints.save(5, states[1], data={}, config={})
        assert checkpoints.steps == [3, 5]
    assert sorted(child.name for child in path.iterdir()) == ["3", "5"]


@pytest.mark.parametrize("damage", ["truncate", "flip"])
def test_a_damaged_checkpoint_is_named(saved, damage):
    path, like, _ = saved
    for file in (path / "3" / "state").rglob("d/*"):
        content = bytearray(file.read_bytes())
        middle = len(content) // 2
        content[middle] ^= 0xFF
        file.write_bytes(content[:middle] if damage == "truncate" else content)
    with Checkpoints(path) as checkpoints, pytest.raises(ValueError, match="cannot be read") as e:
        checkpoints.restore(like)
    assert str(path / "3") in str(e.value)
    assert "remove that folder to go on from step 2" in str(e.value)


def test_a_checkpoint_of_another_model_is_refused_by_name(saved):
    path, like, _ = saved
    head = like.trainable["head"]
    wrong = {
        "bias": jax.ShapeDtypeStruct((5,), np.float32, sharding=head["bias"].sharding),
        "scale": head["bias"],
    }
    wrong = like.replace(trainable=like.trainable | {"head": wrong})
    with Checkpoints(path) as checkpoints, pytest.raises(ValueError, match="does not fit") as e:
        checkpoints.restore(wrong)
    message = str(e.value)
    assert "trainable/head/bias is (4,) in the checkpoint, (5,) in the model" in message
    assert "trainable/head/kernel is (32, 4) in the checkpoint, absent in the model" in message
    assert "trainable/head/scale is missing in the checkpoint, (4,) in the model" in message
