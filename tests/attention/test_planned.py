"""Planned attention against the masked oracle on random canvases, values and gradients."""

import contextlib

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roam_jax.attention.planned import planned_attention
from roam_jax.canvas import plan as plans
from roam_jax.canvas import tiles
from roam_jax.canvas.layout import CanvasLayout
from roam_jax.canvas.plan import AttentionPlan, compile_plan
from roam_jax.canvas.topology import CanvasTopology, Connection
from tests.attention import oracle
from tests.canvas.canvases import edges, layouts

BATCH, HEADS, WIDTH = 2, 3, 8
SOFTMAX = ("cross_attention", "cogvideox", "none")


def softmax_plan(layout: CanvasLayout, drawn: list[Connection]) -> AttentionPlan:
    """A plan of those edges that match a frame, all of kinds that are softmax or none."""
    kinds = {name: SOFTMAX[i % 3] for i, name in enumerate(layout.regions)}
    made = []
    for edge in drawn:
        kind = edge.fn if edge.fn in SOFTMAX else kinds[edge.src]
        made.append(Connection(**{**vars(edge), "fn": kind}))
    return compile_plan(layout, CanvasTopology(tuple(made)).matching(layout))


def heads(queries: int, keys: int, *, seed=0):
    sizes = (queries, keys, keys, queries)
    return tuple(
        jax.random.normal(k, (BATCH, n, HEADS, WIDTH))
        for k, n in zip(jax.random.split(jax.random.key(seed), 4), sizes, strict=True)
    )


def check(plan: AttentionPlan):
    query, key, value, change = heads(plan.query_cells, plan.key_cells)
    out, pull = jax.vjp(lambda *x: planned_attention(*x, plan), query, key, value)
    oracle.check((out, *pull(change)), query, key, value, plan.table, change)


@contextlib.contextmanager
def small_tiles():
    """Tiles on canvases of any size, small ones, so that every loop runs more than once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plans, "MASKED_COST", 1e9)
        patch.setattr(tiles, "ROWS", 4)
        patch.setattr(tiles, "SMALL_ROWS", 2)
        patch.setattr(tiles, "STACK_COST", 10)
        patch.setattr(tiles, "PIECE_SCORES", 60)
        patch.setattr(tiles, "KEY_CHUNK", 7)
        yield


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_equals_the_mask_on_random_canvases(data):
    layout = data.draw(layouts(lengths=True))
    if layout.regions:
        check(softmax_plan(layout, data.draw(edges(layout))))


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_tiles_equal_the_mask_on_random_canvases(data):
    layout = data.draw(layouts(lengths=True))
    with small_tiles():
        plan = softmax_plan(layout, data.draw(edges(layout)))
        assert not plan.is_dense
        check(plan)


CANVAS = CanvasLayout(
    7,
    12,
    9,
    64,
    {"text": (0, 1, 0, 4, 0, 9), "video": (0, 7, 4, 9, 0, 9), "action": (1, 7, 9, 10, 0, 4)},
)


@pytest.mark.parametrize("keys", [(0, 1, 2, 5, 9), tuple(range(14))])
def test_slices_equal_rows_of_the_whole(keys):
    topology = CanvasTopology.causal_temporal(list(CANVAS.regions)).matching(CANVAS)
    with small_tiles():
        check(compile_plan(CANVAS, topology, queries=(1, 2, 9), keys=keys))


def test_huge_key_sets_are_taken_in_chunks(monkeypatch):
    """A region that reads everything: an online softmax over chunks of its keys."""
    monkeypatch.setattr(plans, "MASKED_COST", 1e9)
    monkeypatch.setattr(tiles, "KEY_CHUNK", 100)
    hub = CanvasTopology.hub_spoke("action", ["text", "video"])
    check(compile_plan(CANVAS, hub))


def test_chunks_without_a_key_leave_low_scores_to_others(monkeypatch):
    """Every score is -800: as a peak of 0 would, exp(-800) is 0 in float32."""
    monkeypatch.setattr(plans, "MASKED_COST", 1e9)
    monkeypatch.setattr(tiles, "KEY_CHUNK", 7)
    layout = CanvasLayout(4, 2, 4, 8, {"a": (0, 4, 0, 2, 0, 4)})
    plan = compile_plan(layout, CanvasTopology.causal_temporal(["a"]))
    query, key = (jnp.full((1, 32, 1, 4), x) for x in (-20.0, 20.0))
    value = jax.random.normal(jax.random.key(0), (1, 32, 1, 4))
    weight = oracle.weights(plan.table)
    mean = weight @ value[0, :, 0] / weight.sum(axis=1, keepdims=True)
    found = planned_attention(query, key, value, plan)[0, :, 0]
    assert oracle.distance(found, mean) <= 2e-6


def test_no_array_grows_with_the_square_of_the_cells():
    layout = CanvasLayout(16, 16, 16, 64, {"a": (0, 16, 0, 8, 0, 16), "b": (0, 16, 8, 16, 0, 16)})
    sizes = {}
    for name in ("dense", "causal_temporal"):
        plan = compile_plan(layout, getattr(CanvasTopology, name)(["a", "b"]))
        shape = jax.ShapeDtypeStruct((1, 4096, 1, 64), jnp.float32)
        step = jax.jit(
            jax.grad(lambda *x, plan=plan: planned_attention(*x, plan).sum(), argnums=(0, 1, 2))
        )
        memory = step.lower(shape, shape, shape).compile().memory_analysis()
        sizes[name] = memory.temp_size_in_bytes
    assert max(sizes.values()) < 4096**2 * 4
    assert sizes["causal_temporal"] < sizes["dense"] / 3


def test_one_compilation_for_equal_plans():
    traced = 0

    def attend(query, key, value, plan):
        nonlocal traced
        traced += 1
        return planned_attention(query, key, value, plan)

    run = jax.jit(attend, static_argnums=3)
    topology = CanvasTopology.causal_temporal(list(CANVAS.regions)).matching(CANVAS)
    for _ in range(3):
        plan = compile_plan(CANVAS, topology)
        run(*heads(plan.query_cells, plan.key_cells)[:3], plan)
    assert traced == 1


def test_sequences_of_other_lengths_are_refused():
    plan = compile_plan(CANVAS, CanvasTopology.dense(list(CANVAS.regions)))
    with pytest.raises(ValueError, match=f"plan for {plan.query_cells} queries"):
        planned_attention(*heads(5, 5)[:3], plan)
