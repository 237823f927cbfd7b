from __future__ import annotations

import errno
import math
import os
import random
import shutil
import threading

import jax
import numpy as np
import pytest

from roam_jax.train import checkpoint, manifest, optim, saving, sharding
from roam_jax.train import state as state_lib
from roam_jax.train.checkpoint import Checkpoints
from roam_jax.train.retention import Keep
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


def test_half_written_folders_are_never_picked(saved, caplog):
    path, like, states = saved
    (path / "4.saving.orbax-checkpoint-tmp" / "state").mkdir(parents=True)
    (path / "1.removed").mkdir()
    (path / "5" / "state").mkdir(parents=True)  # such as an interrupted copy
    with Checkpoints(path) as reader:  # reading changes nothing
        assert reader.restore(like)[1] == {"position": 30}
    assert "5 is damaged: data is missing; left as it is, going on from step 3" in caplog.text
    assert (path / "5").exists()
    with Checkpoints(path, keep=2) as checkpoints:
        checkpoints.restore(like)
        assert checkpoints.steps == [2, 3]
        checkpoints.save(5, states[1], data={}, config={})
        assert checkpoints.steps == [3, 5]
        assert checkpoints.pick() == 5
    assert sorted(child.name for child in path.iterdir()) == ["3", "5", "5.damaged"]


def files_of(folder):
    return sorted(file for file in folder.rglob("*") if file.is_file())


def truncate(file):
    os.truncate(file, file.stat().st_size // 2)


def flip(file):
    content = bytearray(file.read_bytes())
    content[random.randrange(len(content))] ^= 1 << random.randrange(8)
    file.write_bytes(content)


@pytest.mark.parametrize("damage", [truncate, flip, os.remove])
def test_every_damaged_file_is_named_and_the_one_before_is_used(saved, damage, tmp_path, caplog):
    path, like, states = saved
    whole = shutil.copytree(path / "3", tmp_path / "whole")
    for file in files_of(path / "3"):
        caplog.clear()
        damage(file)
        with Checkpoints(path) as checkpoints:
            assert checkpoints.pick() == 2
            with pytest.raises(ValueError, match="damaged") as error:
                checkpoints.restore(like, step=3)
        (warning,) = caplog.messages
        for message in (warning, str(error.value)):
            assert str(path / "3") in message
            assert file.relative_to(path / "3").as_posix() in message
        assert "Other steps: [2]" in str(error.value)
        shutil.copy2(whole / file.relative_to(path / "3"), file)
    with Checkpoints(path, keep=2) as checkpoints:
        jax.tree.map(np.testing.assert_array_equal, checkpoints.restore(like)[0], states[3])


def test_a_deleted_part(saved, caplog):
    path, like, _ = saved
    shutil.rmtree(path / "3" / "state")
    with Checkpoints(path, keep=2) as checkpoints:
        assert checkpoints.restore(like)[1] == {"position": 20}
        assert checkpoints.steps == [2]
    assert "3 is damaged: state is missing; renamed to 3.damaged" in caplog.text


def test_no_checkpoint_is_good(saved):
    path, like, _ = saved
    for step in (2, 3):
        truncate(max(files_of(path / str(step)), key=lambda file: file.stat().st_size))
    with Checkpoints(path, keep=2) as checkpoints:
        with pytest.raises(ValueError, match="damaged checkpoints: .*/3: .* has .* bytes.*/2: "):
            checkpoints.restore(like)
        assert checkpoints.steps == [2, 3]


def without_manifest(folder):
    """As checkpoints were before there were manifests."""
    (folder / manifest.FILE).unlink()
    shutil.rmtree(folder / "extra")


def test_checkpoints_without_a_manifest_load(saved, caplog):
    path, like, states = saved
    for step in (2, 3):
        without_manifest(path / str(step))
    with Checkpoints(path) as checkpoints:
        jax.tree.map(np.testing.assert_array_equal, checkpoints.restore(like)[0], states[3])
        assert checkpoints.extra(3) == {}
    for file in (path / "3" / "state").rglob("d/*"):
        truncate(file)
    with Checkpoints(path) as checkpoints, pytest.raises(ValueError, match="/3 cannot be read"):
        checkpoints.restore(like, step=3)
    with Checkpoints(path) as checkpoints:
        jax.tree.map(np.testing.assert_array_equal, checkpoints.restore(like)[0], states[2])
    assert f"{path / '3'} is damaged: " in caplog.text


def test_whole_files_that_cannot_be_read_are_not_called_damaged(saved, monkeypatch):
    """Too little memory for the arrays, say, sets no good checkpoint aside."""
    path, like, _ = saved

    def fail(*_, **__):
        raise RuntimeError("RESOURCE_EXHAUSTED: out of memory")

    monkeypatch.setattr(checkpoint.ocp.Checkpointer, "restore", fail)
    with Checkpoints(path, keep=2) as checkpoints:
        with pytest.raises(ValueError, match="/3 cannot be read .*RESOURCE_EXHAUSTED"):
            checkpoints.restore(like)
        assert checkpoints.steps == [2, 3]


def test_what_cannot_be_deleted_does_not_end_the_run(saved, monkeypatch, caplog):
    path, _, states = saved

    def fail(folder, **_):
        raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), str(folder))

    with Checkpoints(path, keep=2) as checkpoints:
        with monkeypatch.context() as patched:
            patched.setattr(saving.shutil, "rmtree", fail)
            checkpoints.save(4, states[1], data={}, config={})
            checkpoints.wait()
        assert checkpoints.steps == [3, 4]
    assert "2.removed stays until the run is started again" in caplog.text
    with Checkpoints(path, keep=2):
        assert not (path / "2.removed").exists()


def test_what_is_saved_beside_the_arrays(saved):
    path, _, states = saved
    with Checkpoints(path, keep=2) as checkpoints:
        checkpoints.save(4, states[1], data={}, config={}, extra={"refused": 3})
        checkpoints.save(4, states[2], data={"other": 1}, config={})  # there already
        assert checkpoints.extra(4) == {"refused": 3}
        assert checkpoints.extra(3) == {}


def test_the_best_and_the_hourly_stay(saved):
    path, _, states = saved
    keep = Keep(last=1, best=1, metric="eval/error", mode="min")
    errors = {4: 0.5, 5: 0.25, 6: math.nan, 7: 0.75, 8: None}
    with Checkpoints(path, keep=keep) as checkpoints:
        for step, error in errors.items():
            metrics = {} if error is None else {"eval/error": error}
            checkpoints.save(step, states[1], data={}, config={}, metrics=metrics)
        assert checkpoints.steps == [5, 8]
    with Checkpoints(path, keep=keep) as checkpoints:  # remembered by the next process
        checkpoints.save(9, states[1], data={}, config={}, metrics={"eval/error": 0.375})
        assert checkpoints.steps == [5, 9]


def test_a_donated_buffer_is_saved_as_it_was(saved, tmp_path):
    _, _, states = saved
    mesh, size = sharding.make_mesh(2, 4), 1 << 20
    split = jax.NamedSharding(mesh, jax.P("fsdp"))
    place = {"copied": sharding.replicated(mesh), "split": split}
    add = jax.jit(
        lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0, out_shardings=place
    )
    arrays = {name: jax.device_put(np.zeros(size, np.float32), place[name]) for name in place}
    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), arrays
    )
    with Checkpoints(tmp_path / "donated", keep=5) as checkpoints:
        for step in range(1, 11):
            arrays = add(arrays)
            if step % 2:
                checkpoints.save(step, states[1].replace(trainable=arrays), data={}, config={})
        for step in checkpoints.steps:
            found = checkpoints.restore_trainable(shapes, step=step)
            for name, leaf in found.items():
                np.testing.assert_array_equal(leaf, np.full(size, step, np.float32), err_msg=name)
        assert checkpoints.steps == [1, 3, 5, 7, 9]


def test_saving_goes_on_in_the_background(saved, monkeypatch):
    path, _, states = saved
    may_end, write = threading.Event(), manifest.write
    monkeypatch.setattr(
        manifest, "write", lambda *args, **kwargs: may_end.wait(60) and write(*args, **kwargs)
    )
    with Checkpoints(path, keep=2) as checkpoints:
        checkpoints.save(4, states[1], data={}, config={})
        assert not (path / "4").exists()
        assert sorted(int(p.name) for p in path.iterdir() if p.name.isdigit()) == [2, 3]
        may_end.set()
        checkpoints.wait()
        assert (path / "4").exists()


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
def test_an_error_in_the_background_surfaces(saved, monkeypatch, error):
    path, like, states = saved

    def fail(*_, **__):
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(manifest, "write", fail)
    expected = f"{os.strerror(error)}: the checkpoint of step 4 was not saved; the last one .* 3"
    with Checkpoints(path, keep=2) as checkpoints:
        checkpoints.save(4, states[1], data={}, config={})
        with pytest.raises(OSError, match=expected) as raised:
            checkpoints.save(5, states[1], data={}, config={})
        assert raised.value.errno == error
        checkpoints.wait()  # raised once
        assert checkpoints.steps == [2, 3]
        assert checkpoints.restore(like)[1] == {"position": 30}
    assert sorted(child.name for child in path.iterdir()) == ["2", "3"]
    # A run that ends well has saved; one that fails says why it does.
    for ending, expected in ((SystemExit(75), OSError), (ZeroDivisionError(), ZeroDivisionError)):
        with pytest.raises(expected), Checkpoints(path, keep=2) as checkpoints:
            checkpoints.save(4, states[1], data={}, config={})
            raise ending


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
