"""One row at a time, wherever the rows lie."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from roam_jax.tasks.row_map import map_rows

SCALE = jnp.float32(3)
ROWS = np.arange(2 * 8 * 3, dtype=np.float32).reshape(2, 8, 3)


def mapped(rows):
    return map_rows(lambda scale, row: scale * row, SCALE, rows)


def mesh_of_two(kind: AxisType) -> Mesh:
    return jax.make_mesh((2,), ("here",), devices=jax.devices()[:2], axis_types=(kind,))


@pytest.mark.parametrize("each", [jax.vmap(mapped), lambda runs: mapped(runs[0])[None]])
def test_rows_of_a_device_stay_whole_within_a_shard_map(each):
    """As in the program of many seeds, whose devices each train seeds of their own."""
    split = PartitionSpec("here")
    on_devices = jax.shard_map(
        each, mesh=mesh_of_two(AxisType.Auto), in_specs=split, out_specs=split, check_vma=False
    )
    np.testing.assert_array_equal(jax.jit(on_devices)(ROWS), 3 * ROWS)


def test_rows_over_a_mesh_are_those_of_one_device():
    where = NamedSharding(mesh_of_two(AxisType.Explicit), PartitionSpec("here"))
    out = jax.jit(mapped)(jax.device_put(ROWS[0], where))
    assert out.sharding.is_equivalent_to(where, ndim=2)
    np.testing.assert_array_equal(out, 3 * ROWS[0])


@pytest.mark.parametrize("rows", [8, 4, 2, 3])
def test_rows_that_not_all_devices_divide(rows):
    """Of a mesh that splits cells or heads as well; what is found is split as batches are."""
    kinds = (AxisType.Auto,) * 3
    mesh = jax.make_mesh((2, 2, 2), ("data", "sequence", "tensor"), axis_types=kinds)
    values = ROWS[0][:rows]
    out = jax.jit(mapped)(jax.device_put(values, NamedSharding(mesh, PartitionSpec())))
    split = None if rows == 3 else "data"
    assert out.sharding.is_equivalent_to(NamedSharding(mesh, PartitionSpec(split)), ndim=2)
    np.testing.assert_array_equal(out, 3 * values)
