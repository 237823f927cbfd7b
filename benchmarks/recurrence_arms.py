"""What is compared with what: the arms of each part of `recurrence.py`, the reference first."""

from __future__ import annotations

import dataclasses
from typing import Any

GATES = ("sigmoid", "identity", "off")
# What a scene has to predict.
REGIONS = {
    "multimodal": ("future_video", "future_proprio", "reward", "answer"),
    "contact": ("future_video", "future_proprio", "contact"),
}
EXITS = (1, 2, 3, 4, 5, 6)


@dataclasses.dataclass(frozen=True)
class Arm:
    """One config of a comparison.

    Args:
        name: in tables.
        variant: of configs/canvas_toy.py.
        changes: (leaf, value) pairs.
        exits: numbers of rounds after which it is measured; () = the trained one.
        thresholds: at which cells stop when it is measured; None = never.
        cosines: whether region gradients are compared during the training.
        alone: whether each diffused region is also measured with the others as pure noise.
    """

    name: str
    variant: str = ""
    changes: tuple[tuple[str, Any], ...] = ()
    exits: tuple[int, ...] = ()
    thresholds: tuple[float | None, ...] = (None,)
    cosines: bool = False
    alone: bool = False


def depth(scene: str) -> list[Arm]:
    """Recurrence against depth, at equal compute and at equal parameters."""
    shapes = {"3 x 4": "", "12 x 1": "distinct", "12 x 1 narrow": "narrow"}
    return [
        Arm(f"{shape}, {gate}", variant, (("loop.gate", gate),))
        for gate in GATES
        for shape, variant in shapes.items()
    ]


def distillation(scene: str) -> list[Arm]:
    """Plain against self-distilled loops, over the whole stack and over every block."""
    return [
        Arm(
            f"{'distilled' if distilled else 'plain'}, {over}",
            changes=(("loop.over", over), ("loop.self_distillation", distilled)),
            exits=EXITS,
        )
        for over in ("stack", "block")
        for distilled in (False, True)
    ]


def joint(scene: str) -> list[Arm]:
    """All regions at once, and each alone."""
    alone = [
        Arm(f"{name} alone", changes=(("canvas.predict", (name,)),), alone=True)
        for name in REGIONS[scene]
    ]
    return [Arm("joint", cosines=True, alone=True), *alone]


def balance(scene: str) -> list[Arm]:
    """Rules for the weights of regions."""
    video = REGIONS[scene][0]
    rules = {
        "fixed": (),
        "uncertainty": (("loss.balance", "uncertainty"),),
        "gradnorm": (("loss.balance", "gradnorm"),),
        "gradnorm, alpha 1": (("loss.balance", "gradnorm"), ("loss.gradnorm_alpha", 1.0)),
        f"{video} trains its decoder alone": (("loss.decoder_only", (video,)),),
    }
    return [Arm(name, changes=changes, cosines=True) for name, changes in rules.items()]


def halting(scene: str) -> list[Arm]:
    """Cells that stop, with several prices of a round, and at several thresholds."""
    arms = [Arm("no halting", exits=EXITS[:4])]
    for ponder in (0.001, 0.01, 0.1):
        changes = (("loss.ponder", ponder),)
        name = f"halting, ponder {ponder}"
        arms.append(Arm(name, "halting", changes, thresholds=(None, 0.99, 0.9, 0.5)))
    return arms


PARTS = {part.__name__: part for part in (depth, distillation, joint, balance, halting)}
