"""The canvas block against float64 numpy under an explicit mask, looped and sliced."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax

from roam_jax.attention import dense
from roam_jax.attention.geometry import canvas_coordinates
from roam_jax.canvas.layout import CanvasLayout
from roam_jax.canvas.plan import compile_plan
from roam_jax.canvas.topology import CanvasTopology, Connection
from roam_jax.model.block import CELLS, CanvasBlock, Kept, call_block, select_cells
from roam_jax.model.looped import LAYER_OUTPUT, LoopedBlock
from tests.model.modules import linear, random_params
from tests.model.test_heads import tanh_gelu

WIDTH, HEADS, TRAINED = 32, 2, 3
LAYOUT = CanvasLayout(
    T=3,
    H=3,
    W=2,
    d_model=WIDTH,
    regions={"video": (0, 3, 0, 2, 0, 2), "action": (0, 3, 2, 3, 0, 2)},
)
TOPOLOGY = CanvasTopology(
    (
        Connection("video", "video", t_src=0, t_dst=0),
        Connection("video", "video", t_src=0, t_dst=-1, weight=0.5),
        Connection("action", "video", t_src=0, t_dst=0),
        Connection("action", "action", t_src=0, t_dst=0),
    )
)
PLAN = compile_plan(LAYOUT, TOPOLOGY)
COORDINATES = canvas_coordinates(LAYOUT)
COUNT = len(COORDINATES)
# Segments are video 0, 1, 2 and action 3, 4, 5. The last round keeps the action at the end, the
# one before it what that reads.
ENDS = {5: range(16, 18), 2: range(8, 12)}


def block(geometry="none", **fields):
    return CanvasBlock(WIDTH, HEADS, PLAN, geometry, COORDINATES, **fields)


def cells(seed=0):
    return np.random.default_rng(seed).standard_normal((2, COUNT, WIDTH)).astype(np.float32)


def params_of(geometry, seed=0):
    params = random_params(block(geometry), jnp.asarray(cells()), seed=seed)
    return jax.tree.map(lambda x: jnp.asarray(x / np.sqrt(WIDTH) if x.ndim == 2 else x / 2), params)


def normed(params, x):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return x * params["scale"] + params["bias"]


def bias(amplitude):
    """(K, N, N) of the relative geometry."""
    gap = COORDINATES[:, None].astype(np.float64) - COORDINATES[None]
    waves = gap[..., None] * 4.0 ** -np.arange(4)
    waves = np.stack([np.cos(waves), np.sin(waves)], axis=-1)
    return np.einsum("nmafs,kafs->knm", waves, amplitude)


def reference(params, x, *, geometry="none", inverse_temperature=1.0, topology=TOPOLOGY):
    """All pairs, masked."""
    params = jax.tree.map(lambda p: np.asarray(p, np.float64), params)
    x = np.asarray(x, np.float64)
    attn = params["attn"]

    def heads(name):
        return linear(attn[f"to_{name}"], normed(params["norm1"], x)).reshape(2, COUNT, HEADS, -1)

    scores = np.einsum("bnkd,bmkd->bknm", heads("q"), heads("k")) / np.sqrt(WIDTH // HEADS)
    if geometry == "relative":
        scores += bias(attn["geometry"]["amplitude"])
    # Rows and columns from flat canvas order to region by region.
    order = np.concatenate([LAYOUT.region_indices(name) for name in LAYOUT.regions])
    with np.errstate(divide="ignore"):
        mask = np.log(topology.to_attention_mask(LAYOUT)[np.ix_(order, order)])
    weights = softmax(scores * inverse_temperature + mask, axis=-1)
    read = np.einsum("bknm,bmkd->bnkd", weights, heads("v")).reshape(x.shape)
    x = x + linear(attn["to_out"], read)
    ff = params["ff"]
    return x + linear(ff["down"], tanh_gelu(linear(ff["up"], normed(params["norm2"], x))))


@pytest.mark.parametrize("geometry", ["none", "relative"])
@pytest.mark.parametrize("temperature", [None, 2.5])
def test_equals_numpy_under_the_mask(geometry, temperature):
    params, x = params_of(geometry), cells()
    given = None if temperature is None else jnp.float32(temperature)
    out = block(geometry).apply({"params": params}, jnp.asarray(x), given)
    expected = reference(params, x, geometry=geometry, inverse_temperature=temperature or 1.0)
    np.testing.assert_allclose(out, expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("geometry", ["relative", "rotary"])
def test_a_fresh_geometry_changes_nothing(geometry):
    x = jnp.asarray(cells())
    fresh = block(geometry).init(jax.random.key(0), x)["params"]
    plain = {**fresh, "attn": {n: p for n, p in fresh["attn"].items() if n != "geometry"}}
    out = block(geometry).apply({"params": fresh}, x)
    np.testing.assert_allclose(out, block().apply({"params": plain}, x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scores", [dense.FREE_SCORES, 0])
def test_free_attention_equals_numpy_in_one_go_and_planned(scores, monkeypatch):
    monkeypatch.setattr(dense, "FREE_SCORES", scores)
    free = CanvasTopology.dense(list(LAYOUT.regions))
    module = block().clone(plan=compile_plan(LAYOUT, free))
    params, x = params_of("none"), cells()
    out = module.apply({"params": params}, jnp.asarray(x), jnp.float32(2.5))
    expected = reference(params, x, inverse_temperature=2.5, topology=free)
    np.testing.assert_allclose(out, expected, rtol=2e-5, atol=2e-5)


def looped(geometry="none", **fields):
    return LoopedBlock(
        make_block=lambda: block(geometry),
        call=call_block,
        gate="sigmoid",
        trained_rounds=TRAINED,
        width=WIDTH,
        streams=(CELLS,),
        saved=(LAYER_OUTPUT,),
        inverse_temperatures=(1.0, 1.5, 4.0),
        select=select_cells,
        **fields,
    )


def looped_params(geometry):
    rng = np.random.default_rng(5)
    rows = {
        "gate": rng.standard_normal(TRAINED).astype(np.float32),
        CELLS: rng.standard_normal((TRAINED, WIDTH)).astype(np.float32),
    }
    return {**params_of(geometry), "loop": rows}


@pytest.mark.parametrize("rounds", [1, 3])
def test_rounds_equal_numpy(rounds):
    params, x = looped_params("relative"), cells()
    module = looped("relative")
    out, _ = jax.jit(lambda p, s: module.apply({"params": p}, s, rounds=rounds))(params, {CELLS: x})
    state = np.asarray(x, np.float64)
    for r in range(rounds):
        beta = (1.0, 1.5, 4.0)[r]
        moved = state + params["loop"][CELLS][r]
        made = reference(params, moved, geometry="relative", inverse_temperature=beta)
        size = 1 / (1 + np.exp(-np.float64(params["loop"]["gate"][r])))
        state = size * made + (1 - size) * state
    np.testing.assert_allclose(out[CELLS], state, rtol=5e-5, atol=5e-5)


def slices():
    """Two last rounds: all cells -> video and action at the end -> action at the end."""
    end = np.array([*ENDS[2], *ENDS[5]])
    plans = [
        compile_plan(LAYOUT, TOPOLOGY, queries=[2, 5]),
        compile_plan(LAYOUT, TOPOLOGY, queries=[5], keys=[2, 5]),
    ]
    last = np.array(ENDS[5])
    return Kept(np.arange(COUNT), end, plans[0]), Kept(end, last, plans[1])


@pytest.mark.parametrize("geometry", ["relative", "rotary"])
def test_sliced_rounds_equal_whole_ones_values_and_gradients(geometry):
    params, streams = looped_params(geometry), {CELLS: jnp.asarray(cells())}
    module = looped(geometry)

    def loss(params, streams, tail):
        out, _ = module.apply({"params": params}, streams, rounds=3, tail=tail)
        kept = out[CELLS][:, -2:]
        return jnp.sum(jnp.sin(kept)), kept

    gradient = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True), static_argnums=2)
    (_, whole), expected = gradient(params, streams, ())
    (_, out), found = gradient(params, streams, slices())
    np.testing.assert_allclose(out, whole, rtol=1e-5, atol=1e-6)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5)


def test_a_slice_that_does_not_fit_is_refused():
    first, _ = slices()
    with pytest.raises(ValueError, match="cell 16 is kept, but not among the cells that come in"):
        Kept(np.arange(12), first.outputs, first.plan)
    with pytest.raises(ValueError, match="keeps 18 of 18 cells, .* has 6 queries and 18 keys"):
        Kept(np.arange(COUNT), np.arange(COUNT), first.plan)


def test_a_width_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="cells of width 8 and 2 heads: expected width 32"):
        block().init(jax.random.key(0), jnp.zeros((1, COUNT, 8)))
