"""The whole budget of a step: bytes, FLOPs, traffic, time, and whether it fits."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections

from roam_jax.accelerators import Accelerator
from roam_jax.axes import TENSOR
from roam_jax.budget.abstract import (
    AbstractStep,
    abstract_step,
    accelerator_config,
    gradient_program,
)
from roam_jax.budget.collectives import Collective, read_collectives
from roam_jax.budget.layout import device_size, shared_work
from roam_jax.budget.liveness import peak_bytes
from roam_jax.budget.program import Program
from roam_jax.budget.roofline import Roofline, roofline
from roam_jax.budget.targets import compile_devices
from roam_jax.evaluate.parameters import stored_parameters
from roam_jax.evaluate.step_cost import StepTrace, trace_step
from roam_jax.train import sharding

# Temporaries that XLA allocates over those of the analytic account, from the least to the most that
# was found (docs/scaling.md, "How far the account is off"), a little wider; and with tensor, which
# was not compared.
BAND = (0.93, 1.10)
WIDE_BAND = (0.75, 1.35)
# Bytes of a device that the CUDA context, NCCL's buffers and the libraries take.
RESERVED = 1.5e9


@dataclasses.dataclass(frozen=True)
class Setting:
    """Where a step is to run.

    Args:
        accelerator: each device.
        memory: bytes of it that are there.
        count: devices.
        per_node: of them in a node.
        mesh: devices along some axes, see `accelerator_config`; {} = as the config has it.
    """

    accelerator: Accelerator
    memory: float
    count: int
    per_node: int
    mesh: Mapping[str, int]


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What is known of a step without compiling it.

    Args:
        step: in shapes and shardings.
        program: loss and gradients of one device's rows.
        held: bytes on a device through the whole step, by what they are; exact.
        temporaries: the most bytes beside them, by the analytic account.
    """

    step: AbstractStep
    program: Program
    held: Mapping[str, int]
    temporaries: float

    @property
    def band(self) -> tuple[float, float]:
        """The least and the most bytes of temporaries that are to be expected."""
        wide = self.step.mesh.shape[TENSOR] > 1
        return tuple(self.temporaries * factor for factor in (WIDE_BAND if wide else BAND))

    @property
    def most(self) -> float:
        """Bytes that a device needs at the upper end of the band, what is reserved included."""
        return sum(self.held.values()) + self.band[1] + RESERVED


@dataclasses.dataclass(frozen=True)
class CompiledStep:
    """What XLA says of the compiled step.

    Args:
        platform: that it was compiled for.
        seconds: that it took.
        arguments, temporaries, outputs: bytes on a device; outputs without those that take the
            place of arguments.
        collectives: of a step.
    """

    platform: str
    seconds: float
    arguments: int
    temporaries: int
    outputs: int
    collectives: Sequence[Collective]


def estimate(config: ml_collections.ConfigDict, setting: Setting, devices: Sequence) -> Estimate:
    """The analytic account of a step; seconds, nothing is compiled or allocated.

    Args:
        config: the whole config.
        setting: where it is to run.
        devices: so many, real or not.

    Raises:
        FileNotFoundError, ValueError: config, mesh, rules or batch do not fit, or the step refuses
            the mesh.
    """
    config = accelerator_config(config, setting.mesh)
    mesh = sharding.make_mesh(**config.mesh, devices=devices)
    step = abstract_step(config, mesh)
    if shared_work(mesh.shape) > 1:
        step.trace()  # rules alone do not say whether heads and edges come apart
    program = gradient_program(config, rows=step.rows)
    temporaries = peak_bytes(program, size_of=device_size(step))
    return Estimate(step, program, step.argument_bytes(), temporaries)


def compile_step(
    config: ml_collections.ConfigDict, setting: Setting, *, platform: str
) -> CompiledStep:
    """Compiles the real step for devices that need not be there; a minute, no arrays.

    Args:
        config, setting: as for `estimate`.
        platform: "cuda" or "cpu", from `targets.choose_platform`.
    """
    config = accelerator_config(config, setting.mesh)
    devices = compile_devices(
        platform, setting.accelerator, count=setting.count, per_node=setting.per_node
    )
    mesh = sharding.make_mesh(**config.mesh, devices=devices)
    lowered = abstract_step(config, mesh).trace().lower()
    began = time.perf_counter()
    compiled = lowered.compile()
    seconds = time.perf_counter() - began
    memory = compiled.memory_analysis()
    return CompiledStep(
        platform=platform,
        seconds=seconds,
        arguments=memory.argument_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        outputs=memory.output_size_in_bytes - memory.alias_size_in_bytes,
        collectives=read_collectives(
            compiled.as_text(), dict(mesh.shape), per_node=setting.per_node
        ),
    )


def report(
    found: Estimate, setting: Setting, *, compiled: CompiledStep | None = None
) -> dict[str, Any]:
    """The budget, ready for JSON: see `docs/scaling.md`.

    Args:
        found: from `estimate`.
        setting: of it.
        compiled: from `compile_step`; None = not compiled, then nothing is known of collectives.
    """
    step = found.step
    trace = trace_step(step.task, stored_parameters(step.task), rounds=step.rounds)
    sent = () if compiled is None else compiled.collectives
    line = roofline(
        found.program,
        setting.accelerator,
        sent=sent,
        size_of=device_size(step),
        split=shared_work(step.mesh.shape),
    )
    return {
        "assumed": list(step.sketch.assumed),
        "accelerator": dataclasses.asdict(setting.accelerator),
        "devices": setting.count,
        "per_node": setting.per_node,
        "mesh": dict(step.mesh.shape),
        "rounds": step.rounds,
        "rows": step.rows,
        "accumulate": step.config.train.accumulate,
        "remat": step.config.train.remat,
        "bytes": _bytes(found, setting, compiled),
        "flops": {"passes": dict(trace.passes), "parts": dict(trace.parts), "step": trace.flops},
        "collectives": None if compiled is None else _by_kind(compiled.collectives),
        "seconds": _seconds(line, trace, setting),
    }


def _bytes(found: Estimate, setting: Setting, compiled: CompiledStep | None) -> dict[str, Any]:
    low, high = found.band
    return {
        "memory": setting.memory,
        "reserved": RESERVED,
        "held": dict(found.held),
        "temporaries": {"analytic": found.temporaries, "least": low, "most": high},
        "compiled": None
        if compiled is None
        else {
            name: getattr(compiled, name)
            for name in ("platform", "seconds", "arguments", "temporaries", "outputs")
        },
        "most": found.most,
        "fits": found.most <= setting.memory,
    }


def _by_kind(collectives: Sequence[Collective]) -> list[dict[str, Any]]:
    """Collectives by operation and axes, those that send most first."""
    groups: dict[tuple, list[Collective]] = {}
    for each in collectives:
        groups.setdefault((each.operation, each.axes, each.across), []).append(each)
    rows = [
        {
            "operation": operation,
            "axes": list(axes),
            "between_nodes": across,
            "times": sum(each.times for each in members),
            "bytes": sum(each.times * each.bytes for each in members),
            "sent": sum(each.sent for each in members),
            "largest": max(members, key=lambda each: each.sent).scope,
        }
        for (operation, axes, across), members in groups.items()
    ]
    return sorted(rows, key=lambda row: -row["sent"])


def _seconds(line: Roofline, trace: StepTrace, setting: Setting) -> dict[str, Any]:
    model = sum(count for name, count in trace.passes.items() if name != "recomputed")
    peak = setting.count * setting.accelerator.bf16_flops
    return {
        "products": line.products,
        "memory": line.memory,
        "links": dict(line.links),
        "roofline": line.fastest,
        "expected": line.expected,
        "mfu_roofline": model / peak / line.fastest,
        "mfu_expected": model / peak / line.expected,
    }
