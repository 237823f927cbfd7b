"""A budget against the step that the trainer compiles, at toy size on fake devices."""

import dataclasses
import math

import jax
import pytest

from roam_jax.accelerators import by_name
from roam_jax.budget.abstract import accelerator_config
from roam_jax.budget.account import RESERVED, Setting, compile_step, estimate, report
from roam_jax.budget.changes import Change, smallest_change
from roam_jax.cli.arguments import load_config

MESH = {"data": 2, "fsdp": 4}


def setting(mesh=MESH, count=8, memory=40e9):
    return Setting(by_name("a100-40"), memory, count, 8, mesh)


@pytest.fixture(scope="module")
def config():
    config = load_config("configs/canvas_toy.py:tiny")
    config.train.batch_size, config.optim.ema_decay = 16, 0.9
    return config


@pytest.fixture(scope="module")
def found(config):
    return estimate(config, setting(), jax.devices()[:8])


@pytest.fixture(scope="module")
def compiled(config):
    return compile_step(config, setting(), platform="cpu")


def test_what_is_held_is_what_the_compiled_step_is_given(found, compiled):
    assert sum(found.held.values()) == compiled.arguments
    assert found.held["average"] == found.held["trained"] > 0
    assert 2 * found.held["trained"] < found.held["optimizer"] < 2 * found.held["trained"] + 100


def test_the_program_is_that_of_one_device(config, found):
    alone = estimate(config, setting({}, count=1), jax.devices()[:1])
    assert (alone.step.rows, found.step.rows) == (16, 2)
    assert found.temporaries < alone.temporaries / 3


def test_a_mesh_that_the_step_refuses_is_refused(config):
    """Its parameters divide, its two heads do not."""
    split = setting({"data": 2, "tensor": 4})
    with pytest.raises(ValueError, match="2 attention heads do not divide by mesh.tensor = 4"):
        estimate(config, split, jax.devices()[:8])


def test_the_rows_of_all_bodies_are_counted():
    config = load_config("configs/mujoco_bc.py:tiny")
    config.train.batch_size = 4  # one row of each of two bodies on each of two devices
    found = estimate(config, setting({}, count=2), jax.devices()[:2])
    assert found.step.rows == 2
    assert {leaf.shape[0] for leaf in found.step.batch.values()} == {2}


@pytest.fixture(scope="module")
def in_parts(config):
    parts = Change({"train.accumulate": 2}).applied(config)
    assert parts.train.accumulate == 2
    assert config.train.accumulate == 1
    return estimate(parts, setting(), jax.devices()[:8])


def test_parts_of_a_batch_need_less(found, in_parts):
    assert in_parts.temporaries < found.temporaries
    assert in_parts.held == found.held


def test_gradients_cross_the_mesh(compiled):
    axes = {axis for each in compiled.collectives for axis in each.axes}
    assert axes == {"data", "fsdp"}
    assert all(each.sent > 0 for each in compiled.collectives if each.bytes)


def test_the_report_adds_up(found, compiled):
    made = report(found, setting(), compiled=compiled)
    held = made["bytes"]["held"]
    assert made["bytes"]["most"] == sum(held.values()) + found.band[1] + RESERVED
    assert made["bytes"]["fits"]
    assert made["flops"]["step"] == sum(made["flops"]["parts"].values()) > 0
    assert made["mesh"] == {"data": 2, "fsdp": 4, "sequence": 1, "tensor": 1}
    total = sum(row["sent"] for row in made["collectives"])
    assert total == pytest.approx(sum(each.sent for each in compiled.collectives))
    assert made["seconds"]["expected"] > made["seconds"]["roofline"] > 0


def test_masters_are_float32(found):
    assert {leaf.dtype.name for leaf in jax.tree.leaves(found.step.state.trainable)} == {"float32"}


def test_the_dtype_is_that_of_accelerators():
    graft = load_config("configs/bridge_3loop.py:tiny")
    made = accelerator_config(graft, {"fsdp": 2})
    assert made.train.dtype == "bfloat16"
    assert dict(made.mesh) == {"data": -1, "fsdp": 2, "sequence": 1, "tensor": 1}
    assert graft.train.dtype == "auto"


def tried(config, setting):
    return estimate(config, setting, jax.devices()[: setting.count])


def test_the_smallest_change_is_the_fewest_kinds(config, found, in_parts):
    # Between what is asked and what two parts need, so that parts alone are enough.
    memory = (found.most + in_parts.most) / 2
    tight = setting(memory=memory)
    change, changed, better = smallest_change(config, found, tight, try_it=tried)
    assert dict(changed.mesh) == dict(better.step.mesh.shape) == dict(found.step.mesh.shape)
    assert dict(change.leaves) == {"train.accumulate": 2}
    assert str(change) == "--config.train.accumulate=2"
    assert better.most <= memory < found.most


def test_nothing_fits_in_nothing(config, found):
    calls = []

    def count(config, setting):
        calls.append(tuple(config.mesh.values()))
        return dataclasses.replace(found)

    assert smallest_change(config, found, setting(memory=1.0), try_it=count) is None
    assert {math.prod(mesh) for mesh in calls} == {8}  # all that are tried have all devices
    # What is held does not fit, whatever the parts and the remat: a mesh is tried once.
    assert len(set(calls)) == len(calls) > 3
