"""Which implementation runs where, and that each of them is planned attention."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from roam_jax.attention import dense, grouped_cudnn
from roam_jax.attention.planned import best_implementation, planned_attention
from roam_jax.canvas.layout import CanvasLayout
from roam_jax.canvas.plan import compile_plan
from roam_jax.canvas.topology import CanvasTopology, Connection

# Frames of 96 cells: queries of a tile overlap where a region's cells do not divide evenly.
LAYOUT = CanvasLayout(5, 16, 12, 64, {"a": (0, 5, 0, 8, 0, 12), "b": (0, 5, 8, 16, 0, 12)})
PLAIN = CanvasTopology.hub_spoke("a", ["b"])
WEIGHTED = CanvasTopology((Connection("a", "a"), Connection("b", "a", weight=0.5)))


def heads(plan, dtype=jnp.float32, width=32):
    sizes = plan.query_cells, plan.key_cells, plan.key_cells
    keys = jax.random.split(jax.random.key(0), 3)
    return [jax.random.normal(k, (2, n, 2, width), dtype) for k, n in zip(keys, sizes, strict=True)]


@pytest.mark.parametrize(
    "topology, dtype, platform, expected",
    [
        (PLAIN, jnp.float32, "cpu", "tiles"),
        (PLAIN, jnp.bfloat16, "gpu", "cudnn"),
        (PLAIN, jnp.float32, "gpu", "triton"),
        (WEIGHTED, jnp.bfloat16, "gpu", "triton"),
        (PLAIN, jnp.float8_e4m3fn, "gpu", "tiles"),
        (PLAIN, jnp.bfloat16, "tpu", "splash"),
        (WEIGHTED, jnp.bfloat16, "tpu", "tiles"),
    ],
)
def test_the_platform_chooses(topology, dtype, platform, expected):
    plan = compile_plan(LAYOUT, topology)
    assert not plan.is_dense
    assert best_implementation(plan, *heads(plan, dtype), platform=platform) == expected


def test_groups_of_cudnn_are_the_plan(monkeypatch):
    """In place of cuDNN a plain softmax of each group; values and gradients of the whole."""

    def attend_groups(query, key, value):
        scores = jnp.einsum("GBNKD,GBMKD->GBKNM", query, key) / np.sqrt(query.shape[-1])
        return jnp.einsum("GBKNM,GBMKD->GBNKD", jax.nn.softmax(scores), value)

    monkeypatch.setattr(grouped_cudnn, "attend_groups", attend_groups)
    monkeypatch.setattr("roam_jax.canvas.tiles.ROWS", 70)  # several tiles, the last one shifted
    monkeypatch.setattr("roam_jax.canvas.plan.MASKED_COST", 1e9)
    plan = compile_plan(LAYOUT, PLAIN)
    assert any(stack.skipped.any() for stack in plan.stacks)
    inputs = heads(plan)
    change = jax.random.normal(jax.random.key(1), inputs[0].shape)
    results = []
    for run in (
        lambda *x: planned_attention(*x, plan, implementation="cudnn"),
        lambda *x: dense.attention(*x, table=plan.table),
    ):
        out, pull = jax.vjp(run, *inputs)
        results.append([out, *pull(change)])
    for found, expected in zip(*results, strict=True):
        assert np.linalg.norm(found - expected) <= 5e-6 * np.linalg.norm(expected)


def test_cudnn_takes_plain_groups_alone():
    plan = compile_plan(LAYOUT, WEIGHTED)
    with pytest.raises(ValueError, match="log weights"):
        planned_attention(*heads(plan, jnp.bfloat16), plan, implementation="cudnn")


def test_cudnn_takes_no_plan_that_is_dense_under_a_mask(monkeypatch):
    monkeypatch.setattr("roam_jax.canvas.plan.MASKED_COST", 0)
    plan = compile_plan(LAYOUT, PLAIN)
    assert plan.is_dense
    with pytest.raises(ValueError, match="'cudnn': the plan is dense under a mask"):
        planned_attention(*heads(plan, jnp.bfloat16), plan, implementation="cudnn")


def test_the_kernel_lowers_for_a_gpu_that_is_not_there():
    plan = compile_plan(LAYOUT, WEIGHTED)

    def loss(*inputs):
        return planned_attention(*inputs, plan, implementation="triton").sum()

    traced = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).trace(*heads(plan, jnp.bfloat16, 64))
    assert "triton" in traced.lower(lowering_platforms=("cuda",)).as_text()


def test_an_unknown_implementation_is_refused():
    plan = compile_plan(LAYOUT, PLAIN)
    with pytest.raises(ValueError, match="implementation = 'cuddn'.*did you mean 'cudnn'"):
        planned_attention(*heads(plan), plan, implementation="cuddn")
