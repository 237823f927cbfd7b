"""Every edge kind against float64 numpy, and against canvas-engineering's own modules."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from canvas_engineering.attention import create_attention
from scipy.special import expit

from roam_jax.attention import kinds
from roam_jax.attention.kinds import RUNNABLE, random_keys, run_edge
from roam_jax.canvas.kinds import OTHER_KINDS
from roam_jax.canvas.layout import CanvasLayout
from roam_jax.canvas.plan import CellStack, EdgePlan, compile_plan
from roam_jax.canvas.topology import CanvasTopology, Connection

HEADS, WIDTH = 3, 8
LEARNED = {"cosine_attention": 7.0, "gated": 0.4}


def parameter(kind):
    if kind == "perceiver":
        return np.random.default_rng(9).standard_normal((HEADS, 8, WIDTH)).astype(np.float32)
    return np.float32(LEARNED[kind]) if kind in LEARNED else None


def heads(queries, keys, *, batch=2, seed=0):
    rng = np.random.default_rng(seed)
    shapes = [(batch, n, HEADS, WIDTH) for n in (queries, keys, keys)]
    return tuple(rng.standard_normal(shape).astype(np.float32) for shape in shapes)


def whole_groups(query_cells, key_cells):
    """Groups none of whose queries are missing."""
    size = query_cells.shape[1]
    places = np.broadcast_to(np.arange(size, dtype=np.int32), query_cells.shape)
    return CellStack(query_cells, key_cells, places, size)


def edge(kind, queries, keys, *, index=2):
    """One group: all queries read all keys."""
    cells = (np.arange(n, dtype=np.int32)[None] for n in (queries, keys))
    return EdgePlan(kind, index, "a", "b", (whole_groups(*cells),))


def run(kind, query, key, value):
    plan = edge(kind, query.shape[1], key.shape[1])
    return run_edge(plan, *map(jnp.asarray, (query, key, value)), learned_array(kind))


def learned_array(kind):
    learned = parameter(kind)
    return None if learned is None else jnp.asarray(learned)


def reads(scores, value, allowed=None):
    """Softmax attention; a row without keys reads nothing."""
    allowed = np.ones(scores.shape[-2:], bool) if allowed is None else allowed
    mass = np.exp(scores - scores.max()) * allowed
    total = mass.sum(-1, keepdims=True)
    return mass / np.where(total > 0, total, 1) @ value


def reference(kind, query, key, value):
    """One kind for all queries and keys, (B, K, N, D) inside."""
    q, k, v = (np.swapaxes(np.asarray(x, np.float64), 1, 2) for x in (query, key, value))
    rows, columns = q.shape[2], k.shape[2]
    scores = q @ np.swapaxes(k, 2, 3) / np.sqrt(WIDTH)
    learned = parameter(kind)
    if kind == "linear_attention":
        q, k = (np.where(x > 0, x + 1, np.exp(np.minimum(x, 0))) for x in (q, k))
        weights = q @ np.swapaxes(k, 2, 3)
        out = weights @ v / (weights.sum(-1, keepdims=True) + 1e-6)
    elif kind == "cosine_attention":
        lengths = [np.linalg.norm(x, axis=-1) for x in (q, k)]
        cosine = q @ np.swapaxes(k, 2, 3) / lengths[0][..., None] / lengths[1][:, :, None]
        out = reads(cosine * learned, v)
    elif kind == "sigmoid_attention":
        out = expit(scores) @ v
    elif kind == "gated":
        out = expit(np.float64(learned)) * reads(scores, v)
    elif kind == "perceiver":
        read = reads(learned.astype(np.float64) @ np.swapaxes(k, 2, 3) / np.sqrt(WIDTH), v)
        out = reads(q @ np.swapaxes(read, 2, 3) / np.sqrt(WIDTH), read)
    elif kind == "pooling":
        out = np.broadcast_to(v.mean(2, keepdims=True), q.shape)
    elif kind == "copy":
        out = np.zeros_like(q)
        out[:, :, :columns] = v[:, :, :rows]
    elif kind == "sparse_attention":
        ranked = np.sort(scores, axis=-1)[..., ::-1]
        out = reads(scores, v, scores >= ranked[..., min(8, columns) - 1 :][..., :1])
    elif kind == "local_attention":
        places = np.array([j * rows // columns for j in range(columns)])
        out = reads(scores, v, np.abs(np.arange(rows)[:, None] - places) <= 4)
    elif kind == "random_fixed":
        allowed = np.zeros((rows, columns), bool)
        np.put_along_axis(allowed, random_keys(rows, columns, seed=2), True, axis=1)
        out = reads(scores, v, allowed)
    return np.swapaxes(out, 1, 2)


def test_every_kind_that_is_named_runs():
    assert set(RUNNABLE) == set(OTHER_KINDS)


@pytest.mark.parametrize("kind", RUNNABLE)
@pytest.mark.parametrize("shape", [(30, 11), (13, 40), (40, 1)])
def test_equals_its_closed_form(kind, shape):
    """Fewer keys, more keys, and one key, which most local queries have not."""
    inputs = heads(*shape)
    out = run(kind, *inputs)
    expected = reference(kind, *inputs)
    assert out.dtype == np.float32
    np.testing.assert_allclose(out, expected, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("kind", ["sigmoid_attention", "sparse_attention", "local_attention"])
def test_tiles_of_queries_change_nothing(kind, monkeypatch):
    inputs = heads(50, 31)
    expected = reference(kind, *inputs)

    def loss(*qkv):
        out = run(kind, *qkv)
        return jnp.sum(jnp.sin(out)), out

    grad = jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)
    _, whole = grad(*map(jnp.asarray, inputs))
    monkeypatch.setattr(kinds, "TILE", 8)
    (_, out), parts = grad(*map(jnp.asarray, inputs))
    np.testing.assert_allclose(out, expected, rtol=2e-5, atol=2e-6)
    for a, b in zip(whole, parts, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6)


def torch_module(kind):
    """canvas-engineering's, its projections the identity."""
    module = create_attention(kind, HEADS * WIDTH, HEADS)
    for name, weight in module.named_parameters():
        if name.endswith("weight"):
            weight.data = torch.eye(HEADS * WIDTH)
        elif name.endswith("bias"):
            weight.data.zero_()
    learned = parameter(kind)
    if kind == "perceiver":
        module.latents.data = torch.tensor(np.swapaxes(learned, 0, 1).reshape(1, 8, -1))
    elif kind in LEARNED:
        target = module.gate if kind == "gated" else module.temperature
        target.data = torch.full(target.shape, float(learned))
    return module


@pytest.mark.parametrize("kind", RUNNABLE)
def test_equals_canvas_engineering_values_and_gradients(kind):
    shape = 7, 23
    inputs = heads(*shape)
    theirs = [torch.tensor(x.reshape(*x.shape[:2], -1), requires_grad=True) for x in inputs]
    module = torch_module(kind)
    if kind == "random_fixed":
        mask = np.full(shape, -np.inf, np.float32)
        np.put_along_axis(mask, random_keys(*shape, seed=2), 0, axis=1)
        module._cached_mask, module._cached_shape = torch.tensor(mask), shape
    expected = module(*theirs)
    torch.sin(expected).sum().backward()

    def loss(*qkv):
        out = run(kind, *qkv)
        return jnp.sum(jnp.sin(out)), out

    gradient = jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)
    (_, out), found = gradient(*map(jnp.asarray, inputs))
    np.testing.assert_allclose(
        out.reshape(expected.shape), expected.detach().numpy(), rtol=2e-5, atol=2e-6
    )
    for ours, tensor in zip(found, theirs, strict=True):
        other = 0 if tensor.grad is None else tensor.grad.numpy().reshape(ours.shape)
        np.testing.assert_allclose(ours, other, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize(
    ("kind", "piece"), [(kind, 1 << 21) for kind in RUNNABLE] + [("gated", 1), ("copy", 1)]
)
def test_groups_are_gathered_and_put_back(kind, piece, monkeypatch):
    """Two stacks, groups one by one and together; queries that the edge does not serve get 0."""
    monkeypatch.setattr(kinds, "PIECE_SCORES", piece)
    query, key, value = heads(20, 17)
    first = whole_groups(np.array([[3, 1, 7], [12, 0, 2]], "i4"), np.array([[0, 5], [4, 16]], "i4"))
    second = whole_groups(np.array([[19, 18]], "i4"), np.arange(1, 17, 3, dtype="i4")[None])
    plan = EdgePlan(kind, 2, "a", "b", (first, second))
    expected = np.zeros(query.shape)
    for stack in plan.stacks:
        for rows, columns in zip(stack.query_cells, stack.key_cells, strict=True):
            expected[:, rows] = reference(kind, query[:, rows], key[:, columns], value[:, columns])
    out = run_edge(plan, *map(jnp.asarray, (query, key, value)), learned_array(kind))
    np.testing.assert_allclose(out, expected, rtol=2e-5, atol=2e-6)


def test_equal_scores_are_all_kept():
    """Ten keys alike: canvas-engineering keeps them all, although eight are asked for."""
    query, key, value = heads(2, 10)
    key[:] = key[:, :1]
    out = run("sparse_attention", query, key, value)
    np.testing.assert_allclose(out, np.broadcast_to(value.mean(1, keepdims=True), out.shape), 1e-4)


def test_equal_scores_count_apart():
    """Keys in threes: the eighth highest score is the third triple's, so nine keys are read."""
    query, key, value = heads(2, 15)
    key = np.repeat(key[:, ::3], 3, axis=1)
    expected = reference("sparse_attention", query, key, value)
    out = run("sparse_attention", query, key, value)
    np.testing.assert_allclose(out, expected, rtol=2e-5, atol=2e-6)
    theirs = (torch.tensor(x.reshape(*x.shape[:2], -1)) for x in (query, key, value))
    with torch.no_grad():
        expected = torch_module("sparse_attention")(*theirs)
    np.testing.assert_allclose(out.reshape(expected.shape), expected, rtol=2e-5, atol=2e-6)


def test_random_keys_are_different_fixed_and_even():
    drawn = random_keys(4000, 20, seed=3)
    assert drawn.shape == (4000, 8)
    assert all(len(set(row)) == 8 for row in drawn.tolist())
    np.testing.assert_array_equal(drawn, random_keys(4000, 20, seed=3))
    assert (drawn != random_keys(4000, 20, seed=4)).any()
    # Each key is drawn with chance 0.4; six standard deviations of 4,000 draws are 0.046.
    np.testing.assert_allclose(np.bincount(drawn.ravel()) / 4000, 0.4, atol=0.046)
    assert set(map(tuple, np.sort(random_keys(5, 3, seed=0)))) == {(0, 1, 2)}


@pytest.mark.parametrize("kind", RUNNABLE)
def test_no_array_of_all_scores_exists(kind):
    cells = 4096
    shapes = [jax.ShapeDtypeStruct((1, cells, HEADS, WIDTH), jnp.float32)] * 3
    step = jax.jit(jax.grad(lambda *qkv: run(kind, *qkv).sum(), argnums=(0, 1, 2)))
    temporaries = step.lower(*shapes).compile().memory_analysis().temp_size_in_bytes
    assert temporaries < cells * cells * 4  # one head's scores alone would take this much


def test_a_kind_that_cannot_run_is_refused():
    with pytest.raises(
        ValueError, match="connection a -> b: kind = 'mamba': expected one of linear"
    ):
        run("mamba", *heads(2, 2))


@pytest.mark.parametrize("kind", RUNNABLE)
def test_a_slice_reads_what_the_whole_reads(kind):
    """The place of a query in its group is that in the whole group."""
    layout = CanvasLayout(5, 1, 4, 8, {"a": (0, 5, 0, 1, 0, 2), "b": (0, 5, 0, 1, 2, 4)})
    topology = CanvasTopology((Connection("a", "b", fn=kind),))
    inputs = [jnp.asarray(x) for x in heads(20, 20)]
    plans = [compile_plan(layout, topology, queries=q) for q in (None, (1, 4, 7))]
    found = [
        run_edge(plan.edges[0], inputs[0][:, cells], *inputs[1:], learned_array(kind))
        for plan, cells in zip(plans, (slice(None), [2, 3, 8, 9, 14, 15]), strict=True)
    ]
    np.testing.assert_allclose(found[1], found[0][:, [2, 3, 8, 9, 14, 15]], rtol=2e-5, atol=2e-6)
