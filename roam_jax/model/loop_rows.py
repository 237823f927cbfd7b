"""What a loop learns: for every round a gate, embeddings, and how strongly cells enter again.

Each of these is one row of a small table, read by the round that runs.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

LAYER_NORM_EPSILON = 1e-5


class LoopRows(nn.Module):
    """The loop parameters of one block, for every round; all float32.

    Args:
        rounds: trained number of rounds R.
        width: width D of the streams.
        streams: names of the streams, in the order of their parameters.
        gate_scope: one of `loop_options.GATE_SCOPES`.
        reinject: one of `loop_options.REINJECTIONS`.
        halting: one of `loop_options.HALTINGS`.
    """

    rounds: int
    width: int
    streams: tuple[str, ...]
    gate_scope: str
    reinject: str = "none"
    halting: str = "none"

    @nn.compact
    def __call__(self) -> dict[str, Array]:
        """The tables: "gate" (R,), for each stream its embedding (R, D), and what is asked for of

        "token" (R, D), "reinject" (R,) or (R, D), "halt" (R,) and "halt_token" (R, D).
        These are shared by all streams. All start at 0 but for "halt", see `uniform_halt`.
        """
        zeros, vectors = nn.initializers.zeros_init(), (self.rounds, self.width)
        shapes = {"gate": (self.rounds,)} | {name: vectors for name in self.streams}
        if self.gate_scope == "token":
            shapes["token"] = vectors
        if self.reinject != "none":
            shapes["reinject"] = vectors if self.reinject == "channel" else (self.rounds,)
        rows = {n: self.param(n, zeros, shape, jnp.float32) for n, shape in shapes.items()}
        if self.halting == "learned":
            rows["halt"] = self.param("halt", lambda _: jnp.asarray(uniform_halt(self.rounds)))
            rows["halt_token"] = self.param("halt_token", zeros, vectors, jnp.float32)
        return rows


def uniform_halt(rounds: int) -> Float[np.ndarray, " R"]:
    """Logits of stopping after a round that make all R rounds equally likely to be the last.

    Round r of R stops 1 / (R - r + 1) of what runs. The last one, which stops all, has 0: rounds
    above the trained number that use its row stop half of what is left.
    """
    left = np.arange(rounds - 1, 0, -1)
    return np.append(-np.log(left), 0.0).astype(np.float32)


def token_value(weights: Float[Array, " D"], state: Float[Array, "B N D"]) -> Float[Array, "B N 1"]:
    """w . LN(h), with a LayerNorm that has no parameters.

    Args:
        weights: w.
        state: h.
    """
    centred = state - state.mean(axis=-1, keepdims=True)
    deviation = jnp.sqrt(jnp.square(centred).mean(axis=-1, keepdims=True) + LAYER_NORM_EPSILON)
    # A sum, not a matrix product, whose operands accelerators round.
    return jnp.sum(centred / deviation * weights, axis=-1, keepdims=True)


def gate_value(row: dict[str, Array], state: Float[Array, "B N D"]) -> Array:
    """The gate a_r () of a round or, with token weights w_r, a_r + w_r . LN(h) (B, N, 1).

    Args:
        row: one round's parameters, from `LoopRows`.
        state: h, before the round embedding is added.
    """
    if "token" not in row:
        return row["gate"]
    return row["gate"] + token_value(row["token"], state)


def step_size(gate: str, value: Float[Array, "*shape"], round_index: Array) -> Array:
    """Share of the block's update that a round takes, from its gate.

    Args:
        gate: identity: 1 + a in the first round, a later; sigmoid: sigmoid(a); off: 1.
        value: the gate a, from `gate_value`.
        round_index: 0 for the first round.
    """
    if gate == "identity":
        return jnp.where(round_index == 0, 1.0, 0.0) + value
    if gate == "sigmoid":
        return jax.nn.sigmoid(value)
    return jnp.ones_like(value)


@jax.custom_jvp
def advance(state: Array, out: Array, size: Array) -> Array:
    """state + size * (out - state), in the form that is exact at size 0 and 1."""
    return size * out + (1 - size) * state


@advance.defjvp
def _advance_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    """The gate's gradient as one sum of small differences.

    As a difference of two sums over the whole stream it loses digits: on a backbone of five blocks
    with four rounds its relative error was 3.5e-6, and is 6.5e-7.
    """
    state, out, size = primals
    d_state, d_out, d_size = tangents
    tangent = size * d_out + (1 - size) * d_state + d_size * (out - state)
    return advance(state, out, size), tangent
