from __future__ import annotations

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from roam_jax.contracts import ArraySpec
from roam_jax.train import names, sharding

SIZES = {"data": 2, "fsdp": 4}


def shapes(**leaves):
    flat = {name.replace("__", "/"): leaf for name, leaf in leaves.items()}
    return names.unflatten({k: jax.ShapeDtypeStruct(v, np.float32) for k, v in flat.items()})


@pytest.mark.parametrize(
    ("asked", "made"), [((8, 1), (8, 1)), ((-1, 4), (2, 4)), ((1, -1), (1, 8)), ((2, 4), (2, 4))]
)
def test_mesh(asked, made):
    mesh = sharding.make_mesh(*asked)
    assert dict(mesh.shape) == {"data": made[0], "fsdp": made[1], "sequence": 1, "tensor": 1}


@pytest.mark.parametrize(
    ("asked", "nearest"),
    [((3, 2), (4, 2)), ((-1, 3), (2, 4)), ((5, -1), (4, 2)), ((16, 1), (8, 1)), ((2, 0), (2, 4))],
)
def test_mesh_that_does_not_use_all_devices(asked, nearest):
    with pytest.raises(ValueError, match="expected a product of 8") as error:
        sharding.make_mesh(*asked)
    assert str(error.value).startswith(f"mesh.data = {asked[0]}, mesh.fsdp = {asked[1]}, ")
    assert str(error.value).endswith(
        f"works: mesh.data = {nearest[0]}, mesh.fsdp = {nearest[1]}, mesh.sequence = 1, "
        "mesh.tensor = 1"
    )


def test_mesh_with_nothing_said():
    with pytest.raises(ValueError, match="one may be -1, the rest"):
        sharding.make_mesh(-1, -1)


def test_first_rule_decides():
    tree = shapes(blocks__loop__gate=(3, 30), blocks__attn__kernel=(30, 64, 192), norm__scale=(64,))
    rules = (
        ("loop/", P()),
        ("^blocks/", P(None, None, "fsdp")),
        (".*", sharding.shard_largest),
    )
    assert names.flatten(sharding.match_rules(rules, tree, axis_sizes=SIZES)) == {
        "blocks/loop/gate": P(),
        "blocks/attn/kernel": P(None, None, "fsdp"),
        "norm/scale": P(),
    }


def test_all_misfits_in_one_message():
    tree = shapes(a__kernel=(6, 8), a__bias=(8,), b__kernel=(8, 8))
    rules = (
        ("a/kernel", P("fsdp")),
        ("a/", P(None, "fsdp")),
        ("^kernel", P()),
        ("/bias", P()),
    )
    with pytest.raises(ValueError, match="sharding rules") as error:
        sharding.match_rules(rules, tree, axis_sizes=SIZES)
    message = str(error.value)
    assert "rule 'a/kernel'" in message
    assert "axis 0 of size 6 does not divide by 4 devices" in message
    assert "the spec has 2 axes, the parameter 1" in message
    assert "parameter b/kernel (8, 8) is matched by no rule" in message
    # One that matches nothing, and one that comes too late to decide anything.
    assert "rule '^kernel' decides no parameter" in message
    assert "rule '/bias' decides no parameter" in message


def test_unknown_mesh_axis():
    with pytest.raises(ValueError, match="mesh axis 'model' is none of"):
        sharding.match_rules(((".*", P("model")),), shapes(a=(8,)), axis_sizes=SIZES)


@pytest.mark.parametrize(
    ("shape", "spec"),
    [
        ((30, 1920, 7680), P(None, None, "fsdp")),
        ((8192, 30), P("fsdp")),
        ((1920, 1920), P("fsdp")),  # the first of equal axes
        ((1922, 64, 3), P(None, "fsdp")),  # 1922 does not divide
        ((4095, 3), P()),  # nothing divides
        ((64, 63), P()),  # too small
        ((), P()),
    ],
)
def test_shard_largest(shape, spec):
    assert sharding.shard_largest(shape, SIZES) == spec


def test_batch_is_split_over_both_axes():
    mesh = sharding.make_mesh(2, 4)
    spec = {"x": ArraySpec((16, 3), np.dtype(np.float32))}
    x = np.arange(48, dtype=np.float32).reshape(16, 3)
    placed = sharding.put_batch({"x": x}, sharding.batch_shapes(spec, mesh))["x"]
    rows = sorted(shard.data.tolist() for shard in placed.addressable_shards)
    assert rows == x.reshape(8, 2, 3).tolist()


def test_batch_that_does_not_divide():
    spec = {"x": ArraySpec((12, 3), np.dtype(np.float32))}
    with pytest.raises(ValueError, match="batch_size = 12 does not divide by .* = 8 devices"):
        sharding.batch_shapes(spec, sharding.make_mesh(2, 4))


def test_batch_that_does_not_fit_its_spec():
    mesh = sharding.make_mesh(8, 1)
    specs = sharding.batch_shapes({"x": ArraySpec((8, 3), np.dtype(np.float32))}, mesh)
    with pytest.raises(ValueError, match=r"x is \(\(8, 2\), 'float32'\), expected \(\(8, 3\)"):
        sharding.put_batch({"x": np.zeros((8, 2), np.float32)}, specs)
    with pytest.raises(ValueError, match="x is missing.*; y is .*, expected no such field"):
        sharding.put_batch({"y": np.zeros((8, 3), np.float32)}, specs)
