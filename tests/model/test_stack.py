"""Blocks in their rounds, one by one and as a stack, against float64 numpy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from roam_jax.canvas.plan import compile_plan
from roam_jax.canvas.topology import CanvasTopology
from roam_jax.model.block import CELLS, CanvasBlock, call_block, call_rows
from roam_jax.model.loop_options import LoopOptions
from roam_jax.model.looped import LoopedBlock
from roam_jax.model.stack import CanvasLoop
from roam_jax.model.unrolling import BUDGET, KEPT, SAVED, LoopForm, loop_form
from tests.model.test_block import COUNT, HEADS, LAYOUT, PLAN, WIDTH, reference
from tests.model.test_block import cells as numpy_cells

DEPTH, TRAINED = 2, 3
PARTS = {"video": slice(0, 12), "action": np.arange(12, COUNT)}
BETAS = (1.0, 1.5, 2.0)
# Of a loop: written out, computed again, nested.
FORMS = {
    "written out": LoopForm(True, False, False),
    "scanned": LoopForm(False, False, False),
    "remat": LoopForm(False, True, False),
    "nested": LoopForm(False, True, True),
}


def cells():
    return jnp.asarray(numpy_cells())


def canvas_loop(over, form="written out", *, depth=DEPTH, plan=PLAN, **options):
    return CanvasLoop(
        make_block=functools.partial(CanvasBlock, WIDTH, HEADS, plan),
        depth=depth,
        width=WIDTH,
        options=LoopOptions(**{"rounds": TRAINED, "over": over, "gate": "sigmoid", **options}),
        parts=PARTS,
        **FORMS[form]._asdict(),
    )


@functools.cache
def fresh(over, **options):
    module = canvas_loop(over, "scanned", **options)
    return jax.jit(functools.partial(module.init, rounds=1))(jax.random.key(0), cells())["params"]


def params_of(over, **options):
    """Random rows, larger weights."""
    rng = np.random.default_rng(7)
    params = fresh(over, **options)
    rows = params["blocks"]["loop"]
    rows = {n: jnp.float32(rng.standard_normal(x.shape)) for n, x in rows.items()}
    return {"blocks": {**params["blocks"], "loop": rows}}


def layer(params, number):
    blocks = {name: values for name, values in params["blocks"].items() if name != "loop"}
    return jax.tree.map(lambda x: x[number], blocks)


def looped_numpy(call, rows, x, rounds):
    """Rounds with a sigmoid gate and re-injection: the state after each."""
    state, states = x, []
    for r in range(rounds):
        moved = state + rows[CELLS][r] + rows["reinject"][r] * x
        size = 1 / (1 + np.exp(-np.float64(rows["gate"][r])))
        state = size * call(moved, r) + (1 - size) * state
        states.append(state)
    return states


def numpy_loop(params, x, over, rounds):
    """(the cells after all, after every round of a stack)."""
    x, rows = np.float64(x), jax.tree.map(np.float64, params["blocks"]["loop"])

    def stack(x, r):
        for number in range(DEPTH):
            x = reference(layer(params, number), x, inverse_temperature=BETAS[r])
        return x

    if over == "stack":
        states = looped_numpy(stack, rows, x, rounds)
        return states[-1], states
    for number in range(DEPTH):

        def block(x, r, number=number):
            return reference(layer(params, number), x, inverse_temperature=BETAS[r])

        own = {name: values[number] for name, values in rows.items()}
        x = looped_numpy(block, own, x, rounds)[-1]
    return x, None


OPTIONS = {
    "reinject": "channel",
    "sharpening": "linear",
    "final_inverse_temperature": BETAS[-1],
}


@pytest.mark.parametrize("over", ["block", "stack"])
def test_both_loops_equal_numpy(over):
    params, collect = params_of(over, **OPTIONS), over == "stack"
    module = canvas_loop(over, **OPTIONS)
    run = functools.partial(module.apply, rounds=TRAINED, collect=collect)
    out, info = jax.jit(run)({"params": params}, cells())
    expected, states = numpy_loop(params, cells(), over, TRAINED)
    np.testing.assert_allclose(out, expected, rtol=5e-5, atol=5e-5)
    if collect:
        np.testing.assert_allclose(info["states"], states, rtol=5e-5, atol=5e-5)
        old, new = (states[r][:, PARTS["action"]] for r in (1, 2))
        step = np.linalg.norm(new - old) / np.linalg.norm(old)
        np.testing.assert_allclose(info["gated_step"]["action"][0, 2], step, rtol=1e-4)
    rows = DEPTH if over == "block" else 1
    for measure in ("gated_step", "residual", "cosine"):
        assert {x.shape for x in info[measure].values()} == {(rows, TRAINED)}
        assert set(info[measure]) == set(PARTS)


@pytest.mark.parametrize(("over", "form"), [("block", "nested"), ("stack", "remat")])
def test_all_forms_of_a_loop_are_the_same(over, form):
    """Values, measures and gradients."""
    options = {**OPTIONS, "halting": "learned", "backprop_rounds": 2}
    params = params_of(over, **options)

    def gradients(form):
        module = canvas_loop(over, form, **options)

        def loss(params, x):
            out, info = module.apply({"params": params}, x, rounds=TRAINED)
            ponder = sum(jnp.mean(x) for x in info["running"].values())
            return jnp.sum(jnp.sin(out)) + ponder, (out, info)

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(params, cells())

    # That of the keys' bias is 0 but for rounding.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5),
        gradients(form),
        gradients("written out"),
    )


@pytest.mark.parametrize("over", ["block", "stack"])
def test_parameters_are_named_as_the_blocks_own(over):
    rows = (DEPTH, TRAINED) if over == "block" else (TRAINED,)
    params = fresh(over)
    assert set(params) == {"blocks"}
    assert set(params["blocks"]) == {"norm1", "attn", "norm2", "ff", "loop"}
    shapes = jax.tree.map(jnp.shape, params["blocks"])
    assert shapes["ff"]["up"]["kernel"] == (DEPTH, WIDTH, 4 * WIDTH)
    assert shapes["loop"] == {"gate": rows, CELLS: (*rows, WIDTH)}
    kernels = params["blocks"]["ff"]["up"]["kernel"]
    assert not np.array_equal(kernels[0], kernels[1])  # blocks start apart


@pytest.mark.parametrize("over", ["block", "stack"])
def test_how_a_loop_runs_does_not_change_how_it_starts(over):
    init = functools.partial(canvas_loop(over, "written out").init, rounds=TRAINED)
    made = jax.jit(init)(jax.random.key(0), cells())["params"]
    jax.tree.map(np.testing.assert_array_equal, made, fresh(over))


@pytest.mark.parametrize("over", ["block", "stack"])
def test_an_exit_is_fewer_rounds(over):
    params = params_of(over)
    module = canvas_loop(over, "scanned")
    run = jax.jit(lambda exit: module.apply({"params": params}, cells(), rounds=3, exit=exit)[0])
    fewer, _ = jax.jit(functools.partial(module.apply, rounds=2))({"params": params}, cells())
    np.testing.assert_allclose(run(2), fewer, rtol=1e-5, atol=1e-6)


PLANS = {"masked": PLAN, "free": compile_plan(LAYOUT, CanvasTopology.dense(list(LAYOUT.regions)))}


@pytest.mark.parametrize("plan", PLANS)
def test_computing_running_cells_alone_changes_nothing(plan):
    """Against the same loop, all of whose cells are computed and masked."""
    plan, rng = PLANS[plan], np.random.default_rng(11)
    make_block = functools.partial(CanvasBlock, WIDTH, HEADS, plan)
    assert make_block().can_call_rows
    looped = LoopedBlock(
        make_block,
        call_block,
        gate="sigmoid",
        trained_rounds=4,
        width=WIDTH,
        streams=(CELLS,),
        halting="learned",
        inverse_temperatures=(1.0, 1.5, 2.0, 2.5),
    )
    made = jax.jit(functools.partial(looped.init, rounds=1))(jax.random.key(0), {CELLS: cells()})
    rows = {n: rng.standard_normal(x.shape) for n, x in made["params"]["loop"].items()}
    rows["halt"] = np.array([-1.0, 0.0, 1.0, 0.0])
    params = {**made["params"], "loop": jax.tree.map(jnp.float32, rows)}
    found = [
        jax.jit(functools.partial(module.apply, rounds=4, threshold=0.5, collect=True))(
            {"params": params}, {CELLS: cells()}
        )
        for module in (looped, looped.clone(call_rows=call_rows))
    ]
    runs = np.asarray(found[0][1]["running"][CELLS])
    assert (np.diff(runs) < 0).any() and 0 < runs[2] < 0.5  # a smaller bucket is met
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), *found)


def test_what_cannot_be_asked_of_a_loop_is_refused():
    with pytest.raises(ValueError, match="model.depth = 0: expected at least 1"):
        canvas_loop("block", depth=0).init(jax.random.key(0), cells(), rounds=1)
    with pytest.raises(ValueError, match="collect with loop.over = 'block'"):
        canvas_loop("block").init(jax.random.key(0), cells(), rounds=1, collect=True)
    rotary = CanvasBlock(WIDTH, HEADS, PLAN, "rotary")
    assert not rotary.can_call_rows
    rows = jnp.zeros((2, 1), jnp.int32)
    with pytest.raises(ValueError, match="rows of a block with a slice, a geometry"):
        rotary.init(jax.random.key(0), jnp.asarray(cells()), rows=rows)


def test_a_loop_keeps_what_is_worth_its_memory():
    def form(width, cells, **asked):
        streams = {CELLS: jax.ShapeDtypeStruct((1, cells, width), jnp.float32)}
        return loop_form(streams, 12, **asked)

    assert form(64, 120) == LoopForm(unroll=False, remat=True, nested=False)
    assert form(512, 512) == LoopForm(unroll=True, remat=False, nested=False)
    kept, saved = (BUDGET // (n * 4 * 512 * 12) for n in (KEPT, SAVED))
    assert form(512, kept).unroll and form(512, kept + 1) == LoopForm(False, True, False)
    assert form(512, saved) == LoopForm(False, True, False)
    assert form(512, saved + 1) == LoopForm(False, True, True)
    assert form(64, 120, remat=False) == LoopForm(True, False, False)
    assert form(64, 120, unroll=False, remat=False) == LoopForm(False, False, False)
    assert not form(512, 512, nested=True).nested  # nothing is computed again


def test_nested_rounds_keep_one_state_a_block():
    """Temporary bytes of the gradient of 6 rounds."""

    def temporary(form):
        module = canvas_loop("block", form, rounds=6)
        x = jnp.zeros((16, COUNT, WIDTH))
        params = jax.eval_shape(functools.partial(module.init, rounds=1), jax.random.key(0), x)

        def loss(params, x):
            return jnp.sum(module.apply(params, x, rounds=6)[0])

        compiled = jax.jit(jax.grad(loss)).lower(params, x).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    states = 4 * 16 * COUNT * WIDTH
    # In rounds of two blocks: 12 states and as many outputs of both layers; against 2 states, and
    # those of the 6 rounds of one block.
    assert temporary("remat") - temporary("nested") > 0.8 * (3 * 12 - (2 + 6)) * states
