"""Attention split over rows, heads and cells of eight devices: the numbers of one device."""

import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from roam_jax.attention import sharded
from roam_jax.canvas.layout import CanvasLayout, RegionSpec
from roam_jax.canvas.plan import compile_plan
from roam_jax.canvas.segments import SegmentTable
from roam_jax.canvas.shards import CellSplit, free_plan, key_exchange, sequence_traffic
from roam_jax.canvas.temporal_topologies import causal
from roam_jax.canvas.topology import CanvasTopology, Connection
from roam_jax.train.sharding import make_mesh
from tests.attention import oracle

ROWS, HEADS, WIDTH = 4, 4, 8
# (data, fsdp, sequence, tensor)
MESHES = ((8, 1, 1, 1), (1, 1, 8, 1), (2, 1, 1, 4), (1, 2, 2, 2), (1, 1, 4, 2))


def frames_layout(frames: int = 6, **regions) -> CanvasLayout:
    """Text in the first frame, then two streams; their cells divide by nothing."""
    streams = {"film": 7, "pose": 3}
    found = {"text": RegionSpec((0, 1, 0, 1, 0, 5))}
    for row, (name, columns) in enumerate(streams.items(), start=1):
        found[name] = RegionSpec((0, frames, row, row + 1, 0, columns))
    return CanvasLayout(T=frames, H=3, W=7, d_model=WIDTH, regions=found)


def causal_plan():
    layout = frames_layout()
    own = causal(layout, regions=("film", "pose")).connections
    text = [Connection(src=name, dst="text", weight=0.5) for name in ("film", "pose")]
    return compile_plan(layout, CanvasTopology((*own, *text, Connection("text", "text"))))


def random_heads(cells: int, *, heads: int = HEADS):
    keys = jax.random.split(jax.random.key(0), 4)
    return [jax.random.normal(key, (ROWS, cells, heads, WIDTH)) for key in keys]


def run(plan, split, mesh, query, key, value, change):
    """Output and gradients under a mesh, in the order of the sequence."""
    places = np.arange(query.shape[1]) if split is None else split.places.reshape(-1)
    back = np.argsort(np.where(places < 0, len(places), places), kind="stable")[: query.shape[1]]

    @jax.jit
    def attend(*arrays):
        laid_out = [jnp.where((places < 0)[:, None, None], 0, x[:, places]) for x in arrays]
        out, pull = jax.vjp(lambda *x: sharded.attention(*x, plan, split=split), *laid_out[:3])
        return [x[:, back] for x in (out, *pull(laid_out[3]))]

    where = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    rows = where if ROWS % (mesh.shape["data"] * mesh.shape["fsdp"]) == 0 else None
    rows = rows or NamedSharding(mesh, PartitionSpec())
    arrays = [jax.device_put(x, rows) for x in (query, key, value, change)]
    return attend(*arrays), attend.lower(*arrays).compile().as_text()


@pytest.mark.parametrize("sizes", MESHES, ids=str)
@pytest.mark.parametrize("kind", ["causal", "free"])
def test_equals_the_mask_on_one_device(kind, sizes):
    plan = causal_plan() if kind == "causal" else None
    whole = plan or free_plan(65)
    inputs = random_heads(whole.key_cells)
    split = None
    if sizes[2] > 1:
        split = CellSplit((5, 60), sizes[2])
    found, _ = run(plan, split, make_mesh(*sizes), *inputs)
    oracle.check(found, *inputs[:3], whole.table, inputs[3])


def moved(text: str) -> int:
    """Bytes that a compiled program sends between devices, over all pairs."""
    total = 0
    for line in text.splitlines():
        found = re.search(r"= f32\[([\d,]+)\]\S* (all-gather|collective-permute)(-start)?\(", line)
        if not found:
            continue
        size = 4 * math.prod(map(int, found[1].split(",")))
        if found[2] == "all-gather":
            total += size // 8 * 7 * 8
        else:
            pairs = re.search(r"source_target_pairs=\{(.*?)\}\}", line)[1]
            total += size * pairs.count("{")
    return total


def test_only_keys_that_are_read_travel():
    mesh, split = make_mesh(1, 1, 8, 1), CellSplit((5, 60), 8)
    plan = causal_plan()
    where = NamedSharding(mesh, PartitionSpec(None, "sequence"))
    cells = split.places.size
    heads = [
        jax.ShapeDtypeStruct((ROWS, cells, HEADS, WIDTH), np.float32, sharding=where)
        for _ in range(3)
    ]

    def compiled(plan):
        attend = jax.jit(lambda *x: sharded.attention(*x, plan, split=split))
        return attend.lower(*heads).compile().as_text()

    causal_bytes, free_bytes = moved(compiled(plan)), moved(compiled(None))
    # Keys and values of every other device to each; of a causal plan, as many as it says.
    cell = 2 * ROWS * HEADS * WIDTH * 4
    assert free_bytes == 7 * cells * cell
    assert causal_bytes == sequence_traffic(plan, split).sum() * cell
    assert causal_bytes < 0.8 * free_bytes


def test_traffic_of_a_chain():
    """Devices of a chain of frames, each of which reads itself and the one before."""
    layout = CanvasLayout(
        T=8, H=1, W=3, d_model=WIDTH, regions={"film": RegionSpec((0, 8, 0, 1, 0, 3))}
    )
    plan = compile_plan(layout, causal(layout, window=1))
    split = CellSplit((24,), 8)
    np.testing.assert_array_equal(sequence_traffic(plan, split), [0] + [3] * 7)
    exchange = key_exchange(plan, split)
    assert [message.pairs for message in exchange.messages] == [tuple((i, i + 1) for i in range(7))]
    # Every device computes its own part: three queries over six keys, the first over three.
    assert [p.scores for p in exchange.plans] == [9] + [18] * 7
    np.testing.assert_array_equal(sequence_traffic(free_plan(24), split), [21] * 8)


def test_split_lays_streams_side_by_side():
    split = CellSplit((3, 5), 2)
    assert split.padded == (4, 6)
    np.testing.assert_array_equal(split.places, [[0, 1, 3, 4, 5], [2, -1, 6, 7, -1]])
    np.testing.assert_array_equal(split.spread(np.arange(1, 9)), [1, 2, 4, 5, 6, 3, 0, 7, 8, 0])
    np.testing.assert_array_equal(split.padded_stream(np.arange(1, 4), 0), [1, 2, 3, 0])
    with pytest.raises(ValueError, match="expected 1 or more"):
        CellSplit((3, 0), 2)


def test_what_cannot_be_split_is_refused():
    mesh = make_mesh(1, 1, 2, 4)
    layout = frames_layout()
    with pytest.raises(ValueError, match="6 attention heads do not divide by mesh.tensor = 4"):
        run(None, None, mesh, *random_heads(65, heads=6))
    edges = (Connection("film", "film", fn="pooling"), Connection("pose", "pose"))
    plan = compile_plan(layout, CanvasTopology(edges))
    with pytest.raises(ValueError, match="mesh.sequence = 2 .*film -> film: pooling"):
        key_exchange(plan, CellSplit((5, 60), 2))
    with pytest.raises(ValueError, match="the plan has 65 queries and 65 keys, expected 64"):
        key_exchange(causal_plan(), CellSplit((4, 60), 2))


def test_queries_without_keys_get_0():
    """On a device of their own, which is sent nothing."""
    layout = CanvasLayout(
        T=2, H=1, W=4, d_model=WIDTH, regions={"film": RegionSpec((0, 2, 0, 1, 0, 4))}
    )
    plan = compile_plan(layout, CanvasTopology((Connection("film", "film", t_src=0, t_dst=0),)))
    inputs = random_heads(8)
    plan = dataclasses.replace(plan, table=_without_first_frame(plan.table))
    found, _ = run(plan, CellSplit((8,), 8), make_mesh(1, 1, 8, 1), *inputs)
    oracle.check(found, *inputs[:3], plan.table, inputs[3])


def _without_first_frame(table):
    log_weight = table.log_weight.copy()
    log_weight[0] = -np.inf
    return SegmentTable(table.segments, log_weight)
