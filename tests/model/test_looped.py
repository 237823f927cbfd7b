"""Rounds through one block against a plain Python loop in float64, and canvas-engineering's."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from canvas_engineering.looped_block import LoopedBlockWrapper

from roam_jax.model.looped import LoopedBlock, check_rounds

WIDTH, TRAINED = 6, 4
STREAMS = ("text", "video")


class ToyBlock(nn.Module):
    """Mixes both streams; the first is weighted, so that a swap would show."""

    @nn.compact
    def __call__(self, streams):
        mean = 2 * streams["text"].mean(1, keepdims=True) + streams["video"].mean(1, keepdims=True)
        layer = nn.Dense(WIDTH, name="layer")
        return {name: x + jnp.tanh(layer(x + mean)) for name, x in streams.items()}


def call(block, streams, this):
    return block(streams)


def looped(gate, *, gate_scope="round"):
    return LoopedBlock(
        make_block=ToyBlock,
        call=call,
        gate=gate,
        trained_rounds=TRAINED,
        width=WIDTH,
        streams=STREAMS,
        gate_scope=gate_scope,
    )


def make_params(seed=0):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)  # noqa: E731
    rows = {"gate": draw(TRAINED), "text": draw(TRAINED, WIDTH), "video": draw(TRAINED, WIDTH)}
    return {"layer": {"kernel": draw(WIDTH, WIDTH) / 3, "bias": draw(WIDTH)}, "loop": rows}


def make_streams(seed=1):
    rng = np.random.default_rng(seed)
    return {
        "text": jnp.asarray(rng.standard_normal((2, 3, WIDTH)), jnp.float32),
        "video": jnp.asarray(rng.standard_normal((2, 5, WIDTH)), jnp.float32),
    }


def apply(module, params, streams, **rounds):
    return jax.jit(lambda p, s: module.apply({"params": p}, s, **rounds))(params, streams)


def with_tokens(params, *, scale, seed=2):
    """The parameters of token scope."""
    weights = scale * np.random.default_rng(seed).standard_normal((TRAINED, WIDTH))
    return {**params, "loop": {**params["loop"], "token": weights.astype(np.float32)}}


def layer_norm(x):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)


def reference(params, streams, gate, rounds):
    """h <- h + size (block(h + e_r) - h), written out; rounds without a row use the last one."""
    kernel, bias = (np.asarray(params["layer"][n], np.float64) for n in ("kernel", "bias"))
    state = {n: np.asarray(x, np.float64) for n, x in streams.items()}
    for r in range(rounds):
        row = {n: np.asarray(x[min(r, TRAINED - 1)], np.float64) for n, x in params["loop"].items()}
        moved = {n: x + row[n] for n, x in state.items()}
        mean = 2 * moved["text"].mean(1, keepdims=True) + moved["video"].mean(1, keepdims=True)
        out = {n: x + np.tanh((x + mean) @ kernel + bias) for n, x in moved.items()}
        for n, x in state.items():
            a = row["gate"]
            if "token" in row:
                a = a + (layer_norm(x) @ row["token"])[..., None]
            size = {"identity": (r == 0) + a, "sigmoid": 1 / (1 + np.exp(-a)), "off": 1.0}[gate]
            state = {**state, n: x + size * (out[n] - x)}
    return state


@pytest.mark.parametrize("gate", ["identity", "sigmoid", "off"])
@pytest.mark.parametrize("rounds", [1, 2, 3, 4])
def test_rounds_equal_a_python_loop(gate, rounds):
    params, streams = make_params(), make_streams()
    out, measures = apply(looped(gate), params, streams, rounds=rounds)
    expected = reference(params, streams, gate, rounds)
    for name in STREAMS:
        np.testing.assert_allclose(out[name], expected[name], rtol=2e-5, atol=2e-5)
        assert measures["residual"][name].shape == (rounds,)


@pytest.mark.parametrize("gate", ["identity", "sigmoid"])
@pytest.mark.parametrize("rounds", [1, 4])
def test_token_gates_equal_a_python_loop(gate, rounds):
    params, streams = with_tokens(make_params(), scale=0.3), make_streams()
    out, measures = apply(looped(gate, gate_scope="token"), params, streams, rounds=rounds)
    expected, before = (reference(params, streams, gate, r) for r in (rounds, rounds - 1))
    for name in STREAMS:
        np.testing.assert_allclose(out[name], expected[name], rtol=2e-5, atol=2e-5)
        step = np.linalg.norm(expected[name] - before[name]) / np.linalg.norm(before[name])
        np.testing.assert_allclose(measures["gated_step"][name][-1], step, rtol=1e-4)


@pytest.mark.parametrize("gate", ["identity", "sigmoid"])
def test_token_gates_start_as_round_gates(gate):
    params, streams = make_params(), make_streams()
    expected, _ = apply(looped(gate), params, streams, rounds=3)
    params = with_tokens(params, scale=0)
    module = looped(gate, gate_scope="token")

    def loss(params):
        out, _ = module.apply({"params": params}, streams, rounds=3)
        return sum(jnp.sum(x**2) for x in out.values()), out

    gradient, out = jax.jit(jax.grad(loss, has_aux=True))(params)
    for name in STREAMS:
        np.testing.assert_array_equal(out[name], expected[name])
    moved = np.linalg.norm(gradient["loop"]["token"], axis=-1)
    assert (moved[:3] > 0).all() and moved[3] == 0  # no gradient for a round that did not run


@pytest.mark.parametrize("gate_scope", ["round", "token"])
def test_extrapolated_rounds_reuse_the_last_row(gate_scope):
    params, streams = make_params(), make_streams()
    if gate_scope == "token":
        params = with_tokens(params, scale=0.3)
    module = looped("identity", gate_scope=gate_scope)
    out, measures = apply(module, params, streams, rounds=6, extrapolate="last")
    expected = reference(params, streams, "identity", 6)
    for name in STREAMS:
        np.testing.assert_allclose(out[name], expected[name], rtol=1e-4, atol=1e-4)
        assert measures["cosine"][name].shape == (6,)
    within, _ = apply(module, params, streams, rounds=3, extrapolate="last")
    trained, _ = apply(module, params, streams, rounds=3)
    jax.tree.map(np.testing.assert_array_equal, within, trained)


def test_parameters_of_both_scopes():
    """R gates; R rows a stream; and R rows that both streams share."""
    for gate_scope, tables in (("round", 2), ("token", 3)):
        module = looped("identity", gate_scope=gate_scope)
        shapes = jax.eval_shape(
            lambda m=module: m.init(jax.random.key(0), make_streams(), rounds=1)
        )
        rows = shapes["params"]["loop"]
        assert {leaf.dtype for leaf in rows.values()} == {np.dtype(np.float32)}
        assert sum(leaf.size for leaf in rows.values()) == TRAINED * (1 + tables * WIDTH)


def test_measures_of_the_last_round():
    params, streams = make_params(), make_streams()
    _, measures = apply(looped("identity"), params, streams, rounds=3)
    before, after = (reference(params, streams, "identity", r) for r in (2, 3))
    for name in STREAMS:
        step = np.linalg.norm(after[name] - before[name]) / np.linalg.norm(before[name])
        np.testing.assert_allclose(measures["gated_step"][name][2], step, rtol=1e-4)
        size = float(params["loop"]["gate"][2])
        np.testing.assert_allclose(measures["residual"][name][2], step / abs(size), rtol=1e-4)


class TorchBlock(torch.nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.kernel = torch.tensor(np.asarray(layer["kernel"]))
        self.bias = torch.tensor(np.asarray(layer["bias"]))

    def forward(self, x):
        return x + torch.tanh((x + x.mean(1, keepdim=True)) @ self.kernel + self.bias)


class OneStreamBlock(nn.Module):
    @nn.compact
    def __call__(self, streams):
        x = streams["video"]
        layer = nn.Dense(WIDTH, name="layer")
        return {"video": x + jnp.tanh(layer(x + x.mean(1, keepdims=True)))}


@pytest.mark.parametrize("rounds", [1, 3])
def test_sigmoid_equals_canvas_engineering_values_and_gradients(rounds):
    params, state = make_params(), make_streams()["video"]
    rows = {name: params["loop"][name] for name in ("gate", "video")}
    theirs = LoopedBlockWrapper(TorchBlock(params["layer"]), max_loops=TRAINED, embed_dim=WIDTH)
    theirs.set_loops(rounds)
    with torch.no_grad():
        theirs.loop_emb.copy_(torch.tensor(rows["video"]))
        theirs.loop_gate.copy_(torch.tensor(rows["gate"])[:, None])
    expected = theirs(torch.tensor(np.asarray(state)))
    expected.square().sum().backward()

    module = LoopedBlock(
        make_block=OneStreamBlock,
        call=call,
        gate="sigmoid",
        trained_rounds=TRAINED,
        width=WIDTH,
        streams=("video",),
    )

    def loss(rows):
        variables = {"params": {"layer": params["layer"], "loop": rows}}
        out, _ = module.apply(variables, {"video": state}, rounds=rounds)
        return jnp.sum(out["video"] ** 2), out["video"]

    (_, out), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(rows)
    np.testing.assert_allclose(out, expected.detach().numpy(), rtol=1e-5, atol=1e-5)
    pairs = {"gate": theirs.loop_gate.grad[:, 0], "video": theirs.loop_emb.grad}
    for name, grad in pairs.items():
        np.testing.assert_allclose(gradient[name], grad.numpy(), rtol=2e-4, atol=1e-4)


def test_small_steps_survive_a_block_in_bfloat16():
    """A gate of 1e-3 moves the state by less than bfloat16 resolves."""
    params, streams = make_params(), make_streams()
    params["loop"]["gate"][:] = 1e-3

    def call_in_bfloat16(block, streams, this):
        out = block({n: x.astype(jnp.bfloat16) for n, x in streams.items()})
        return {n: x.astype(jnp.float32) for n, x in out.items()}

    coarse = looped("identity").clone(call=call_in_bfloat16)
    first, _ = apply(coarse, params, streams, rounds=1)
    third, _ = apply(coarse, params, streams, rounds=3)
    expected = reference(params, streams, "identity", 3)
    base = reference(params, streams, "identity", 1)
    for name in STREAMS:
        moved, true = third[name] - first[name], expected[name] - base[name]
        assert np.linalg.norm(moved - true) / np.linalg.norm(true) < 0.1


def sharpened(block, streams, this):
    """Makes what the round says visible in the output."""
    if this.inverse_temperature is None:
        return block(streams)
    scale = this.inverse_temperature + 10 * this.index
    return {name: scale * x for name, x in block(streams).items()}


@pytest.mark.parametrize(("rounds", "extrapolate"), [(3, None), (6, "last")])
def test_blocks_know_their_round(rounds, extrapolate):
    betas = (1.0, 2.0, 3.5, 5.0)
    params, streams = make_params(), make_streams()
    params["loop"] = jax.tree.map(np.zeros_like, params["loop"])
    module = looped("off").clone(call=sharpened, inverse_temperatures=betas)
    out, _ = apply(module, params, streams, rounds=rounds, extrapolate=extrapolate)
    state = streams
    for r in range(rounds):
        made = reference(params, state, "off", 1)
        state = {n: (betas[min(r, 3)] + 10 * r) * x for n, x in made.items()}
    for name in STREAMS:
        np.testing.assert_allclose(out[name], state[name], rtol=1e-4)


def test_without_temperatures_blocks_get_none():
    params, streams = make_params(), make_streams()
    found = [
        apply(looped("off").clone(call=f), params, streams, rounds=2) for f in (sharpened, call)
    ]
    jax.tree.map(np.testing.assert_array_equal, *found)


def test_temperatures_are_one_a_trained_round():
    module = looped("off").clone(inverse_temperatures=(1.0, 2.0))
    with pytest.raises(ValueError, match="2 inverse temperatures for loop.rounds = 4"):
        apply(module, make_params(), make_streams(), rounds=1)


def test_round_counts_that_were_not_trained_are_refused():
    message = r"rounds = 5: trained with loop.rounds = 4; ask for 1..4, .*--extrapolate last"
    with pytest.raises(ValueError, match=message):
        check_rounds(5, trained=4)
    check_rounds(5, trained=4, extrapolate="last")
    with pytest.raises(ValueError, match="extrapolate = 'first': expected one of last, or none"):
        check_rounds(1, trained=4, extrapolate="first")
    with pytest.raises(ValueError, match="rounds = 0: expected at least 1"):
        check_rounds(0, trained=4)
    with pytest.raises(ValueError, match="rounds = 5"):
        apply(looped("off"), make_params(), make_streams(), rounds=5)


@pytest.mark.parametrize(
    ("gate", "gate_scope", "message"),
    [
        ("identty", "round", "loop.gate = 'identty': expected one of .*; did you mean 'identity'"),
        ("sigmoid", "tokens", "loop.gate_scope = 'tokens': expected .*; did you mean 'token'"),
        ("off", "token", "loop.gate_scope = 'token' with loop.gate = 'off': there is no gate"),
    ],
)
def test_gates_that_do_not_exist_are_refused(gate, gate_scope, message):
    with pytest.raises(ValueError, match=message):
        apply(looped(gate, gate_scope=gate_scope), make_params(), make_streams(), rounds=1)
