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


def call(block, streams):
    return block(streams)


def looped(gate):
    return LoopedBlock(
        make_block=ToyBlock,
        call=call,
        gate=gate,
        trained_rounds=TRAINED,
        width=WIDTH,
        streams=STREAMS,
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


def apply(module, params, streams, *, rounds):
    return jax.jit(lambda p, s: module.apply({"params": p}, s, rounds=rounds))(params, streams)


def reference(params, streams, gate, rounds):
    """h <- h + size (block(h + e_r) - h), written out."""
    kernel, bias = (np.asarray(params["layer"][n], np.float64) for n in ("kernel", "bias"))
    state = {n: np.asarray(x, np.float64) for n, x in streams.items()}
    for r in range(rounds):
        moved = {n: x + params["loop"][n][r] for n, x in state.items()}
        mean = 2 * moved["text"].mean(1, keepdims=True) + moved["video"].mean(1, keepdims=True)
        out = {n: x + np.tanh((x + mean) @ kernel + bias) for n, x in moved.items()}
        a = float(params["loop"]["gate"][r])
        size = {"identity": (r == 0) + a, "sigmoid": 1 / (1 + np.exp(-a)), "off": 1.0}[gate]
        state = {n: state[n] + size * (out[n] - state[n]) for n in state}
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

    (_, out), gradient = jax.value_and_grad(loss, has_aux=True)(rows)
    np.testing.assert_allclose(out, expected.detach().numpy(), rtol=1e-5, atol=1e-5)
    pairs = {"gate": theirs.loop_gate.grad[:, 0], "video": theirs.loop_emb.grad}
    for name, grad in pairs.items():
        np.testing.assert_allclose(gradient[name], grad.numpy(), rtol=2e-4, atol=1e-4)


def test_small_steps_survive_a_block_in_bfloat16():
    """A gate of 1e-3 moves the state by less than bfloat16 resolves."""
    params, streams = make_params(), make_streams()
    params["loop"]["gate"][:] = 1e-3

    def call_in_bfloat16(block, streams):
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


def test_round_counts_that_were_not_trained_are_refused():
    with pytest.raises(ValueError, match="rounds = 5: trained with loop.rounds = 4"):
        check_rounds(5, trained=4)
    with pytest.raises(ValueError, match="rounds = 0: expected at least 1"):
        check_rounds(0, trained=4)
    with pytest.raises(ValueError, match="rounds = 5"):
        apply(looped("off"), make_params(), make_streams(), rounds=5)
