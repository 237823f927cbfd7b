"""All blocks of a canvas model in their rounds: each block looped, or the whole stack.

Both have the same parameters under the same names, `blocks/*` stacked over depth on axis 0, and
`blocks/loop/*`: of every block, stacked likewise, or of the stack.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from roam_jax.model.block import CELLS, call_block, call_rows
from roam_jax.model.loop_options import LoopOptions
from roam_jax.model.looped import LAYER_OUTPUT, LOOP, LoopedBlock
from roam_jax.model.one_round import STATES, Round
from roam_jax.model.round_measures import Streams
from roam_jax.model.unrolling import LoopForm, loop_form, saves

# Name of all blocks' parameters.
BLOCKS = "blocks"


class Stack(nn.Module):
    """Several blocks one after the other, their parameters stacked under the block's own names.

    Args:
        make_block: makes each.
        call: `LoopedBlock.call` of a block; that of the stack is `call_stack`.
        depth: number of blocks.
        saved: as for `LoopedBlock`, of each block.
        unroll: whether blocks are written out, not scanned.
        remat: whether each computes again what it has not saved.
        kept: as for `LoopedBlock`.
    """

    make_block: Callable[[], nn.Module]
    call: Callable[..., Streams]
    depth: int
    saved: tuple[str, ...] = ()
    unroll: bool = False
    remat: bool = True
    kept: str = "layers"

    @nn.compact
    def __call__(self, streams: Streams, this: Round, *args) -> Streams:
        """The streams after the last block.

        Args:
            streams: name -> (B, N, D).
            this: the same for all blocks.
            *args: likewise, passed on to `call`.
        """
        block = self.make_block().clone(parent=None, name=None)

        def run(block: nn.Module, streams: Streams) -> tuple[Streams, None]:
            return self.call(block, streams, this, *args), None

        def one(params: dict, streams: Streams) -> tuple[Streams, None]:
            return nn.apply(run, block)({"params": params}, streams)

        # The looped block that has this stack keeps its rows at the same level.
        known = self.variables.get("params", {})
        params = {name: stacked for name, stacked in known.items() if name != LOOP}
        if self.is_initializing() and not params:
            keys = jax.random.split(self.make_rng("params"), self.depth)
            params = jax.vmap(lambda key: nn.init(run, block)(key, streams)["params"])(keys)
            for name, stacked in params.items():
                self.put_variable("params", name, stacked)
        if self.remat:
            policy = saves(self.kept, self.saved)
            one = jax.checkpoint(one, prevent_cse=self.unroll, policy=policy)
        return over_depth(one, params, streams, unroll=self.unroll)[0]


def call_stack(stack: Stack, streams: Streams, this: Round, *args) -> Streams:
    """`LoopedBlock.call` of a stack."""
    return stack(streams, this, *args)


class CanvasLoop(nn.Module):
    """The blocks of a canvas model, in rounds.

    Args:
        make_block: makes a `CanvasBlock`.
        depth: number of blocks L.
        width: width D of the cells.
        options: of the loop; `over` says what is looped.
        parts: region -> its places among the cells (an index array or a slice), which measures are
            for; None = all cells as one, "cells".
        unroll: whether blocks and rounds are written out, not scanned; None = by `loop_form`.
        remat: whether a block computes again what it has not saved; None = likewise.
        nested: whether all rounds of a looped block, or all blocks of a round of the stack, are
            computed again as well; None = likewise.
        call_running: whether a looped block computes only cells that run, under a threshold, where
            it can; the results are the same.
    """

    make_block: Callable[[], nn.Module]
    depth: int
    width: int
    options: LoopOptions
    parts: Mapping[str, Any] | None = None
    unroll: bool | None = None
    remat: bool | None = None
    nested: bool | None = None
    call_running: bool = True

    @nn.compact
    def __call__(
        self,
        cells: Float[Array, "B N D"],
        *,
        rounds: int,
        extrapolate: str | None = None,
        exit: Int[Array, ""] | int | None = None,
        collect: bool = False,
        threshold: float | None = None,
    ) -> tuple[Float[Array, "B N D"], dict]:
        """The cells after all blocks and rounds.

        Args:
            cells: in sequence order, float32.
            rounds, extrapolate, exit, threshold: as for `LoopedBlock`; of every block where blocks
                are looped.
            collect: static; also returns the cells after every round of a looped stack.

        Returns:
            The cells, and what `LoopedBlock` measures: measure -> region -> (L, rounds), or (1,
            rounds) of a looped stack. With `collect` "states" (rounds, B, N, D).

        Raises:
            ValueError: a depth below 1, `collect` where blocks are looped, or as `LoopedBlock`.
        """
        over_block = self.options.over == "block"
        if self.depth < 1:
            raise ValueError(f"model.depth = {self.depth}: expected at least 1")
        if collect and over_block:
            raise ValueError(
                "collect with loop.over = 'block': each block ends its rounds before the next "
                "begins, so that no state of one pass is that of fewer rounds; expected loop.over "
                "= 'stack', or a pass with exit"
            )
        streams = {CELLS: cells}
        asked = {"unroll": self.unroll, "remat": self.remat, "nested": self.nested}
        form = loop_form(streams, self.depth * rounds, **asked, kept=self.options.remat)
        call = {"rounds": rounds, "extrapolate": extrapolate, "exit": exit, "threshold": threshold}
        looped = self._looped(form)
        if over_block:
            streams, info = self._one_by_one(looped, streams, call, form)
            return streams[CELLS], info
        streams, info = looped(streams, collect=collect, **call)
        states = info.pop(STATES, {})
        info = jax.tree.map(lambda x: x[None], info)
        return streams[CELLS], info | ({STATES: states[CELLS]} if collect else {})

    def _one_by_one(
        self, looped: LoopedBlock, streams: Streams, call: dict[str, Any], form: LoopForm
    ) -> tuple[Streams, dict]:
        """Blocks that end their rounds one after another, and what they measured, by block.

        Args:
            looped: each of them.
            streams: before the first.
            call: keywords of each call.
            form: of the loop.
        """

        def init(key: Array) -> dict:
            keys = jax.random.split(key, self.depth)
            return jax.vmap(lambda key: looped.init(key, streams, rounds=1)["params"])(keys)

        if self.has_variable("params", BLOCKS):
            params = self.get_variable("params", BLOCKS)
        else:
            params = self.param(BLOCKS, init)

        def one(params: dict, streams: Streams) -> tuple[Streams, dict]:
            return looped.apply({"params": params}, streams, **call)

        if form.nested:
            one = jax.checkpoint(one, prevent_cse=form.unroll)
        return over_depth(one, params, streams, unroll=form.unroll)

    def _looped(self, form: LoopForm) -> LoopedBlock:
        """What is looped: one of the blocks, or the stack of them."""
        options, saved = self.options, () if form.nested else (LAYER_OUTPUT,)
        over_block = options.over == "block"
        looped = functools.partial(
            LoopedBlock,
            gate=options.gate,
            trained_rounds=options.rounds,
            width=self.width,
            streams=(CELLS,),
            gate_scope=options.gate_scope,
            saved=saved,
            inverse_temperatures=options.inverse_temperatures,
            reinject=options.reinject,
            halting=options.halting,
            backprop_rounds=options.backprop_rounds,
            parts=None if self.parts is None else lambda keep, *_: {CELLS: self.parts},
            unroll=form.unroll,
            # A detached one of many has no name.
            **({"parent": None} if over_block else {"name": BLOCKS}),
        )
        if over_block:
            block = self.make_block
            rows = call_rows if self.call_running and block().can_call_rows else None
            kept = options.remat
            return looped(block, call_block, call_rows=rows, remat=form.remat, kept=kept)
        stack = functools.partial(
            Stack,
            self.make_block,
            call_block,
            self.depth,
            saved,
            unroll=form.unroll,
            remat=form.remat,
            kept=options.remat,
        )
        # Blocks compute again what they need; nested, all of a round once more.
        return looped(stack, call_stack, remat=form.nested)


def over_depth(
    one: Callable[[Any, Streams], tuple[Streams, Any]],
    params: Any,
    streams: Streams,
    *,
    unroll: bool,
) -> tuple[Streams, Any]:
    """Blocks of one kind one after the other.

    Args:
        one: `one(params, streams) -> (streams, found)`, a block.
        params: of all, stacked on axis 0.
        streams: before the first.
        unroll: whether they are written out, not scanned.

    Returns:
        The streams after the last, and what was found, stacked.
    """
    if not unroll:
        return jax.lax.scan(lambda streams, params: one(params, streams), streams, params)
    # Taken apart at once: the gradient is then one concatenation, not a sum over blocks.
    leaves, tree = jax.tree.flatten(params)
    found = []
    for layer in zip(*(jnp.unstack(x) for x in leaves), strict=True):
        streams, here = one(jax.tree.unflatten(tree, layer), streams)
        found.append(here)
    return streams, jax.tree.map(lambda *x: jnp.stack(x), *found)
