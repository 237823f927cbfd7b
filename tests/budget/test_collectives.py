"""What is sent, against programs whose traffic is known."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from roam_jax.budget.collectives import UNKNOWN, read_collectives

SHAPE = {"data": 2, "fsdp": 4}
SIDE = 64


@pytest.fixture(scope="module")
def mesh():
    return jax.make_mesh(tuple(SHAPE.values()), tuple(SHAPE))


def found_in(function, mesh, *specs, per_node=8):
    args = [
        jax.ShapeDtypeStruct((SIDE, SIDE), jnp.float32, sharding=NamedSharding(mesh, spec))
        for spec in specs
    ]
    text = jax.jit(function).lower(*args).compile().as_text()
    return read_collectives(text, SHAPE, per_node=per_node)


def gather(axis):
    def function(x):
        return jax.shard_map(
            lambda x: jax.lax.all_gather(x, axis, tiled=True),
            mesh=jax.typeof(x).sharding.mesh,
            in_specs=P(axis),
            out_specs=P(),
            check_vma=False,
        )(x)

    return function


@pytest.mark.parametrize("axis", ["data", "fsdp"])
def test_an_all_gather_along_one_axis(mesh, axis):
    (one,) = found_in(gather(axis), mesh, P(axis))
    n = SHAPE[axis]
    assert (one.operation, one.axes, one.group, one.times) == ("all-gather", (axis,), n, 1)
    assert one.bytes == 4 * SIDE**2 // n
    assert one.sent == (n - 1) * one.bytes


def test_a_sum_over_both_axes_in_a_loop(mesh):
    def total(x):
        def body(x):
            step = lambda c, _: (jax.lax.psum(c, ("data", "fsdp")) / 8, None)  # noqa: E731
            return jax.lax.scan(step, x, None, length=5)[0]

        spec = P(("data", "fsdp"))
        own = jax.typeof(x).sharding.mesh
        return jax.shard_map(body, mesh=own, in_specs=spec, out_specs=spec, check_vma=False)(x)

    (one,) = found_in(total, mesh, P(("data", "fsdp")))
    assert (one.operation, one.axes, one.times) == ("all-reduce", ("data", "fsdp"), 5)
    assert one.sent == 5 * 2 * (7 / 8) * (4 * SIDE**2 // 8)


def test_a_permutation_lies_along_its_axis(mesh):
    def shifted(x):
        ring = [(i, (i + 1) % 4) for i in range(4)]
        return jax.shard_map(
            lambda x: jax.lax.ppermute(x, "fsdp", ring),
            mesh=jax.typeof(x).sharding.mesh,
            in_specs=P("fsdp"),
            out_specs=P("fsdp"),
            check_vma=False,
        )(x)

    (one,) = found_in(shifted, mesh, P("fsdp"))
    assert (one.operation, one.axes) == ("collective-permute", ("fsdp",))
    assert one.sent == one.bytes == 4 * SIDE**2 // 4


def test_groups_of_several_nodes_are_told(mesh):
    (within,) = found_in(gather("fsdp"), mesh, P("fsdp"), per_node=4)
    (across,) = found_in(gather("data"), mesh, P("data"), per_node=4)
    assert not within.across
    assert across.across


def one(groups, result="f32[8]{0}", operation="all-reduce"):
    text = (
        "ENTRY %main (x: f32[8]) -> f32[8] {\n"
        "  %x = f32[8]{0} parameter(0)\n"
        f"  ROOT %y = {result} {operation}(%x), {groups}, to_apply=%sum\n"
        "}\n"
    )
    (found,) = read_collectives(text, SHAPE, per_node=8)
    return found


@pytest.mark.parametrize(
    ("groups", "axes"),
    [
        ("replica_groups={{0,4},{1,5},{2,6},{3,7}}", ("data",)),
        ("replica_groups={{0,1,2,3},{4,5,6,7}}", ("fsdp",)),
        ("replica_groups=[2,4]<=[8]", ("fsdp",)),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", ("data",)),
        ("replica_groups=[1,8]<=[8]", ("data", "fsdp")),
        ("replica_groups={}", ("data", "fsdp")),
        ("replica_groups=mesh['a'=2,'b'=4] {'b'}", ("fsdp",)),
        ("replica_groups=mesh['a'=2,'b'=4] {'a'}", ("data",)),
        ("replica_groups={{0,1},{2,3},{4,5},{6,7}}", ("fsdp",)),
        ("replica_groups={{0,5},{1,4},{2,7},{3,6}}", ("data", "fsdp")),
    ],
)
def test_groups_in_all_spellings(groups, axes):
    found = one(groups)
    assert found.axes == axes
    assert found.bytes == 32


def test_starts_of_asynchronous_ones_are_counted_once():
    text = (
        "ENTRY %main (x: f32[8]) -> f32[64] {\n"
        "  %x = f32[8]{0} parameter(0)\n"
        "  %s = (f32[8]{0}, f32[64]{0}) all-gather-start(%x), replica_groups=[1,8]<=[8]\n"
        "  ROOT %d = f32[64]{0} all-gather-done(%s)\n"
        "}\n"
    )
    (found,) = read_collectives(text, SHAPE, per_node=8)
    assert (found.bytes, found.sent) == (32, 7 * 32)
    assert UNKNOWN not in found.axes
