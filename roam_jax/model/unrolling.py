"""How a loop runs: rounds written out or scanned, what they computed kept or computed again.

Decided from counted bytes. Written-out rounds keep all that they compute; scanned ones that keep it
are never best, as all of it is copied into stacks. Scanned rounds that compute it again compile in
half the time and need a fifth of the memory. What they lose is one more forward pass of matrix
products, which for narrow cells is no more than the traffic saved. Forward and backward of 3 blocks
x 4 rounds, one core, in terms of torch's looped by canvas-engineering:

| width, cells, batch | written out | scanned, kept | scanned, again |
|---------------------|-------------|---------------|----------------|
| 64, 120, 8          | 0.80        | 1.70          | 0.75           |
| 128, 128, 8         | 0.92        | 1.85          | 0.96           |
| 256, 256, 2         | 0.95        | 1.52          | 1.00           |
| 512, 512, 1         | 0.95        | 1.38          | 1.06           |

`benchmarks/looped_stack.py --forms` measures it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import jax
from jaxtyping import Array

# Narrower cells than this gain nothing from keeping what is computed.
WIDE = 256
# Bytes that a loop may keep for its backward pass, for one seed.
BUDGET = 512 << 20
# Arrays as large as the cells that one application of a block keeps: all that it computes; with
# rematerialisation its state and its layers' outputs.
KEPT, SAVED = 32, 3
FLOAT_BYTES = 4


class LoopForm(NamedTuple):
    """How a loop runs.

    Args:
        unroll: rounds (and blocks) are written out, not scanned.
        remat: a round computes again what it has not saved, see `saves`.
        nested: for one more forward pass, all rounds of a looped block, or all blocks of a round
            of a looped stack, are computed again as well, and nothing is saved within: one state
            a block, or one a round, is kept. With `remat` alone.
    """

    unroll: bool
    remat: bool
    nested: bool


def loop_form(
    streams: dict[str, Array | jax.ShapeDtypeStruct],
    applications: int,
    *,
    unroll: bool | None = None,
    remat: bool | None = None,
    nested: bool | None = None,
    kept: str = "layers",
) -> LoopForm:
    """The form of a loop of this size.

    Args:
        streams: of the loop, (B, N, D) each.
        applications: of a block, over all rounds.
        unroll, remat, nested: what is asked for, see `LoopForm`; None = by size.
        kept: for the backward pass, one of `loop_options.REMATS`; layers leaves `remat` and
            `nested` as they are, the others decide both.
    """
    if kept != "layers":
        remat, nested = kept != "all", kept == "blocks"
    once = FLOAT_BYTES * sum(x.size for x in streams.values()) * applications
    wide = max(x.shape[-1] for x in streams.values()) >= WIDE
    keeps = wide and KEPT * once <= BUDGET
    remat = not keeps if remat is None else remat
    return LoopForm(
        unroll=not remat if unroll is None else unroll,
        remat=remat,
        nested=remat and (SAVED * once > BUDGET if nested is None else nested),
    )


def saves(kept: str, names: Collection[str]) -> Callable[..., Any]:
    """What `jax.checkpoint` keeps where something is computed again.

    Args:
        kept: one of `loop_options.REMATS` but all, which computes nothing again.
        names: given by `checkpoint_name` to what layers add.
    """
    policies = jax.checkpoint_policies
    if kept == "blocks":
        return policies.nothing_saveable
    layers = policies.save_only_these_names(*names)
    if kept == "dots":
        return policies.save_from_both_policies(policies.dots_with_no_batch_dims_saveable, layers)
    return layers
