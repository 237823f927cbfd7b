"""Mixed edge kinds against float64 numpy by the documented rule."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from roam_jax.attention.planned import planned_attention
from roam_jax.canvas.layout import CanvasLayout, RegionSpec
from roam_jax.canvas.plan import compile_plan
from roam_jax.canvas.topology import CanvasTopology, Connection
from roam_jax.model.edge_kinds import KindedAttention
from tests.attention.test_kinds import HEADS, WIDTH, heads, learned_array, reference

LAYOUT = CanvasLayout(
    T=2,
    H=3,
    W=4,
    d_model=HEADS * WIDTH,
    regions={
        "video": (0, 2, 0, 2, 0, 4),
        "action": (0, 2, 2, 3, 0, 2),
        "goal": RegionSpec((0, 1, 2, 3, 2, 4), default_attn="pooling"),
        "idle": (1, 2, 2, 3, 2, 3),
    },
)
# Cells in sequence order: all of a region, and those of its frames.
VIDEO, ACTION, GOAL, CELLS = range(16), range(16, 20), range(20, 22), 23
TOPOLOGY = CanvasTopology(
    (
        Connection("video", "video", weight=0.5, t_src=0, t_dst=0),
        Connection("video", "action", fn="linear_attention", weight=2.0),
        Connection("video", "goal", weight=0.75),
        Connection("action", "video", fn="cosine_attention", t_src=0, t_dst=0),
        Connection("action", "video", fn="gated", t_src=0, t_dst=-1, weight=3.0),
        Connection("action", "action", fn="none", weight=50.0),
        Connection("goal", "video"),
        Connection("goal", "action", fn="perceiver", weight=0.25),
        Connection("goal", "goal", fn="copy", weight=0.0),
    )
)
PARAMS = {
    "temperature_3": learned_array("cosine_attention"),
    "gate_4": learned_array("gated"),
    "latents_7": learned_array("perceiver"),
}


def joint_softmax(query, key, value, keys):
    """One group of queries over [(key cells, weight)], as one softmax."""
    cells = np.concatenate([list(c) for c, _ in keys])
    weight = np.concatenate([np.full(len(c), w) for c, w in keys])
    q, k, v = (np.asarray(x, np.float64) for x in (query, key[:, cells], value[:, cells]))
    mass = np.exp(np.einsum("bnkd,bmkd->bknm", q, k) / np.sqrt(WIDTH)) * weight
    return np.einsum("bknm,bmkd->bnkd", mass / mass.sum(-1, keepdims=True), v)


def mixed(query, key, value):
    """The rule, query group by query group: [(weight, queries, kind, key cells)]."""
    frames = {
        (name, t): [c for i, c in enumerate(cells) if i // (len(cells) // 2) == t]
        for name, cells in (("video", VIDEO), ("action", ACTION))
        for t in (0, 1)
    }
    groups = []
    for t in (0, 1):
        soft = [(frames["video", t], 0.5), (GOAL, 0.75)]
        groups.append((frames["video", t], [(1.25, soft)]))
    groups[0][1].append((2.0, "linear_attention", ACTION))
    groups[1][1].append((2.0, "linear_attention", ACTION))
    groups.append((frames["action", 0], [(1.0, "cosine_attention", frames["video", 0])]))
    gated = (3.0, "gated", frames["video", 0])
    groups.append((frames["action", 1], [(1.0, "cosine_attention", frames["video", 1]), gated]))
    # The goal's default is pooling.
    groups.append((GOAL, [(1.0, "pooling", VIDEO), (0.25, "perceiver", ACTION)]))
    out = np.zeros(query.shape)
    for queries, edges in groups:
        queries = list(queries)
        total = sum(edge[0] for edge in edges)
        for weight, kind, *cells in edges:
            q = query[:, queries]
            if isinstance(kind, list):
                made = joint_softmax(q, key, value, kind)
            else:
                made = reference(kind, q, key[:, list(cells[0])], value[:, list(cells[0])])
            out[:, queries] += weight / total * made
    return out


@pytest.fixture(scope="module")
def plan():
    return compile_plan(LAYOUT, TOPOLOGY)


def apply(params, *inputs, **more):
    """Arrays traced, the plan static."""
    *arrays, plan = inputs

    @jax.jit
    def run(params, arrays):
        return KindedAttention().apply({"params": params}, *arrays, plan, **more)

    return run(params, tuple(map(jnp.asarray, arrays)))


def test_kinds_mix_by_the_documented_rule(plan):
    inputs = heads(CELLS, CELLS)
    out = apply(PARAMS, *inputs, plan)
    np.testing.assert_allclose(out, mixed(*inputs), rtol=2e-5, atol=5e-6)
    np.testing.assert_array_equal(out[:, -1], 0)  # idle reads nothing


def test_only_kinds_that_learn_have_parameters(plan):
    inputs = map(jnp.asarray, heads(CELLS, CELLS))
    params = KindedAttention().init(jax.random.key(0), *inputs, plan)["params"]
    assert {n: x.shape for n, x in params.items()} == {n: np.shape(x) for n, x in PARAMS.items()}
    assert params["temperature_3"] == 10 and params["gate_4"] == 0
    assert 0.015 < np.std(params["latents_7"]) < 0.025


def test_every_parameter_has_a_gradient(plan):
    inputs = tuple(map(jnp.asarray, heads(CELLS, CELLS)))

    def loss(params, inputs):
        return jnp.sum(jnp.sin(KindedAttention().apply({"params": params}, *inputs, plan)))

    gradients = jax.jit(jax.grad(loss, argnums=(0, 1)))(PARAMS, inputs)
    for gradient in jax.tree.leaves(gradients):
        assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0


def test_softmax_edges_alone_are_planned_attention():
    topology = CanvasTopology.dense(["video", "action"])
    plan = compile_plan(LAYOUT, topology)
    inputs = tuple(map(jnp.asarray, heads(CELLS, CELLS)))
    assert KindedAttention().init(jax.random.key(0), *inputs, plan) == {}
    found = KindedAttention().apply({}, *inputs, plan)
    np.testing.assert_array_equal(found, planned_attention(*inputs, plan))


def test_disabled_edges_add_and_dilute_nothing(plan):
    kept = [e for e in TOPOLOGY.connections if e.fn != "none" and e.weight > 0]
    inputs = heads(CELLS, CELLS)
    # The perceiver is now one place earlier.
    params = {**PARAMS, "latents_6": PARAMS["latents_7"]}
    out = apply(params, *inputs, compile_plan(LAYOUT, CanvasTopology(tuple(kept))))
    np.testing.assert_array_equal(out, apply(PARAMS, *inputs, plan))


def test_edges_that_differ_in_offsets_alone_are_two():
    edges = [Connection("action", "video", fn="pooling", t_src=0, t_dst=d) for d in (0, -1)]
    query, key, value = heads(CELLS, CELLS)
    out = apply({}, query, key, value, compile_plan(LAYOUT, CanvasTopology(tuple(edges))))
    first, second = value[:, :8].mean(1), value[:, 8:16].mean(1)
    np.testing.assert_allclose(out[:, 16], first, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(out[:, 18], (first + second) / 2, rtol=1e-5, atol=1e-6)


def test_a_part_of_the_queries_reads_the_same(plan):
    """Segments: video 0, 1; action 2, 3; goal 4; idle 5."""
    query, key, value = heads(CELLS, CELLS)
    rows = [*range(8, 16), *range(18, 22)]
    part = compile_plan(LAYOUT, TOPOLOGY, queries=[1, 3, 4], keys=range(5))
    out = apply(PARAMS, query[:, rows], key[:, :22], value[:, :22], part)
    whole = apply(PARAMS, query, key, value, plan)
    np.testing.assert_allclose(out, whole[:, rows], rtol=1e-5, atol=1e-6)


def test_kinds_without_dot_products_read_plain_queries_and_keys(plan):
    query, key, value = heads(CELLS, CELLS)
    edges = tuple(Connection("video", "video", fn=fn) for fn in ("linear_attention", "gated"))
    plan = compile_plan(LAYOUT, CanvasTopology(edges))
    params = {"gate_1": learned_array("gated")}
    plain = tuple(map(jnp.asarray, (query, key)))
    out = apply(params, 2 * query, key, value, plan, plain=plain)
    video = slice(0, 16)
    linear = reference("linear_attention", query[:, video], key[:, video], value[:, video])
    gated = reference("gated", 2 * query[:, video], key[:, video], value[:, video])
    np.testing.assert_allclose(out[:, video], (linear + gated) / 2, rtol=2e-5, atol=5e-6)
