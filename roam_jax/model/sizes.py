"""Parameters and FLOPs of a canvas model in closed form, from its sizes alone.

What makes a comparison fair: of depth against recurrence, the same FLOPs with distinct blocks, or
the same parameters with narrower ones. A multiply-add is 2 FLOPs; only matrix products count.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from roam_jax.canvas.plan import AttentionPlan, compile_plan

if TYPE_CHECKING:
    from roam_jax.model.canvas_model import CanvasModel
    from roam_jax.model.cells import CellRegion

# Numbers that a scalar's encoder reads, and a noise level's.
_SCALAR_FEATURES, _LEVEL_FEATURES = 16, 256
# Widths of a cell in the feed-forward layer of a block and in a decoder's hidden layer.
_FEED_FORWARD, _HIDDEN = 4, 2
# By `canvas.geometry`: what a head learns of positions, and by how much they widen its keys.
_POSITIONS = {"none": 0, "rotary": 1, "relative": 24}
_POSITION_FEATURES = {"none": 0, "rotary": 0, "relative": 24}
# What an edge of a kind learns, for heads of a width: rows of latents, or one number.
_LATENTS = 8
# Positions take a half and two quarters of the width, each in pairs of sine and cosine.
WIDTH_MULTIPLE = 8


def check_sizes(*, width: int, depth: int, heads: int) -> None:
    """Refuses sizes that no canvas model can have.

    Raises:
        ValueError: names the leaf of the section `model` that does not fit.
    """
    if depth < 1:
        raise ValueError(f"model.depth = {depth}: expected at least 1")
    if heads < 1:
        raise ValueError(f"model.heads = {heads}: expected at least 1")
    step = math.lcm(heads, WIDTH_MULTIPLE)
    if width < 1 or width % step:
        below = max(step, width // step * step)
        raise ValueError(
            f"model.width = {width}: expected a multiple of {WIDTH_MULTIPLE} (positions) and of "
            f"model.heads = {heads} (nearest: {below} or {below + step})"
        )


def block_parameters(width: int) -> int:
    """Of one block without loop rows: four projections, the feed-forward layer, two norms.

    Args:
        width: D of its cells.
    """
    attention = 4 * (width * width + width)
    hidden = _FEED_FORWARD * width
    return attention + width * hidden + hidden + hidden * width + width + 4 * width


def loop_parameters(
    *, width: int, rounds: int, gate_scope: str, reinject: str, halting: str
) -> int:
    """Rows of one loop, whatever it runs over: a gate and an embedding a round, and what is asked.

    Args:
        width: D of the cells.
        rounds: number of rounds R.
        gate_scope, reinject, halting: leaves of the section `loop`.
    """
    row = 1 + width
    row += width if gate_scope == "token" else 0
    row += {"none": 0, "scalar": 1, "channel": width}[reinject]
    row += width + 1 if halting == "learned" else 0
    return rounds * row


def narrowed_width(*, width: int, depth: int, heads: int, to_depth: int) -> int:
    """The width at which more blocks have as many parameters as fewer, wider ones.

    Args:
        width, depth, heads: of the model that is compared with.
        to_depth: blocks of the narrowed model, which keeps the heads.

    Returns:
        The width that is allowed and whose blocks together come nearest.

    Raises:
        ValueError: as `check_sizes`, or no fewer blocks.
    """
    check_sizes(width=width, depth=depth, heads=heads)
    if to_depth < depth:
        raise ValueError(f"{to_depth} blocks: expected at least the {depth} that are narrowed")
    target = depth * block_parameters(width)
    widths = range(math.lcm(heads, WIDTH_MULTIPLE), width + 1, math.lcm(heads, WIDTH_MULTIPLE))
    return min(widths, key=lambda w: abs(to_depth * block_parameters(w) - target))


def model_parameters(model: CanvasModel) -> dict[str, int]:
    """Parameters by part: "encoders", "blocks", "loop", "norm" and "decoders".

    Args:
        model: as it is declared; nothing is run.
    """
    width, options = model.layout.d_model, model.options
    plan = compile_plan(model.layout, model.topology)
    loop = loop_parameters(
        width=width,
        rounds=options.rounds,
        gate_scope=options.gate_scope,
        reinject=options.reinject,
        halting=options.halting,
    )
    positions = model.heads * _POSITIONS[model.geometry]
    block = block_parameters(width) + _edge_parameters(plan, width) + positions
    cells = model.layout.region_numel
    return {
        "encoders": sum(_encoder_parameters(r, width, cells(r.name)) for r in model.regions),
        "blocks": model.depth * block,
        "loop": loop * (model.depth if options.over == "block" else 1),
        "norm": 2 * width,
        "decoders": sum(_decoder_parameters(r, width) for r in model.regions if r.objective),
    }


def forward_flops(model: CanvasModel, *, rounds: int) -> dict[str, int]:
    """FLOPs of one example's forward pass by part: "encoders", "blocks" and "decoders".

    Args:
        model: as it is declared.
        rounds: number of rounds.

    Raises:
        ValueError: see `is_counted`.
    """
    width = model.layout.d_model
    cells = sum(map(model.layout.region_numel, model.layout.regions))
    plan = compile_plan(model.layout, model.topology)
    if plan.edges:
        kinds = ", ".join(sorted({edge.kind for edge in plan.edges}))
        raise ValueError(f"edges of kind {kinds}: counted is softmax attention alone")
    products = 2 * cells * (4 * width**2 + 2 * _FEED_FORWARD * width**2)
    # Scores are of queries and keys, with their positions; the other product is of values.
    scored = 2 * width + model.heads * _POSITION_FEATURES[model.geometry]
    attention = 2 * scored * plan.scores
    numel = model.layout.region_numel
    return {
        "encoders": sum(_encoder_flops(r, width, numel(r.name)) for r in model.regions),
        "blocks": model.depth * rounds * (products + attention),
        "decoders": sum(
            _decoder_flops(r, width, numel(r.name), cells) for r in model.regions if r.objective
        ),
    }


def is_counted(model: CanvasModel) -> bool:
    """Whether all that multiplies matrices is counted here: softmax attention, no other edges."""
    return not compile_plan(model.layout, model.topology).edges


def step_flops(model: CanvasModel, *, rounds: int) -> int:
    """FLOPs of one example's share of a training step, without what remat computes again.

    A product costs two more in the backward pass, and an encoder's one: data has no gradient.
    Rounds before the last `loop.backprop_rounds` have no backward pass. The student of a
    self-distillation is decoded as well; where blocks are looped one by one it is a second pass, of
    half the rounds on average.

    Args:
        model: as it is declared.
        rounds: number of rounds.

    Raises:
        ValueError: as `forward_flops`.
    """
    options, flops = model.options, forward_flops(model, rounds=rounds)
    each = flops["blocks"] / rounds
    learned = min(rounds, options.backprop_rounds or rounds)
    total = 2 * flops["encoders"] + 3 * flops["decoders"] + each * (rounds + 2 * learned)
    if options.self_distillation and rounds > 1:
        total += 3 * flops["decoders"]
        if options.over == "block":
            exits = range(1, rounds)
            learned = [min(exit, options.backprop_rounds or exit) for exit in exits]
            total += each * (sum(exits) + 2 * sum(learned)) / len(exits)
    return round(total)


def _encoder_parameters(region: CellRegion, width: int, cells: int) -> int:
    if not region.holds_data:
        return width + cells * width
    if region.kind == "tokens":
        return width + region.features * width
    inputs = _SCALAR_FEATURES if region.kind == "scalars" else region.features
    level = (_LEVEL_FEATURES + 1) * width if region.diffused else 0
    return width + (inputs + 1) * width + level


def _decoder_parameters(region: CellRegion, width: int) -> int:
    features, total = region.features, 0
    if region.decoder == "attention":
        total += 4 * (width + 1) * width + 2 * width
    if region.decoder == "linear":
        return total + (width + 1) * features
    hidden = _HIDDEN * width
    return total + (width + 1) * hidden + (hidden + 1) * features


def _edge_parameters(plan: AttentionPlan, width: int) -> int:
    learned = {"cosine_attention": 1, "gated": 1, "perceiver": _LATENTS * width}
    return sum(learned.get(edge.kind, 0) for edge in plan.edges)


def _encoder_flops(region: CellRegion, width: int, cells: int) -> int:
    if not region.holds_data or region.kind == "tokens":
        return 0
    inputs = _SCALAR_FEATURES if region.kind == "scalars" else region.features
    level = 2 * _LEVEL_FEATURES * width if region.diffused else 0
    return 2 * cells * inputs * width + level


def _decoder_flops(region: CellRegion, width: int, cells: int, canvas: int) -> int:
    total = 0
    if region.decoder == "attention":
        total += 2 * width**2 * (2 * cells + 2 * canvas) + 4 * cells * canvas * width
    if region.decoder == "linear":
        return total + 2 * cells * width * region.features
    return total + 2 * cells * _HIDDEN * width * (width + region.features)
