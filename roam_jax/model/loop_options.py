"""What a config may ask of a loop, with all checks; docs/loops.md says what each choice does.

The same for the blocks of a graft and for a canvas model. Nothing here runs anything.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from roam_jax.attention.sharpening import SHARPENINGS, inverse_temperatures
from roam_jax.spelling import check_choice

OVER = ("block", "stack")
GATES = ("identity", "sigmoid", "off")
GATE_SCOPES = ("round", "token")
REINJECTIONS = ("none", "scalar", "channel")
HALTINGS = ("none", "learned")
# What the backward pass finds kept, from the most memory to the least; the rest is computed again.
REMATS = ("all", "dots", "layers", "blocks")


@dataclasses.dataclass(frozen=True)
class LoopOptions:
    """How often and how a model runs its blocks; fields but `remat` are leaves of `loop`.

    Args:
        rounds: trained number of rounds R.
        over: block: every block runs its rounds before the next; stack: all blocks run once a
            round.
        gate: one of `GATES`.
        gate_scope: one of `GATE_SCOPES`.
        reinject: how the cells before the first round enter each round again, one of
            `REINJECTIONS`.
        halting: whether cells may stop before the last round, one of `HALTINGS`.
        backprop_rounds: gradients flow through so many of the last rounds; 0 = all.
        self_distillation: whether the deepest round teaches earlier ones.
        sharpening: how the inverse temperature of attention rises from round to round, one of
            `sharpening.SHARPENINGS`.
        final_inverse_temperature: of the last round.
        remat: what the backward pass finds kept, `train.remat`: all; dots, matrix products with
            weights; layers, what each layer adds, or all where that is little; blocks, what enters
            a block.

    Raises:
        ValueError: a value is out of range, or two do not go together; names the leaves.
    """

    rounds: int
    over: str = "block"
    gate: str = "identity"
    gate_scope: str = "round"
    reinject: str = "none"
    halting: str = "none"
    backprop_rounds: int = 0
    self_distillation: bool = False
    sharpening: str = "none"
    final_inverse_temperature: float = 1.0
    remat: str = "layers"

    def __post_init__(self):
        if self.rounds < 1:
            raise ValueError(f"loop.rounds = {self.rounds}: expected at least 1")
        check_choice("loop.over", self.over, OVER)
        check_gate(self.gate, self.gate_scope)
        check_rounds_options(self.reinject, self.halting, self.backprop_rounds, rounds=self.rounds)
        self._check_one_round()
        check_choice("train.remat", self.remat, REMATS)
        if self.halts and self.self_distillation:
            raise ValueError(
                "loop.self_distillation = True with loop.halting = 'learned': a cell that stops by "
                "itself has no earlier exit to teach; expected one of the two"
            )
        check_choice("loop.sharpening", self.sharpening, SHARPENINGS)
        if not 1 <= self.final_inverse_temperature < math.inf:
            raise ValueError(
                f"loop.final_inverse_temperature = {self.final_inverse_temperature}: expected a "
                "finite number of at least 1"
            )

    def _check_one_round(self) -> None:
        """Refuses what needs a second round where there is one.

        Raises:
            ValueError: names the leaf that does.
        """
        leaves = ("self_distillation", self.self_distillation), ("halting", self.halts)
        for leaf, asked in leaves:
            if asked and self.rounds == 1:
                raise ValueError(
                    f"loop.{leaf} = {getattr(self, leaf)!r} with loop.rounds = 1: there is no "
                    "earlier exit; expected at least 2 rounds"
                )

    @classmethod
    def from_section(cls, section: Any, *, remat: str = "layers") -> LoopOptions:
        """The options of a config's section `loop`; what else it holds is not read.

        Args:
            section: gives each leaf under its name, as a `ConfigDict` or a dict.
            remat: `train.remat`.

        Raises:
            ValueError: as the options.
        """
        return cls(**loop_values(section), remat=remat)

    @property
    def halts(self) -> bool:
        """Whether cells may stop before the last round."""
        return self.halting != "none"

    @property
    def inverse_temperatures(self) -> tuple[float, ...]:
        """Of the rounds; none where all are 1."""
        if self.sharpening == "none":
            return ()
        rising = inverse_temperatures(
            self.sharpening, rounds=self.rounds, final=self.final_inverse_temperature
        )
        return tuple(rising.tolist())


def loop_values(section: Any) -> dict[str, Any]:
    """The leaves of a config's section `loop` that `LoopOptions` has, by name."""
    names = (field.name for field in dataclasses.fields(LoopOptions))
    return {name: section[name] for name in names if name != "remat"}


def check_gate(gate: str, gate_scope: str) -> None:
    """Refuses gates that do not exist.

    Raises:
        ValueError: no such gate or scope (names the nearest), or a scope without a gate.
    """
    for leaf, value, known in (("gate", gate, GATES), ("gate_scope", gate_scope, GATE_SCOPES)):
        check_choice(f"loop.{leaf}", value, known)
    if gate == "off" and gate_scope == "token":
        raise ValueError(
            "loop.gate_scope = 'token' with loop.gate = 'off': there is no gate to shift by token; "
            "expected loop.gate_scope = 'round', or a gate"
        )


def check_rounds_options(reinject: str, halting: str, backprop_rounds: int, *, rounds: int) -> None:
    """Refuses re-injections and haltings that do not exist, and gradients through no round.

    Raises:
        ValueError: names the leaf.
    """
    check_choice("loop.reinject", reinject, REINJECTIONS)
    check_choice("loop.halting", halting, HALTINGS)
    if not 0 <= backprop_rounds <= rounds:
        raise ValueError(
            f"loop.backprop_rounds = {backprop_rounds}: expected 0 (all) to loop.rounds = {rounds}"
        )


def check_ponder(ponder: float) -> None:
    """Refuses weights of the ponder cost that are none.

    Raises:
        ValueError: below 0, or not finite.
    """
    if not 0 <= ponder < math.inf:
        raise ValueError(f"loss.ponder = {ponder}: expected a finite number of at least 0")


def exit_threshold(value: float, *, halting: str) -> float | None:
    """The stopped mass from which a cell stops for good, as a loop takes it; None = never.

    Args:
        value: `eval.exit_threshold`, 0 = never.
        halting: `loop.halting` of the run.

    Raises:
        ValueError: out of range, or the run's cells never stop.
    """
    threshold = value or None
    check_threshold(threshold, halting=halting)
    return threshold


def check_threshold(threshold: float | None, *, halting: str) -> None:
    """Refuses thresholds that no mass can reach, and those of loops that never stop.

    Raises:
        ValueError: it is not above 0 and at most 1, or there is no halting.
    """
    if threshold is None:
        return
    if not 0 < threshold <= 1:
        raise ValueError(
            f"eval.exit_threshold = {threshold}: expected a number above 0 and at most 1 (in a "
            "config also 0, to run all rounds)"
        )
    if halting == "none":
        raise ValueError(
            f"eval.exit_threshold = {threshold} with loop.halting = 'none': no cell of this run "
            "has learned when to stop; expected 0, or a run with loop.halting = 'learned'"
        )
