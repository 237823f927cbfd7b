"""Temporary bytes of a traced program, by an account of what lives when: nothing is compiled.

The account follows `program.Program`: what is stored lives from its operation to its last reader,
read in passing or not; on top of it comes, while a loop or branch runs, the most that its body
holds. Operations run in the order in which they were traced. XLA schedules in another order, fuses
more here and less there, and copies: `docs/scaling.md` says how far the two are apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from roam_jax.budget.program import ALIASES, Operation, Program, Value, inner_programs

# Bytes on one device of an array, from its shape and the size of an element.
SizeOf = Callable[[tuple[int, ...], int], float]


def whole_size(shape: tuple[int, ...], itemsize: int) -> float:
    """Bytes of an array that lies on one device."""
    return math.prod(shape) * itemsize


def peak_bytes(program: Program, *, size_of: SizeOf = whole_size) -> float:
    """The most bytes at a time beside the program's inputs; results that are inputs are free.

    Args:
        program: from `program.read_program`.
        size_of: bytes of an array on one device.
    """
    ends = len(program.operations)
    born, dies = _lifetimes(program)
    bytes_of = {value: size_of(value.shape, value.itemsize) for value in born}
    change = [0.0] * (ends + 2)
    for value, begin in born.items():
        change[begin] += bytes_of[value]
        change[dies[value] + 1] -= bytes_of[value]
    most = live = 0.0
    for place, op in enumerate(program.operations):
        live += change[place]
        reused = _reused(op, place, program, dies, bytes_of)
        most = max(most, live - reused + _within(op, size_of))
    return max(most, live + change[ends])


def _lifetimes(program: Program) -> tuple[dict[Value, int], dict[Value, int]]:
    """Of every stored value the operation that makes it and the last that reads it."""
    roots, stored, ends = program.roots, program.stored, len(program.operations)
    born: dict[Value, int] = {}
    dies: dict[Value, int] = {}
    for place, op in enumerate(program.operations):
        for value in op.inputs:
            for root in roots.get(value, ()):
                dies[root] = place
        for value in op.outputs:
            if value in stored:
                born[value] = dies[value] = place
    for value in filter(None, program.outputs):
        for root in roots.get(value, ()):
            dies[root] = ends
    return born, dies


def _reused(
    op: Operation,
    place: int,
    program: Program,
    dies: Mapping[Value, int],
    bytes_of: Mapping[Value, float],
) -> float:
    """Bytes of a scan's carry that takes the place of what it began with."""
    if op.name != "scan":
        return 0.0
    consts = op.eqn.params["num_consts"]
    firsts = op.operands[consts : consts + op.eqn.params["num_carry"]]
    carried = [program.roots.get(value, frozenset()) for value in firsts]
    return sum(
        bytes_of.get(root, 0.0)
        for roots in carried
        for root in roots
        if len(roots) == 1 and dies[root] == place
    )


def _within(op: Operation, size_of: SizeOf) -> float:
    """The most that a loop's body or a branch holds beside what it is given and returns."""
    if op.name not in ("scan", "while", "cond"):
        return 0.0
    return max((_body(op, program, size_of) for program in inner_programs(op)), default=0.0)


def _body(op: Operation, program: Program, size_of: SizeOf) -> float:
    if op.name != "scan":
        return peak_bytes(program, size_of=size_of)
    params = op.eqn.params
    outer = params["num_consts"] + params["num_carry"]
    # A slice of what is scanned is copied where a product reads it.
    read = {value for each in program.operations if each.reads_memory for value in each.inputs}
    makers = {value: each for each in program.operations for value in each.outputs}

    def named(value: Value) -> Value:
        while value in makers and makers[value].name in ALIASES:
            value = makers[value].inputs[0]
        return value

    read = {named(value) for value in read}
    slices = sum(
        size_of(value.shape, value.itemsize) for value in program.inputs[outer:] if value in read
    )
    # What is stacked is written where it belongs, so that it needs no buffer of its own.
    carry = program.outputs[: params["num_carry"]]
    return slices + peak_bytes(Program(program.inputs, program.operations, carry), size_of=size_of)
