"""Shapes in canvas-engineering's checkpoints: one number of rounds, one width, a head that fits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from roam_jax.cogvideox.config import TransformerConfig
from roam_jax.cogvideox.names import source_shapes, transformer_names

Shape = tuple[int, ...]
_BLOCK = "transformer_blocks.0."
_OWN = "original."


def check_shapes(found: Mapping[str, np.ndarray], *, where: Any) -> None:
    """Refuses a tensor that does not fit the others; a wrong one would lose numbers in silence.

    Args:
        found: "loop_blocks.block_I.KEY" or "action_head.KEY" -> array; all that a graft needs.
        where: the file, for messages.

    Raises:
        ValueError: names the tensor, its shape, the expected one and why.
    """
    for key, expected, reason in (*_of_blocks(found, where=where), *_of_head(found)):
        if found[key].shape != expected:
            raise ValueError(
                f"{where}: {key} has shape {found[key].shape}, expected {expected}: {reason}"
            )


def _of_head(found: Mapping[str, np.ndarray]) -> Iterator[tuple[str, Shape, str]]:
    first, second = "action_head.net.0", "action_head.net.2"
    hidden = found[f"{first}.weight"].shape[0]
    actions = found[f"{second}.bias"].shape[0]
    reason = f"{first}.weight gives {hidden} hidden numbers"
    yield f"{first}.bias", (hidden,), reason
    yield f"{second}.weight", (actions, hidden), f"{reason}, {second}.bias is for {actions} actions"


def _of_blocks(found: Mapping[str, np.ndarray], *, where: Any) -> Iterator[tuple[str, Shape, str]]:
    first = next(key for key in found if key.endswith(".loop_emb"))
    rounds, width = found[first].shape
    if not rounds:
        yield first, (1, width), "a graft has one round or more"
    shapes: dict[str, Shape] = {
        "loop_emb": (rounds, width),
        "loop_emb_enc": (rounds, width),
        "loop_gate": (rounds, 1),
    }
    reason = f"{first} is for {rounds} rounds of width {width}"
    if any(f".{_OWN}" in key for key in found):
        shapes |= _own_shapes(found, width, where=where)
    for key in found:
        name = ".".join(key.split(".")[2:])
        if key.startswith("loop_blocks.") and name in shapes:
            yield key, shapes[name], reason


def _own_shapes(found: Mapping[str, np.ndarray], width: int, *, where: Any) -> dict[str, Shape]:
    """A block's own weights; how wide the time embedding and a head are is the file's choice.

    Raises:
        ValueError: no CogVideoX has blocks of that width.
    """

    def length(name: str, otherwise: int) -> int:
        keys = (key for key in found if key.endswith(f".{_OWN}{name}"))
        return next((found[key].shape[-1] for key in keys), otherwise)

    head = length("attn1.norm_q.weight", width)
    if not head or width % head:
        raise ValueError(f"{where}: heads of {head} numbers do not fill width {width}")
    try:
        config = TransformerConfig(
            num_attention_heads=width // head,
            attention_head_dim=head,
            time_embed_dim=length("norm1.linear.weight", TransformerConfig.time_embed_dim),
        )
    except ValueError as error:
        raise ValueError(f"{where}: no blocks of CogVideoX: {error}") from error
    shapes = source_shapes(transformer_names(config))
    own = {key: shape for key, shape in shapes.items() if key.startswith(_BLOCK)}
    return {f"{_OWN}{key.removeprefix(_BLOCK)}": shape for key, shape in own.items()}
