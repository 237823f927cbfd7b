"""The last rounds of a looped block on fewer cells: the same values and gradients."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from roam_jax.model.looped import LoopedBlock
from tests.model.test_looped import (
    STREAMS,
    TRAINED,
    WIDTH,
    apply,
    looped,
    make_params,
    make_streams,
    with_tokens,
)


class MaskedBlock(nn.Module):
    """Cell i of a stream reads cells i and i + 1, so that the first cells need few others."""

    @nn.compact
    def __call__(self, streams, keep=None):
        layer = nn.Dense(WIDTH, name="layer")

        def mixed(x):
            made = x + jnp.tanh(layer(x + jnp.roll(x, -1, axis=1)))
            return made if keep is None else made[:, :keep]

        return {name: mixed(x) for name, x in streams.items()}


def call_masked(block, streams, this, *, keep=None):
    return block(streams, keep)


def first_cells(streams, keep):
    return {name: x[:, :keep] for name, x in streams.items()}


@pytest.mark.parametrize(
    ("gate_scope", "tail"), [("round", (1,)), ("token", (2, 1)), ("round", (3, 2, 1))]
)
def test_rounds_that_keep_fewer_cells_equal_whole_ones(gate_scope, tail):
    """The first cell's value, and the gradients of a loss on it."""
    params, streams = with_tokens(make_params(), scale=0.3), make_streams()
    if gate_scope == "round":
        params = make_params()
    module = LoopedBlock(
        make_block=MaskedBlock,
        call=call_masked,
        gate="identity",
        trained_rounds=TRAINED,
        width=WIDTH,
        streams=STREAMS,
        gate_scope=gate_scope,
        select=first_cells,
    )

    def loss(params, streams, tail):
        out, measures = module.apply({"params": params}, streams, rounds=3, tail=tail)
        return sum(jnp.sum(x[:, 0] ** 2) for x in out.values()), (out, measures)

    gradient = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True), static_argnums=2)
    (_, (whole, whole_measures)), expected = gradient(params, streams, ())
    (_, (out, measures)), found = gradient(params, streams, tail)
    for name in STREAMS:
        assert out[name].shape[1] == 1
        np.testing.assert_allclose(out[name], whole[name][:, :1], rtol=1e-5, atol=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), found, expected
    )
    before, _ = apply(module, params, streams, rounds=2)
    for name in STREAMS:
        gated, scanned = measures["gated_step"][name], 3 - len(tail)
        assert gated.shape == (3,)
        np.testing.assert_allclose(
            gated[:scanned], whole_measures["gated_step"][name][:scanned], rtol=1e-5
        )
        old, new = before[name][:, :1], whole[name][:, :1]
        step = np.linalg.norm(new - old) / np.linalg.norm(old)
        np.testing.assert_allclose(gated[-1], step, rtol=1e-4)


def test_a_tail_longer_than_the_rounds_is_refused():
    with pytest.raises(ValueError, match="a tail of 2 rounds: expected at most rounds = 1"):
        apply(looped("off"), make_params(), make_streams(), rounds=1, tail=(2, 1))
