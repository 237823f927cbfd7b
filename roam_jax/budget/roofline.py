"""Step time by a roofline: every operation takes as long as its products or its memory traffic.

A product takes the longer of its FLOPs at the data sheet's rate and its bytes at the memory's
bandwidth; what is computed in passing takes the bytes that it reads and writes. Attention is taken
as a fused kernel, whose scores never leave the chip. Rates of data sheets are never reached:
`ATTAINED` is the share of this roofline that a measured step came to.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence

from roam_jax.accelerators import Accelerator
from roam_jax.budget.collectives import Collective
from roam_jax.budget.liveness import SizeOf, whole_size
from roam_jax.budget.program import Operation, Program, Value, inner_programs
from roam_jax.evaluate.flops import count_equation
from roam_jax.evaluate.step_cost import PARTS

# Roofline over measured time on one H200, loss and gradients of configs/bridge_3loop.py at batch 4
# and 1 (docs/performance.md: 445 and 140 ms); `docs/scaling.md` has the comparison.
ATTAINED = 0.5


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Seconds of a step on each device, by what bounds them.

    Args:
        products: bound by the rate of products.
        memory: bound by the bandwidth of memory.
        links: sending between devices, by mesh axes.
        flops: of a device.
    """

    products: float
    memory: float
    links: Mapping[str, float]
    flops: float

    @property
    def compute(self) -> float:
        """Seconds without any sending, at the roofline."""
        return self.products + self.memory

    @property
    def fastest(self) -> float:
        """Seconds of a step at the roofline, all sending hidden behind computing."""
        return max(self.compute, sum(self.links.values()))

    @property
    def expected(self) -> float:
        """Seconds at the share of the roofline that was measured, no sending hidden."""
        return self.compute / ATTAINED + sum(self.links.values())


def roofline(
    program: Program,
    accelerator: Accelerator,
    *,
    sent: Sequence[Collective] = (),
    size_of: SizeOf = whole_size,
    split: int = 1,
) -> Roofline:
    """The roofline of a step.

    Args:
        program: loss and gradients of the rows of one device, in the accelerator's dtypes.
        accelerator: whose rates count.
        sent: collectives of the step.
        size_of: bytes of an array on one device.
        split: devices that share the work on a row.
    """
    products, memory, flops = _seconds(program, accelerator, size_of, split, fused=False)
    links: dict[str, float] = {}
    for each in sent:
        name = " x ".join(each.axes)
        rate = accelerator.network if each.across else accelerator.link
        links[name] = links.get(name, 0.0) + each.sent / rate
    return Roofline(products, memory, links, flops)


def _seconds(
    program: Program, accelerator: Accelerator, size_of: SizeOf, split: int, *, fused: bool
) -> tuple[float, float, float]:
    """Seconds bound by products and by memory, and FLOPs.

    Args:
        program: of a step, or of a loop's body.
        accelerator, size_of, split: as for `roofline`.
        fused: whether all of it lies in one kernel, so that its memory traffic does not count.
    """
    products = memory = flops = 0.0
    for op in program.operations:
        if op.name in ("scan", "while", "cond"):
            found = [
                _seconds(body, accelerator, size_of, split, fused=fused or _is_attention(op))
                for body in inner_programs(op)
            ]
            times = op.eqn.params["length"] if op.name == "scan" else 1
            worst = max(found, key=lambda seconds: seconds[0] + seconds[1], default=(0.0, 0.0, 0.0))
            products += times * worst[0]
            memory += times * worst[1]
            flops += times * worst[2]
            continue
        traffic = 0.0 if fused else _traffic(op, program, size_of) / accelerator.bandwidth
        if re.search(PARTS["VAE"], op.scope):  # whole rows, spread over all devices of the mesh
            traffic /= split
        count = count_equation(op.eqn) / split
        flops += count
        half = all(value.itemsize <= 2 for value in op.inputs)
        rate = accelerator.bf16_flops if half else accelerator.float32_flops
        if count / rate > traffic:
            products += count / rate
        else:
            memory += traffic
    return products, memory, flops


def _is_attention(op: Operation) -> bool:
    """Whether a loop is one over tiles of attention."""
    part = next(name for name, pattern in PARTS.items() if re.search(pattern, op.scope))
    return part == "attention"


def _traffic(op: Operation, program: Program, size_of: SizeOf) -> float:
    """Bytes that an operation reads and writes, with what it computes in passing."""
    written = [value for value in op.outputs if value in program.stored]
    if not written:
        return 0.0
    own = max((_size(value, size_of) for value in (*op.inputs, *op.outputs)), default=0.0)
    roots = frozenset().union(*(program.roots.get(value, frozenset()) for value in op.inputs))
    # Of a larger array that is read in passing, only a slice of about this size is.
    read = sum(min(_size(root, size_of), own) for root in roots)
    return read + sum(_size(value, size_of) for value in written)


def _size(value: Value, size_of: SizeOf) -> float:
    return size_of(value.shape, value.itemsize) if math.prod(value.shape) else 0.0
