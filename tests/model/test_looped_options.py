"""Re-injection, halting, truncation and exits of a loop against torch, values and gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from roam_jax.model.looped import LoopedBlock
from tests.model import loop_reference
from tests.model.test_looped import (
    STREAMS,
    TRAINED,
    WIDTH,
    ToyBlock,
    apply,
    call,
    make_params,
    make_streams,
    with_tokens,
)


def looped(**fields):
    values = {"gate": "sigmoid", **fields}
    return LoopedBlock(
        make_block=ToyBlock,
        call=call,
        trained_rounds=TRAINED,
        width=WIDTH,
        streams=STREAMS,
        **values,
    )


def params_for(*, gate_scope="round", reinject="none", halting="none", seed=3, **_):
    """Random values for all that such a loop learns."""
    draw = np.random.default_rng(seed).standard_normal
    params = make_params()
    if gate_scope == "token":
        params = with_tokens(params, scale=0.3)
    rows = dict(params["loop"])
    if reinject != "none":
        rows["reinject"] = 0.5 * draw((TRAINED, WIDTH) if reinject == "channel" else TRAINED)
    if halting == "learned":
        rows |= {"halt": draw(TRAINED), "halt_token": 0.5 * draw((TRAINED, WIDTH))}
    return jax.tree.map(np.float32, {**params, "loop": rows})


def weighted(outputs, states, running):
    """A number that all that a loop gives has a part in."""
    total = sum((x.sin() if hasattr(x, "sin") else jnp.sin(x)).sum() for x in outputs.values())
    for number, state in enumerate(states):
        total = total + 0.1 * (number + 1) * sum((x * x).sum() for x in state.values())
    for number, share in enumerate(running):
        total = total + (number + 1) * sum(share.values())
    return total


def ours(module, params, streams, **options):
    """Value, output, states and measures; and gradients of parameters and streams."""

    def loss(params, streams, exit):
        out, info = module.apply({"params": params}, streams, collect=True, exit=exit, **options)
        rounds = options["rounds"]
        states = [jax.tree.map(lambda x, r=r: x[r], info["states"]) for r in range(rounds)]
        running = [{n: x[r] for n, x in info.get("running", {}).items()} for r in range(rounds)]
        return weighted(out, states, running), (out, info)

    exit = options.pop("exit", None)
    exit = None if exit is None else jnp.int32(exit)
    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(params, streams, exit)


def theirs(params, streams, *, halts, rounds, skipped=0, **options):
    params, streams = loop_reference.tensors(params), loop_reference.tensors(streams)
    out, states, running = loop_reference.loop(params, streams, rounds=rounds, **options)
    running = [{n: x.mean() for n, x in share.items()} for share in running] if halts else []
    # After the last round that ran nothing changes and nothing runs.
    states = states + states[-1:] * skipped
    weighted(out, states, running).backward()
    values = {n: x.detach().numpy() for n, x in out.items()}
    shares = {n: [share[n].item() for share in running] + [0.0] * skipped for n in STREAMS}
    grads = loop_reference.gradients(params), loop_reference.gradients(streams)
    return values, states, shares, grads


CASES = {
    "scalar": ({"reinject": "scalar", "gate": "off"}, {"rounds": 3}),
    "channel, token gates, truncated": (
        {
            "reinject": "channel",
            "gate": "identity",
            "gate_scope": "token",
            "backprop_rounds": 2,
            "unroll": True,
        },
        {"rounds": 4},
    ),
    "halting": ({"halting": "learned", "unroll": True, "remat": False}, {"rounds": 4}),
    "halting, all options": (
        {"halting": "learned", "reinject": "channel", "gate": "identity", "backprop_rounds": 2},
        {"rounds": 4},
    ),
    "exit": ({"backprop_rounds": 1, "remat": False}, {"rounds": 4, "exit": 3}),
    "halting, exit": (
        {"halting": "learned", "reinject": "scalar", "backprop_rounds": 2},
        {"rounds": 4, "exit": 3},
    ),
    "fewer rounds than gradients flow through": (
        {"backprop_rounds": 3, "gate": "identity", "unroll": True},
        {"rounds": 4, "exit": 2},
    ),
    "halting, extrapolated": ({"halting": "learned"}, {"rounds": 6, "extrapolate": "last"}),
}


@pytest.mark.parametrize("case", CASES)
def test_a_loop_equals_torch_values_and_gradients(case):
    fields, options = CASES[case]
    params, streams = params_for(**fields), make_streams()
    (_, (out, info)), found = ours(looped(**fields), params, streams, **options)
    runs = options.get("exit", options["rounds"])
    values, states, shares, expected = theirs(
        params,
        streams,
        halts="halting" in fields,
        rounds=runs,
        skipped=options["rounds"] - runs,
        gate=fields.get("gate", "sigmoid"),
        backprop_rounds=min(runs, fields.get("backprop_rounds", 0)),
    )
    for name in STREAMS:
        np.testing.assert_allclose(out[name], values[name], rtol=2e-5, atol=2e-5)
        for r, state in enumerate(states):
            np.testing.assert_allclose(
                info["states"][name][r], state[name].detach(), rtol=2e-5, atol=2e-5
            )
        if "halting" in fields:
            np.testing.assert_allclose(info["running"][name], shares[name], rtol=1e-5, atol=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-5 * np.abs(b).max()),
        found,
        expected,
    )


def test_rows_of_rounds_without_gradient_have_none():
    fields = {"halting": "learned", "reinject": "scalar", "backprop_rounds": 1}
    params, streams = params_for(**fields), make_streams()
    _, (found, below) = ours(looped(**fields), params, streams, rounds=4)
    for name, rows in found["loop"].items():
        assert not np.any(rows[:3]), name
        if "halt" not in name:
            assert np.all(np.linalg.norm(np.reshape(rows[3:], (1, -1)), axis=-1) > 0), name
    assert all(np.any(x) for x in below.values())  # what comes before the loop trains


@pytest.mark.parametrize("rounds", [1, 2, 4])
@pytest.mark.parametrize("unroll", [False, True])
def test_the_gate_identity_starts_as_one_round_with_everything_on(rounds, unroll):
    module = looped(gate="identity", reinject="channel", halting="learned", unroll=unroll)
    streams = make_streams()
    init = jax.jit(functools.partial(module.init, rounds=1))
    params = init(jax.random.key(0), streams)["params"]
    out, info = apply(module, params, streams, rounds=rounds)
    expected = ToyBlock().apply({"params": {"layer": params["layer"]}}, streams)
    for name in STREAMS:
        np.testing.assert_allclose(out[name], expected[name], rtol=1e-6, atol=1e-7)
    # The same chance for every round, when all trained ones run.
    expected = (1 - np.arange(TRAINED) / TRAINED)[:rounds]
    for name in STREAMS:
        np.testing.assert_allclose(info["running"][name], expected, rtol=1e-6)


def counting(calls):
    def call(block, streams, this):
        jax.debug.callback(lambda index: calls.append(int(index)), this.index)
        return block(streams)

    return call


@pytest.mark.parametrize("unroll", [False, True])
def test_rounds_after_the_exit_are_not_computed(unroll):
    calls = []
    module = looped(unroll=unroll).clone(call=counting(calls))
    params, streams = jax.tree.map(jnp.asarray, make_params()), make_streams()
    run = jax.jit(lambda exit: module.apply({"params": params}, streams, rounds=4, exit=exit))
    for exit in (1, 3):
        calls.clear()
        out, info = run(exit)
        jax.effects_barrier()
        assert sorted(calls) == list(range(exit))
        expected, _ = module.apply({"params": params}, streams, rounds=exit)
        for name in STREAMS:
            np.testing.assert_allclose(out[name], expected[name], rtol=1e-5, atol=1e-6)
            skipped = [info[m][name][exit:] for m in ("gated_step", "residual", "cosine")]
            np.testing.assert_array_equal(skipped, np.repeat([[0], [0], [1]], 4 - exit, axis=1))


def test_exits_may_differ_over_mapped_seeds():
    module, params = looped(halting="learned"), params_for(halting="learned")
    params = jax.tree.map(jnp.asarray, params)
    streams = make_streams()

    def run(exit):
        return module.apply({"params": params}, streams, rounds=4, exit=exit)

    mapped = jax.jit(jax.vmap(run))(jnp.array([1, 4, 2]))
    for place, exit in enumerate((1, 4, 2)):
        one = jax.jit(run)(exit)
        jax.tree.map(
            lambda a, b, i=place: np.testing.assert_allclose(a[i], b, rtol=1e-5, atol=1e-6),
            mapped,
            one,
        )


def test_truncated_rounds_keep_nothing_for_the_backward_pass():
    """Temporary bytes of the gradient of 8 rounds, the last of which alone is trained."""
    streams = {n: jnp.zeros((4, 512, WIDTH)) for n in STREAMS}

    def temporary(backprop_rounds):
        module = looped(remat=False, backprop_rounds=backprop_rounds).clone(trained_rounds=8)
        variables = jax.eval_shape(lambda: module.init(jax.random.key(0), streams, rounds=1))

        def loss(variables):
            out, _ = module.apply(variables, streams, rounds=8)
            return sum(jnp.sum(x) for x in out.values())

        return jax.jit(jax.grad(loss)).lower(variables).compile().memory_analysis()

    whole, last = (temporary(k).temp_size_in_bytes for k in (0, 1))
    assert last < 0.3 * whole


def test_measures_by_part():
    params, streams = jax.tree.map(jnp.asarray, make_params()), make_streams()
    parts = {
        "text": {"words": np.array([2, 0])},
        "video": {"left": slice(0, 2), "right": slice(2, 5)},
    }
    module = looped(gate="identity", parts=lambda keep: parts)
    _, info = module.apply({"params": params}, streams, rounds=2, collect=True)
    first, second = (jax.tree.map(lambda x, r=r: np.float64(x[r]), info["states"]) for r in (0, 1))
    for stream, places in parts.items():
        for part, index in places.items():
            old, new = first[stream][:, index], second[stream][:, index]
            step = np.linalg.norm(new - old) / np.linalg.norm(old)
            np.testing.assert_allclose(info["gated_step"][part][1], step, rtol=1e-4)
            residual = step / abs(float(params["loop"]["gate"][1]))
            np.testing.assert_allclose(info["residual"][part][1], residual, rtol=1e-4)
    assert set(info["cosine"]) == {"words", "left", "right"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"reinject": "scaler"}, "loop.reinject = 'scaler': expected .*; did you mean 'scalar'"),
        ({"halting": "learnt"}, "loop.halting = 'learnt': expected one of none, learned"),
        ({"backprop_rounds": 5}, r"loop.backprop_rounds = 5: expected 0 \(all\) to .* 4"),
    ],
)
def test_options_that_do_not_exist_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        looped(**fields).init(jax.random.key(0), make_streams(), rounds=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"exit": 0}, "exit = 0: expected 1 to rounds = 3"),
        ({"exit": 4}, "exit = 4: expected 1 to rounds = 3"),
        ({"exit": 1, "tail": (1,)}, "exit with a tail of 1 rounds"),
        ({"collect": True, "tail": (1,)}, "collect with a tail of 1 rounds"),
    ],
)
def test_exits_that_a_loop_does_not_have_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        looped().apply({"params": make_params()}, make_streams(), rounds=3, **options)
