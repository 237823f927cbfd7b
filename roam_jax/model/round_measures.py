"""How far each round moves the state: what every looped block reports, by stream or by region."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# What a looped block reports for every round: |h' - h| / |h| of the step that it takes; with the
# block's output b, |b - h| / |h| of the one that it would take ungated; and the cosine of b and h.
MEASURES = ("gated_step", "residual", "cosine")
# What they are where the block does not run: as if it had returned what it was given.
UNMOVED = (0.0, 0.0, 1.0)
# With halting: the share of what a round begins with that still runs.
RUNNING = "running"
# Stream -> part -> its places (an index array or a slice).
Parts = Mapping[str, Mapping[str, object]]
Streams = dict[str, Array]


def whole_streams(streams: Streams) -> Parts:
    """Each stream as its own one part."""
    return {name: {name: slice(None)} for name in streams}


def round_measures(
    state: Streams, out: Streams, new: Streams, parts: Parts
) -> dict[str, dict[str, Float[Array, ""]]]:
    """`MEASURES` of one round: measure -> part -> (); they carry no gradient.

    Args:
        state: before the round.
        out: what the block made of it.
        new: after the round.
        parts: of each stream.
    """
    found: dict[str, dict[str, Array]] = {name: {} for name in MEASURES}
    for stream, places in parts.items():
        h, b, h_next = (jax.lax.stop_gradient(x[stream]) for x in (state, out, new))
        # By cell first, so that parts cost next to nothing.
        sums = [
            jnp.sum(x, axis=-1)
            for x in (h * h, b * b, h * b, jnp.square(h_next - h), jnp.square(b - h))
        ]
        for part, index in places.items():
            h_h, b_b, h_b, step, gap = (jnp.sum(x[:, index]) for x in sums)
            values = jnp.sqrt(step / h_h), jnp.sqrt(gap / h_h), h_b / jnp.sqrt(h_h) / jnp.sqrt(b_b)
            for measure, value in zip(MEASURES, values, strict=True):
                found[measure][part] = value
    return found


def unmoved(parts: Parts) -> dict[str, dict[str, Float[Array, ""]]]:
    """The measures of a round that does not run."""
    names = [part for places in parts.values() for part in places]
    return {
        measure: {part: jnp.float32(value) for part in names}
        for measure, value in zip(MEASURES, UNMOVED, strict=True)
    }


def share(values: Mapping[str, Float[Array, "B N 1"]], parts: Parts) -> dict[str, Array]:
    """The mean over the cells of each part: part -> (); carries gradients."""
    return {
        part: jnp.mean(values[stream][:, index])
        for stream, places in parts.items()
        for part, index in places.items()
    }
