"""Weight-tied loops: one block, or a stack of blocks, applied for several rounds.

Between rounds the block sees a round embedding, what entered the loop may enter again, and a gate
decides how far the state moves: one number a round, or one for each token. Cells may learn to stop
(`halting.py`). Rounds are scanned with the block's parameters broadcast, only the round's rows
scanned, and rematerialisation inside the scan: a round keeps its state and the arrays that the
block names. Where that is cheaper they are written out (`unrolling.py`). The last rounds may keep
fewer cells than they read; these run one by one.

Source: looped attention of ROAM / canvas-engineering (`looped_block.py`), whose rule is the gate
`sigmoid` with one number a round; `identity` keeps a pretrained block's function at initialisation.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from roam_jax.model.loop_options import check_gate, check_rounds_options, check_threshold
from roam_jax.model.loop_rows import LoopRows
from roam_jax.model.one_round import Carry, OneRound, Round, frozen, identity_backwards
from roam_jax.model.round_measures import Parts, Streams
from roam_jax.model.unrolling import LoopForm, loop_form, saves

# What may stand in for rounds without parameters: the last row.
EXTRAPOLATIONS = ("last",)
# By this name blocks mark what a layer adds to the streams, for `LoopedBlock.saved`.
LAYER_OUTPUT = "layer_output"
# Beside the block's own parameters, its rows.
LOOP = "loop"


class LoopedBlock(nn.Module):
    """A block run for several rounds through the same weights.

    Its parameters are the block's own, under their own names, and `loop/*` beside them.

    Args:
        make_block: makes the block.
        call: `call(block, streams, round, *args) -> streams`, dicts of (B, N, D) arrays; with a
            `Round`, and `keep=` in the rounds of a tail.
        gate: one of `loop_options.GATES`.
        trained_rounds: number of rounds R that have parameters.
        width: width D of the streams.
        streams: names of the streams.
        gate_scope: round: one gate a round; token: one for each token as well.
        saved: arrays of the block, named by `checkpoint_name`, that are kept for the backward pass;
            all else is computed again.
        inverse_temperatures: one for each of the R rounds, for the block's scores; () = 1.
        select: `select(streams, keep) -> streams`, the cells that a round of a tail keeps.
        reinject: what every round's input has of the streams that entered the loop: none; scalar:
            them times one number a round; channel: times one vector a round. Both start at 0.
        halting: learned: cells may stop, see `halting.py`; none.
        backprop_rounds: gradients flow through so many of the last rounds, 0 = all; earlier ones
            count as identity, so that what comes before the loop still trains.
        parts: `parts(keep, *args) -> stream -> part -> places`, the parts that measures are for,
            with names unique over streams; `keep` is None but in a tail. None = the streams.
        call_rows: `call_rows(block, streams, round, rows, *args) -> streams`, the block for the
            cells `rows` (B, M) of the one stream alone, (B, M, D), which read all cells. Saves time
            under a threshold; None = all cells are computed.
        unroll: whether rounds are written out, not scanned; None = by `unrolling.loop_form`.
        remat: whether a round computes again what it has not saved; None = likewise.
        kept: for the backward pass, one of `loop_options.REMATS`; with layers `remat` and `saved`
            say it.
    """

    make_block: Callable[[], nn.Module]
    call: Callable[..., Streams]
    gate: str
    trained_rounds: int
    width: int
    streams: tuple[str, ...]
    gate_scope: str = "round"
    saved: tuple[str, ...] = ()
    inverse_temperatures: tuple[float, ...] = ()
    select: Callable[[Streams, Any], Streams] | None = None
    reinject: str = "none"
    halting: str = "none"
    backprop_rounds: int = 0
    parts: Callable[..., Parts] | None = None
    call_rows: Callable[..., Streams] | None = None
    unroll: bool | None = False
    remat: bool | None = True
    kept: str = "layers"

    def setup(self):
        """Declares the block's parameters at this level, and the loop rows."""
        check_gate(self.gate, self.gate_scope)
        check_rounds_options(
            self.reinject, self.halting, self.backprop_rounds, rounds=self.trained_rounds
        )
        count = len(self.inverse_temperatures)
        if count not in (0, self.trained_rounds):
            raise ValueError(
                f"{count} inverse temperatures for loop.rounds = {self.trained_rounds}: expected "
                "one a round, or none"
            )
        self.block = self.make_block()
        nn.share_scope(self, self.block)
        self.loop = LoopRows(
            self.trained_rounds,
            self.width,
            self.streams,
            self.gate_scope,
            self.reinject,
            self.halting,
        )

    def __call__(
        self,
        streams: Streams,
        *args,
        rounds: int,
        extrapolate: str | None = None,
        tail: Sequence[Any] = (),
        exit: Int[Array, ""] | int | None = None,
        collect: bool = False,
        threshold: float | None = None,
    ) -> tuple[Streams, dict]:
        """Applies the block `rounds` times.

        Args:
            streams: name -> (B, N, D), float32: the small steps of barely open gates would be lost
                in bfloat16, whatever the block computes in.
            *args: passed on to `call`, the same in every round.
            rounds: static number of rounds.
            extrapolate: static; "last" lets rounds above the trained number use the last row.
            tail: static; one `keep` for each of the last rounds, which keep fewer cells than they
                read: `call(..., keep=keep)` returns the cells of `select(streams, keep)`.
            exit: only so many of the first rounds, 1 to `rounds`, are run; may be traced. What is
                skipped costs nothing, but under `jax.vmap`, where all rounds are computed.
            collect: static; also returns the state after every round.
            threshold: static, with halting alone: a cell stops for good once the mass of it that
                has stopped reaches this, above 0 and at most 1. Others go on to read its state.

        Returns:
            The streams, and what was measured: `MEASURES`, measure -> stream (or part) ->
            (rounds,) float32, those of a round of the tail over the cells that it keeps;
            with halting "running", the share of each stream (or part) that runs when a round
            begins: its mass or, under a threshold, its cells; the sum over rounds is the mean
            number of rounds, and has gradients. With `collect` "states": stream -> (rounds, B, N,
            D), what the loop would return if it ended there.

        Raises:
            ValueError: see `check_rounds` and `check_threshold`; the tail is longer than
                the rounds, or comes with `exit` or `collect`; or `exit` is out of range.
        """
        check_rounds(rounds, trained=self.trained_rounds, extrapolate=extrapolate)
        check_threshold(threshold, halting=self.halting)
        _check_exit(exit, rounds=rounds, tail=tail, collect=collect)
        first = max(rounds - self.backprop_rounds, 0) if self.backprop_rounds else 0
        if self.is_initializing():
            exit, threshold, first = None, None, 0
        elif exit is not None:
            # Where gradients begin is known in the round alone.
            first = 0
        one_round = self._one_round(streams, args, exit, collect, threshold)
        steps, carry, found = self._steps(rounds), one_round.start(), []
        asked = {"unroll": self.unroll, "remat": self.remat}
        form = loop_form(streams, rounds, **asked, kept=self.kept)
        for begin, end, keep in _spans(rounds, first, tail):
            here = jax.tree.map(lambda x, rounds=slice(begin, end): x[rounds], steps)
            one_round = dataclasses.replace(one_round, keep=keep)
            # Rounds of a tail differ in their cells, so they are written out.
            again = self.kept != "all"
            here_form = form if keep is None else LoopForm(unroll=True, remat=again, nested=False)
            span = functools.partial(self._span, form=here_form)
            if end <= first:
                span = self._without_gradients(span)
            carry, measured = span(self.block, one_round, carry, here)
            found.append(measured)
            if keep is not None:
                one_round = dataclasses.replace(one_round, base=self.select(one_round.base, keep))
            if end == first:
                carry = identity_backwards(carry, one_round.base)
        info = jax.tree.map(lambda *spans: jnp.concatenate(spans), *found)
        return carry.get("mean", carry["state"]), info

    def _one_round(
        self,
        streams: Streams,
        args: tuple,
        exit: Array | int | None,
        collect: bool,
        threshold: float | None,
    ) -> OneRound:
        """What the rounds of one call share; its arguments."""
        return OneRound(
            call=self.call,
            select=self.select,
            parts=self.parts,
            call_rows=self.call_rows,
            gate=self.gate,
            reinject=self.reinject,
            halting=self.halting,
            backprop_rounds=self.backprop_rounds,
            base=streams,
            args=args,
            exit=exit,
            collect=collect,
            threshold=threshold,
        )

    def _steps(self, rounds: int) -> tuple[dict[str, Array], Round]:
        """The rows of `LoopRows` and what the block knows of each round, stacked by round."""
        used = np.minimum(np.arange(rounds), self.trained_rounds - 1)
        rows = jax.tree.map(lambda row: row[used], self.loop())
        temperatures = None
        if self.inverse_temperatures:
            temperatures = jnp.asarray(self.inverse_temperatures, jnp.float32)[used]
        return rows, Round(jnp.arange(rounds), temperatures)

    def _without_gradients(self, span: Callable) -> Callable:
        """`span` with no gradient to parameters or rows, so that its rounds keep nothing."""

        def run(block: nn.Module, one_round: OneRound, carry: Carry, steps: tuple):
            # A function of its own: flax wants to name what it transforms.
            return span(block, one_round, carry, steps)

        without = nn.map_variables(run, "params", trans_in_fn=frozen)

        def cut(block: nn.Module, one_round: OneRound, carry: Carry, steps: tuple):
            carry, found = without(block, one_round.frozen(), frozen(carry), frozen(steps))
            return carry, identity_backwards(found, one_round.base)

        return cut

    def _span(
        self,
        block: nn.Module,
        one_round: OneRound,
        carry: Carry,
        steps: tuple,
        *,
        form: LoopForm,
    ) -> tuple[Carry, dict]:
        """Some rounds in a row.

        Args:
            block: runs in each.
            one_round: what they share.
            carry: before the first.
            steps: by round.
            form: from `unrolling.loop_form`.

        Returns:
            The carry after the last, and what was measured by round.
        """

        def body(block: nn.Module, carry: Carry, step: tuple) -> tuple[Carry, dict]:
            return one_round(block, carry, step)

        if form.remat:
            policy = saves(self.kept, self.saved)
            # In a scan nothing can be merged with what is computed again.
            body = nn.remat(body, prevent_cse=form.unroll, policy=policy)
        length = len(steps[1].index)
        if not form.unroll:
            scan = nn.scan(
                body, variable_broadcast="params", split_rngs={"params": False}, length=length
            )
            return scan(block, carry, steps)
        found = []
        for number in range(length):
            here = jax.tree.map(lambda x, number=number: x[number], steps)
            carry, measured = body(block, carry, here)
            found.append(measured)
        return carry, jax.tree.map(lambda *rounds: jnp.stack(rounds), *found)


def _spans(rounds: int, first: int, tail: Sequence[Any]) -> list[tuple[int, int, Any]]:
    """(begin, end, keep) of rounds in a row that run alike.

    Args:
        rounds: in all.
        first: of those that gradients flow through.
        tail: one `keep` for each of the last rounds.
    """
    whole = rounds - len(tail)
    ends = sorted({0, min(first, whole), whole})
    spans = [(begin, end, None) for begin, end in itertools.pairwise(ends)]
    return spans + [(n, n + 1, keep) for n, keep in enumerate(tail, start=whole)]


def _check_exit(
    exit: Array | int | None, *, rounds: int, tail: Sequence[Any], collect: bool
) -> None:
    """Refuses exits that no loop has, and what a tail cannot give.

    Raises:
        ValueError: see `LoopedBlock`.
    """
    if len(tail) > rounds:
        raise ValueError(f"a tail of {len(tail)} rounds: expected at most rounds = {rounds}")
    for name, asked in (("exit", exit is not None), ("collect", collect)):
        if tail and asked:
            raise ValueError(
                f"{name} with a tail of {len(tail)} rounds: their cells are fewer, so that a loop "
                f"which ends earlier has others; expected a loop without a tail, or no {name}"
            )
    if isinstance(exit, int) and not 1 <= exit <= rounds:
        raise ValueError(f"exit = {exit}: expected 1 to rounds = {rounds}")


def check_rounds(rounds: int, *, trained: int, extrapolate: str | None = None) -> None:
    """Refuses round counts that the weights were not trained for.

    Args:
        rounds: the number asked for.
        trained: the number that has parameters.
        extrapolate: None, or one of `EXTRAPOLATIONS`, which allows any number.

    Raises:
        ValueError: below 1, above `trained` without `extrapolate`, or no such extrapolation.
    """
    if extrapolate is not None and extrapolate not in EXTRAPOLATIONS:
        raise ValueError(
            f"extrapolate = {extrapolate!r}: expected one of {', '.join(EXTRAPOLATIONS)}, or none"
        )
    if rounds < 1:
        raise ValueError(f"rounds = {rounds}: expected at least 1")
    if rounds > trained and extrapolate is None:
        raise ValueError(
            f"rounds = {rounds}: trained with loop.rounds = {trained}; ask for 1..{trained}, or "
            "reuse the last round's parameters (--extrapolate last)"
        )
