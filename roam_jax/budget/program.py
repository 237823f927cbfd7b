"""A jaxpr as one list of operations, with what a compiler fuses told apart from what has a buffer.

Calls are written out, so that a value is followed through them. Elementwise operations are taken as
part of whoever reads them (XLA fuses them), reshapes and slices written in place as other names of
their operand; matrix products, convolutions, loops and branches read and write memory.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, jaxprs_in_params

from roam_jax.evaluate.flops import CALLS

# Of a `shard_map` the arrays within are those of one device.
WRITTEN_OUT = CALLS | {"shard_map"}
LOOPS = {"scan", "while", "cond"}
PRODUCTS = {"dot_general", "conv_general_dilated"}
# Results of these are in memory; of all else they are computed where they are read.
STORED = PRODUCTS | LOOPS | {"sort", "scatter", "scatter-add", "scatter_add", "top_k", "fft"}
# Other names of their first operand.
ALIASES = {
    "reshape",
    "squeeze",
    "expand_dims",
    "transpose",
    "name",
    "copy",
    "dynamic_update_slice",
}
# Small results of what they read in passing.
REDUCTIONS = ("reduce_", "argmax", "argmin", "cumsum", "cumprod", "cummax", "cumlogsumexp")


@dataclasses.dataclass(frozen=True, eq=False)
class Value:
    """An array of the program.

    Args:
        shape, itemsize: of it.
    """

    shape: tuple[int, ...]
    itemsize: int


@dataclasses.dataclass(frozen=True, eq=False)
class Operation:
    """One equation.

    Args:
        name: of its primitive.
        operands: as many as the equation has; None for literals.
        outputs: its results.
        eqn: the equation itself.
        scope: the "/"-joined name stack, calls around it included.
    """

    name: str
    operands: tuple[Value | None, ...]
    outputs: tuple[Value, ...]
    eqn: JaxprEqn
    scope: str

    @functools.cached_property
    def inputs(self) -> tuple[Value, ...]:
        """The operands that are no literals."""
        return tuple(value for value in self.operands if value is not None)

    @property
    def stores(self) -> bool:
        """Whether its results are in memory."""
        return self.name in STORED or self.name.startswith(REDUCTIONS)

    @property
    def reads_memory(self) -> bool:
        """Whether its operands must be in memory."""
        return self.name in STORED


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """Operations in order.

    Args:
        inputs: arguments and constants.
        operations: all of them, calls written out.
        outputs: what is returned; None for literals.
    """

    inputs: tuple[Value, ...]
    operations: tuple[Operation, ...]
    outputs: tuple[Value | None, ...]

    @functools.cached_property
    def roots(self) -> Mapping[Value, frozenset[Value]]:
        """Value -> the stored values and inputs that it is computed from in passing."""
        found = {value: frozenset([value]) for value in self.inputs}
        for op in self.operations:
            if op.stores:
                found |= {value: frozenset([value]) for value in op.outputs}
                continue
            read = op.inputs[:1] if op.name in ALIASES else op.inputs
            roots = frozenset().union(*(found.get(value, frozenset()) for value in read))
            for value in op.outputs:
                found[value] = frozenset([value]) if value in self.stored else roots
        return found

    @functools.cached_property
    def stored(self) -> frozenset[Value]:
        """Values with a buffer of their own, inputs left out."""
        makers = {value: op for op in self.operations for value in op.outputs}
        found = {value for op in self.operations if op.stores for value in op.outputs}
        needed = [value for op in self.operations if op.reads_memory for value in op.inputs]
        for value in [*needed, *filter(None, self.outputs)]:
            # Another name needs the buffer of what it names.
            while value in makers and makers[value].name in ALIASES:
                value = makers[value].inputs[0]
            if value in makers:
                found.add(value)
        return frozenset(found)


def read_program(jaxpr: ClosedJaxpr | Jaxpr, scope: str = "") -> Program:
    """Writes a jaxpr out.

    Args:
        jaxpr: from `jax.make_jaxpr`.
        scope: of what holds it.
    """
    if isinstance(jaxpr, ClosedJaxpr):
        jaxpr = jaxpr.jaxpr
    known: dict[Any, Value] = {}
    inputs = tuple(_new(var, known) for var in (*jaxpr.constvars, *jaxpr.invars))
    operations: list[Operation] = []
    _write_out(jaxpr, known, operations, scope)
    return Program(inputs, tuple(operations), _look_up(jaxpr.outvars, known))


def _write_out(
    jaxpr: Jaxpr, known: dict[Any, Value], operations: list[Operation], scope: str
) -> None:
    for eqn in jaxpr.eqns:
        name = eqn.primitive.name
        here = "/".join(part for part in (scope, str(eqn.source_info.name_stack)) if part)
        if name in WRITTEN_OUT:
            inner = next(iter(jaxprs_in_params(eqn.params)))
            inner = inner.jaxpr if isinstance(inner, ClosedJaxpr) else inner
            within = {var: _new(var, {}) for var in inner.constvars}
            given = _look_up(eqn.invars, known)
            for var, value in zip(
                inner.invars, given[len(given) - len(inner.invars) :], strict=True
            ):
                within[var] = _new(var, {}) if value is None else value
            _write_out(inner, within, operations, here)
            made = _look_up(inner.outvars, within)
            for var, value in zip(eqn.outvars, made, strict=True):
                known[var] = _new(var, {}) if value is None else value
            continue
        operands = _look_up(eqn.invars, known)
        outputs = tuple(_new(var, known) for var in eqn.outvars)
        operations.append(Operation(name, operands, outputs, eqn, here))


def _look_up(atoms: Iterable[Any], known: Mapping[Any, Value]) -> tuple[Value | None, ...]:
    return tuple(None if isinstance(atom, Literal) else known.get(atom) for atom in atoms)


def _new(var: Any, known: dict[Any, Value]) -> Value:
    known[var] = Value(tuple(getattr(var.aval, "shape", ())), _itemsize(var.aval))
    return known[var]


def _itemsize(aval: Any) -> int:
    dtype = getattr(aval, "dtype", None)
    if dtype is None or dtype == jax.dtypes.float0:
        return 0
    if jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key):
        return 8  # two words of threefry
    return np.dtype(dtype).itemsize


def inner_programs(op: Operation) -> Sequence[Program]:
    """Of a loop its body (and condition), of a branch all sides."""
    return [read_program(jaxpr, op.scope) for jaxpr in jaxprs_in_params(op.eqn.params)]
