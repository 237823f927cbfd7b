"""Weight-tied loops: one block applied for several rounds.

Between rounds the block sees a round embedding, and a gate decides how far the state moves. Depth
is scanned outside with parameters stacked on axis 0; rounds are scanned here with the block's
parameters broadcast, only the round's rows scanned, and rematerialisation inside the scan, so that
memory hardly grows with the number of rounds.

Source: looped attention of ROAM / canvas-engineering (`looped_block.py`), whose rule is the gate
`sigmoid`; `identity` keeps a pretrained block's function at initialisation.
"""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

GATES = ("identity", "sigmoid", "off")
Streams = dict[str, Array]
# What `LoopedBlock` reports for every round and stream.
MEASURES = ("gated_step", "residual", "cosine")


class LoopRows(nn.Module):
    """The loop parameters of one block: a gate and one embedding a stream, for every round.

    Args:
        rounds: trained number of rounds R.
        width: width D of the streams.
        streams: names of the streams, in the order of their parameters.
    """

    rounds: int
    width: int
    streams: tuple[str, ...]

    @nn.compact
    def __call__(self) -> dict[str, Array]:
        """Gate "gate" (R,) and, for each stream, its embedding (R, D)."""
        zeros = nn.initializers.zeros_init()
        rows = {"gate": self.param("gate", zeros, (self.rounds,), jnp.float32)}
        for name in self.streams:
            rows[name] = self.param(name, zeros, (self.rounds, self.width), jnp.float32)
        return rows


def step_size(gate: str, value: Float[Array, ""], round_index: Array) -> Array:
    """Share of the block's update that a round takes, from its gate parameter.

    Args:
        gate: identity: 1 + a in the first round, a later; sigmoid: sigmoid(a); off: 1.
        value: the gate parameter a_r.
        round_index: 0 for the first round.
    """
    if gate == "identity":
        return jnp.where(round_index == 0, 1.0, 0.0) + value
    if gate == "sigmoid":
        return jax.nn.sigmoid(value)
    return jnp.ones_like(value)


class LoopedBlock(nn.Module):
    """A block run for several rounds through the same weights.

    Its parameters are the block's own, under their own names, and `loop/*` beside them.

    Args:
        make_block: makes the block.
        call: `call(block, streams, *args) -> streams`, dicts of (B, N, D) arrays.
        gate: one of `GATES`.
        trained_rounds: number of rounds R that have parameters.
        width: width D of the streams.
        streams: names of the streams.
    """

    make_block: Callable[[], nn.Module]
    call: Callable[..., Streams]
    gate: str
    trained_rounds: int
    width: int
    streams: tuple[str, ...]

    def setup(self):
        """Declares the block's parameters at this level, and the loop rows."""
        if self.gate not in GATES:
            raise ValueError(f"loop.gate = {self.gate!r}: expected one of {', '.join(GATES)}")
        self.block = self.make_block()
        nn.share_scope(self, self.block)
        self.loop = LoopRows(self.trained_rounds, self.width, self.streams)

    def __call__(self, streams: Streams, *args, rounds: int) -> tuple[Streams, dict]:
        """Applies the block `rounds` times.

        Rounds beyond the trained number are refused by `check_rounds`, where users ask for them.

        Args:
            streams: name -> (B, N, D), float32: the small steps of barely open gates would be lost
                in bfloat16, whatever the block computes in.
            *args: passed on to `call`, the same in every round.
            rounds: static number of rounds.

        Returns:
            The streams, and the measures of DESIGN: measure -> stream -> (rounds,) float32.
        """
        check_rounds(rounds, trained=self.trained_rounds)
        rows = jax.tree.map(lambda row: row[:rounds], self.loop())

        def one_round(block: nn.Module, state: Streams, row: tuple[dict, Array]):
            row, round_index = row
            moved = {n: x + row[n] for n, x in state.items()}
            out = self.call(block, moved, *args)
            size = step_size(self.gate, row["gate"], round_index)
            new = {n: _advance(state[n], out[n], size) for n in state}
            return new, _measures(state, out, new)

        scanned = nn.scan(
            nn.remat(one_round, prevent_cse=False),
            variable_broadcast="params",
            split_rngs={"params": False},
            length=rounds,
        )
        return scanned(self.block, streams, (rows, jnp.arange(rounds)))


def _advance(state: Array, out: Array, size: Array) -> Array:
    """state + size * (out - state), in the form that is exact at size 0 and 1."""
    return size * out + (1 - size) * state


def _measures(state: Streams, out: Streams, new: Streams) -> dict:
    """Gated step, ungated residual and cosine of each stream; they carry no gradient."""

    def norm(x):
        return jnp.sqrt(jnp.sum(jnp.square(x)))

    def measures(h, block_out, h_next):
        h, block_out, h_next = map(jax.lax.stop_gradient, (h, block_out, h_next))
        size = norm(h)
        dot = jnp.sum(h * block_out)
        return norm(h_next - h) / size, norm(block_out - h) / size, dot / size / norm(block_out)

    values = {n: measures(state[n], out[n], new[n]) for n in state}
    return {m: {n: values[n][i] for n in values} for i, m in enumerate(MEASURES)}


def check_rounds(rounds: int, *, trained: int) -> None:
    """Refuses round counts that the weights were not trained for.

    Raises:
        ValueError: below 1, or above `trained`.
    """
    if rounds < 1:
        raise ValueError(f"rounds = {rounds}: expected at least 1")
    if rounds > trained:
        raise ValueError(
            f"rounds = {rounds}: trained with loop.rounds = {trained}; ask for 1..{trained}"
        )
