from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from roam_jax import logical
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
        (".*", logical.shard_largest),
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
    assert "axis 0 of size 6 does not divide by mesh.fsdp = 4 devices" in message
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
    assert logical.shard_largest(shape, SIZES) == spec


WHOLE = {"data": 1, "fsdp": 4, "sequence": 1, "tensor": 2}


@pytest.mark.parametrize(
    ("names_of_axes", "shape", "sizes", "spec"),
    [
        # fsdp takes the largest axis that is left; without tensor, the largest of all.
        (("depth", "width", "hidden"), (30, 1920, 7680), WHOLE, P(None, "fsdp", "tensor")),
        (("depth", "hidden", "width"), (30, 7680, 1920), WHOLE, P(None, "tensor", "fsdp")),
        (("depth", "width", "hidden"), (30, 1920, 7680), SIZES, P(None, None, "fsdp")),
        (("depth", "width", "heads"), (3, 4, 4), WHOLE, P(None, None, "tensor")),  # small
        (("depth", "heads"), (30, 1920), WHOLE, P(None, "tensor")),  # no matrix
        (("width", "heads"), (1921, 1920), {**WHOLE, "fsdp": 7}, P(None, "tensor")),
        (("batch", "cells"), (8, 4), {**WHOLE, "data": 2}, P(("data", "fsdp"))),
    ],
)
def test_logical_axes(names_of_axes, shape, sizes, spec):
    assert logical.axes(*names_of_axes)(shape, sizes) == spec


def test_logical_axes_that_do_not_fit():
    with pytest.raises(ValueError, match="logical axis = 'head': expected one of .* 'heads'"):
        logical.axes("depth", "head")
    tree = shapes(attn__kernel=(2, 8, 9), attn__bias=(2, 9, 1))
    rules = (
        ("kernel", logical.axes("depth", "width", "heads")),
        ("bias", logical.axes("depth", "heads")),
    )
    with pytest.raises(ValueError) as error:
        sharding.match_rules(rules, tree, axis_sizes=WHOLE)
    assert (
        "rule 'kernel' -> axes(depth, width, heads) = P(None, None, 'tensor') on "
        "parameter attn/kernel (2, 8, 9): axis 2 of size 9 does not divide by mesh.tensor = 2"
    ) in str(error.value)
    assert "attn/bias (2, 9, 1): axes(depth, heads) names 2 axes, the parameter has 3" in str(
        error.value
    )


@pytest.mark.parametrize("axis", ["sequence", "tensor"])
def test_axis_over_which_nothing_is_split(axis):
    sizes = {"data": 1, "fsdp": 1, "sequence": 1, "tensor": 1, axis: 2}
    with pytest.raises(ValueError, match=f"mesh.{axis} = 2: nothing of this model is split"):
        sharding.match_rules(((".*", P()),), shapes(a=(8,)), axis_sizes=sizes)
    heads = ((".*", logical.axes("heads")),)
    sharding.match_rules(heads, shapes(a=(8,)), axis_sizes=sizes)


def traced(x, mesh):
    """What `logical` sees of an array within `jit`."""
    seen = []

    @jax.jit
    def look(x):
        y = logical.constrain(jnp.sin(x), "batch", "cells", "hidden")
        seen.append((logical.shards(y, "batch"), logical.shards(y, "cells")))
        return y

    y = look(x if mesh is None else jax.device_put(x, sharding.batch_sharding(mesh)))
    return seen[0], y.sharding


def test_activations_are_split_by_the_table():
    x = np.ones((4, 6, 8), np.float32)
    mesh = sharding.make_mesh(1, 2, 2, 2)
    seen, where = traced(x, mesh)
    assert seen == (2, 2)
    assert where.is_equivalent_to(
        jax.sharding.NamedSharding(mesh, P(("data", "fsdp"), "sequence", "tensor")), ndim=3
    )
    # A size that does not divide stays whole.
    _, where = traced(x[:, :5], mesh)
    assert where.is_equivalent_to(
        jax.sharding.NamedSharding(mesh, P(("data", "fsdp"), None, "tensor")), ndim=3
    )


def test_activations_without_a_mesh_are_left_alone():
    x = np.ones((4, 6, 8), np.float32)
    assert traced(x, None)[0] == (1, 1)
    assert traced(x, sharding.make_mesh(1, 1, devices=jax.devices()[:1]))[0] == (1, 1)
    here = jnp.asarray(x)
    assert logical.constrain(here, "batch", "cells", "hidden") is here

    def within(x):
        assert logical.mesh_of(x) is None
        return logical.constrain(x, "batch", "cells", "hidden")

    for names_of_axes in (("data", "fsdp", "sequence", "tensor"), ("seeds",)):
        sizes = (4,) + (1,) * (len(names_of_axes) - 1)
        kinds = (AxisType.Auto,) * len(sizes)
        mesh = jax.make_mesh(sizes, names_of_axes, devices=jax.devices()[:4], axis_types=kinds)
        split = P(names_of_axes[0])
        run = jax.shard_map(within, mesh=mesh, in_specs=split, out_specs=split, check_vma=False)
        np.testing.assert_array_equal(jax.jit(run)(x), x)


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
