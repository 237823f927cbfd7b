"""One round of a loop: what the block is given, how far the state moves, who has stopped.

A round takes and gives what the loop carries: "state", the streams h; with halting also "mean",
what the loop would return if it ended here, and "running", the mass of each cell that still runs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array

from roam_jax.model import halting, round_measures
from roam_jax.model.loop_rows import advance, gate_value, step_size
from roam_jax.model.round_measures import RUNNING, Parts, Streams

# With `collect`: the states after every round.
STATES = "states"
Carry = dict[str, Streams]


class Round(NamedTuple):
    """What a block may know about the round that it runs in.

    Args:
        index: () int32, 0 for the first round.
        inverse_temperature: () float32, by which the block multiplies its scores; None = 1.
    """

    index: Array
    inverse_temperature: Array | None


@dataclasses.dataclass(frozen=True, eq=False)
class OneRound:
    """What all rounds of one call of a loop share.

    Args:
        call, select, parts, call_rows, gate, reinject, halting, backprop_rounds: fields of the
            `LoopedBlock`.
        base: the streams that entered the loop, of the cells that come in.
        args: passed on to the block.
        exit, collect, threshold: as for the call of the `LoopedBlock`.
        keep: what a round of the tail keeps; None in other rounds.
    """

    call: Callable[..., Streams]
    select: Callable[[Streams, Any], Streams] | None
    parts: Callable[..., Parts] | None
    call_rows: Callable[..., Streams] | None
    gate: str
    reinject: str
    halting: str
    backprop_rounds: int
    base: Streams
    args: tuple
    exit: Array | int | None
    collect: bool
    threshold: float | None
    keep: Any = None

    def frozen(self) -> OneRound:
        """The same, and no gradient flows into it."""
        return dataclasses.replace(self, base=frozen(self.base), args=frozen(self.args))

    def start(self) -> Carry:
        """What the first round is given."""
        if self.halting == "none":
            return {"state": self.base}
        ones = {n: jnp.ones_like(x[..., :1]) for n, x in self.base.items()}
        return {"state": self.base, "mean": self.base, "running": ones}

    def __call__(
        self, block: nn.Module, carry: Carry, step: tuple[dict[str, Array], Round]
    ) -> tuple[Carry, dict]:
        """The carry after the round, and what was measured in it.

        Args:
            block: runs in the round.
            carry: before it.
            step: the round's row of `LoopRows`, and what the block may know.
        """
        if self.exit is None:
            return self._run(block, carry, step)
        index = step[1].index
        if self.backprop_rounds:
            # As without `exit`, where rounds that gradients do not flow through run apart.
            begins = self.exit - self.backprop_rounds
            carry = _choose(index == begins, identity_backwards(carry, self.base), carry)
        carry, found = nn.cond(
            index < self.exit,
            lambda block, carry: self._run(block, carry, step),
            lambda block, carry: (carry, self._skipped(carry)),
            block,
            carry,
        )
        if self.backprop_rounds:
            found = _choose(index < begins, identity_backwards(found, self.base), found)
        return carry, found

    def _run(
        self, block: nn.Module, carry: Carry, step: tuple[dict[str, Array], Round]
    ) -> tuple[Carry, dict]:
        """A round that runs."""
        (row, this), state = step, carry["state"]
        moved = {n: x + row[n] for n, x in state.items()}
        if self.reinject != "none":
            moved = {n: x + row["reinject"] * self.base[n] for n, x in moved.items()}
        if self.keep is not None:
            out = self.call(block, moved, this, *self.args, keep=self.keep)
            carry = {name: self.select(x, self.keep) for name, x in carry.items()}
            state = carry["state"]
        elif self.threshold is not None:
            out = self._for_running(block, moved, this, carry)
        else:
            out = self.call(block, moved, this, *self.args)
        out = self._where_running(carry, out, state)
        sizes = {n: step_size(self.gate, gate_value(row, x), this.index) for n, x in state.items()}
        new = {n: advance(state[n], out[n], sizes[n]) for n in state}
        new, parts = self._where_running(carry, new, state), self._parts(state)
        found: dict[str, Any] = round_measures.round_measures(state, out, new, parts)
        if self.halting == "none":
            carry = {"state": new}
        else:
            found[RUNNING], carry = self._halt(step, carry, new, parts)
        if self.collect:
            found[STATES] = carry.get("mean", new)
        return carry, found

    def _where_running(self, carry: Carry, values: Streams, stopped: Streams) -> Streams:
        """`values`, and `stopped` for cells that have stopped for good."""
        if self.threshold is None:
            return values
        runs = carry["running"]
        return {n: jnp.where(runs[n] > 0, x, stopped[n]) for n, x in values.items()}

    def _halt(
        self, step: tuple[dict[str, Array], Round], carry: Carry, new: Streams, parts: Parts
    ) -> tuple[dict[str, Array], Carry]:
        """What ran, by part, and the carry after the round whose states are `new`."""
        row, index = step[0], step[1].index
        running, state = carry["running"], carry["state"]
        # All runs in the first round, after which the mean is the state to the last bit.
        mean = {
            n: jnp.where(index == 0, new[n], x + running[n] * (new[n] - state[n]))
            for n, x in carry["mean"].items()
        }
        left = {
            n: halting.mass_left(x, halting.stopping_chance(row, new[n]), threshold=self.threshold)
            for n, x in running.items()
        }
        if self.threshold is not None:
            running = {n: (x > 0).astype(jnp.float32) for n, x in running.items()}
        share = round_measures.share(running, parts)
        return share, {"state": new, "mean": mean, "running": left}

    def _for_running(self, block: nn.Module, moved: Streams, this: Round, carry: Carry) -> Streams:
        """The block's output, computed for no more cells than needed; others hold anything.

        Args:
            block, this: of the round.
            moved: what the block is given.
            carry: before the round.
        """
        runs = jnp.concatenate([x[..., 0] > 0 for x in carry["running"].values()], axis=1)
        sizes = halting.bucket_sizes(runs.shape[1])
        if self.call_rows is None:
            sizes = (sizes[0], 0)

        def whole(block: nn.Module, moved: Streams, state: Streams) -> Streams:
            return self.call(block, moved, this, *self.args)

        def none(block: nn.Module, moved: Streams, state: Streams) -> Streams:
            return state

        def some(count: int) -> Callable[..., Streams]:
            def branch(block: nn.Module, moved: Streams, state: Streams) -> Streams:
                rows = halting.running_first(runs, count)
                out = self.call_rows(block, moved, this, rows, *self.args)
                put = jax.vmap(lambda x, places, values: x.at[places].set(values))
                return {n: put(x, rows, out[n]) for n, x in state.items()}

            return branch

        branches = [whole, *(some(count) for count in sizes[1:-1]), none]
        chosen = halting.choose_bucket(runs, sizes)
        return nn.switch(chosen, branches, block, moved, carry["state"])

    def _skipped(self, carry: Carry) -> dict:
        """What is measured in a round that does not run."""
        found: dict[str, Any] = round_measures.unmoved(self._parts(carry["state"]))
        if self.halting != "none":
            found[RUNNING] = {part: jnp.float32(0) for part in found["cosine"]}
        if self.collect:
            found[STATES] = carry.get("mean", carry["state"])
        return found

    def _parts(self, state: Streams) -> Parts:
        if self.parts is None:
            return round_measures.whole_streams(state)
        return self.parts(self.keep, *self.args)


def frozen(tree: Any) -> Any:
    """The same, through whose arrays no gradient flows."""
    return jax.tree.map(lambda x: jax.lax.stop_gradient(x) if isinstance(x, jax.Array) else x, tree)


def identity_backwards(values: dict[str, Any], base: Streams) -> dict[str, Any]:
    """States with the gradient of what entered the loop in place of their own; others with none.

    Args:
        values: what a loop carries or gives, after some rounds.
        base: the streams that entered the loop.
    """

    def joined(now: Array, entered: Array) -> Array:
        # Adds an exact 0.
        return jax.lax.stop_gradient(now) + (entered - jax.lax.stop_gradient(entered))

    states = ("state", "mean", STATES)
    return {
        name: {n: joined(x, base[n]) for n, x in value.items()} if name in states else frozen(value)
        for name, value in values.items()
    }


def _choose(which: Array, a: Any, b: Any) -> Any:
    """The tree `a` where `which`, else `b`."""
    return jax.tree.map(lambda x, y: jnp.where(which, x, y), a, b)
