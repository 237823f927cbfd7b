"""What a compiled step sends between devices, read from the text of its program.

Every collective is found with the bytes that a device brings to it, how often it runs (loops have
known trip counts), and which axes of the mesh its groups lie along. Bytes sent are those of a ring:
of an all-gather a device passes on what each of the others brought, of an all-reduce it sends its
own twice, less a share.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

ITEMSIZE = {
    "pred": 1,
    "s8": 1,
    "u8": 1,
    "s16": 2,
    "u16": 2,
    "f16": 2,
    "bf16": 2,
    "s32": 4,
    "u32": 4,
    "f32": 4,
    "s64": 8,
    "u64": 8,
    "f64": 8,
    "c64": 8,
}
OPERATIONS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
# Bytes that a device of n sends, in multiples of what it brings.
SENT = {
    "all-gather": lambda n: n - 1,
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "reduce-scatter": lambda n: (n - 1) / n,
    "all-to-all": lambda n: (n - 1) / n,
    "collective-permute": lambda n: 1,
}
UNKNOWN = "other groups"

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
_SHAPE = re.compile(r"([a-z]\w*)\[([\d,]*)\]")
_OPCODE = re.compile(r"(?:^|[\]\}\)]) ([a-z][\w\-]*)\(([^)]*)\)")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition|\w+_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'known_trip_count":\{"n":"(\d+)"')
_LISTED = re.compile(r"replica_groups=\{(\{[\d,\{\} ]*\})\}")
_IOTA = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_BY_AXES = re.compile(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}")
_PAIRS = re.compile(r"source_target_pairs=\{(\{[\d,\{\} ]*\})\}")
_SCOPE = re.compile(r'op_name="([^"]*)"')


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective operation of a step.

    Args:
        operation: one of `OPERATIONS`.
        axes: mesh axes that its groups lie along, or (`UNKNOWN`,).
        group: devices of a group.
        bytes: that a device brings to it once.
        times: that it runs in a step.
        across: whether a group has devices of several nodes.
        scope: where the model asks for it, JAX's name stack.
    """

    operation: str
    axes: tuple[str, ...]
    group: int
    bytes: int
    times: int
    across: bool
    scope: str

    @property
    def sent(self) -> float:
        """Bytes that a device sends in a step."""
        return self.times * self.bytes * SENT[self.operation](self.group)


def read_collectives(
    text: str, mesh_shape: Mapping[str, int], *, per_node: int
) -> list[Collective]:
    """All collectives of a compiled program.

    Args:
        text: `Compiled.as_text()`.
        mesh_shape: devices along each axis, in the order of the mesh.
        per_node: devices of a node, neighbours in the mesh's order.
    """
    computations, entry = _computations(text)
    times = _times(computations, entry)
    found = []
    for name, lines in computations.items():
        if not times[name]:
            continue
        sizes = {own: _bytes(rest) for own, rest in lines.items()}
        for rest in lines.values():
            if (collective := _collective(rest, sizes, mesh_shape, per_node)) is not None:
                found.append(dataclasses.replace(collective, times=times[name]))
    return found


def _computations(text: str) -> tuple[dict[str, dict[str, str]], str]:
    """Computation -> instruction -> what stands right of its name; and the entry's name."""
    found: dict[str, dict[str, str]] = {}
    entry, here = "", None
    for line in text.splitlines():
        if match := _COMPUTATION.match(line):
            here = found.setdefault(match[2], {})
            entry = match[2] if match[1] else entry
        elif here is not None and (match := _INSTRUCTION.match(line)):
            here[match[1]] = match[2]
    return found, entry


def _times(computations: Mapping[str, Mapping[str, str]], entry: str) -> collections.Counter[str]:
    """How often each computation runs in one call of the entry."""
    calls = {name: _calls(lines.values()) for name, lines in computations.items()}
    after: dict[str, None] = {}  # callees before their callers

    def visit(name: str) -> None:
        for callee, _ in calls.get(name, ()):
            if callee not in after:
                visit(callee)
        after[name] = None

    visit(entry)
    times: collections.Counter[str] = collections.Counter({entry: 1})
    for name in reversed(after):
        for callee, trips in calls.get(name, ()):
            times[callee] += times[name] * trips
    return times


def _calls(instructions: Iterable[str]) -> list[tuple[str, int]]:
    """What a computation calls, and how often each time; of a branch, all sides."""
    found = []
    for rest in instructions:
        trips = int(match[1]) if (match := _TRIPS.search(rest)) else 1
        called = _CALLED.findall(rest)
        for branches in _BRANCHES.findall(rest):
            called += [each.strip().lstrip("%") for each in branches.split(",")]
        found += [(callee, trips) for callee in called]
    return found


def _collective(
    rest: str, sizes: Mapping[str, int], mesh_shape: Mapping[str, int], per_node: int
) -> Collective | None:
    match = _OPCODE.search(rest)
    operation = match[1].removesuffix("-start") if match else ""
    if operation not in OPERATIONS:
        return None
    operands = [name.strip().split(" ")[-1].lstrip("%") for name in match[2].split(",")]
    groups = _groups(rest, math.prod(mesh_shape.values()))
    if max(map(len, groups)) == 1:  # nothing leaves a device
        return None
    nodes = [{device // per_node for device in group} for group in groups]
    scope = _SCOPE.search(rest)
    return Collective(
        operation=operation,
        axes=_axes(groups, mesh_shape),
        group=max(map(len, groups)),
        bytes=sum(sizes.get(name, 0) for name in operands),
        times=1,
        across=any(len(each) > 1 for each in nodes),
        scope=scope[1] if scope else "",
    )


def _bytes(rest: str) -> int:
    """Bytes of an instruction's result, of all parts of a tuple together."""
    end = match.start(1) if (match := _OPCODE.search(rest)) else len(rest)
    return sum(
        ITEMSIZE.get(dtype, 0) * math.prod(int(n) for n in dims.split(",") if n)
        for dtype, dims in _SHAPE.findall(rest[:end])
    )


def _groups(rest: str, devices: int) -> list[tuple[int, ...]]:
    """Devices that a collective joins; pairs of a permutation are chains."""
    if match := _LISTED.search(rest):
        return [tuple(map(int, each.split(","))) for each in re.findall(r"\{([\d, ]+)\}", match[1])]
    if match := _IOTA.search(rest):
        shape, dims = (tuple(map(int, match[i].split(","))) for i in (1, 2))
        ids = np.arange(math.prod(dims)).reshape(dims)
        if match[3]:
            ids = ids.transpose(tuple(map(int, match[3].split(","))))
        return [tuple(row) for row in ids.reshape(shape).tolist()]
    if match := _BY_AXES.search(rest):
        dims = [(n, int(size)) for n, size in re.findall(r"'([^']+)'=(\d+)", match[1])]
        chosen = re.findall(r"'([^']+)'", match[2])
        names, sizes = [n for n, _ in dims], [size for _, size in dims]
        ids = np.arange(math.prod(sizes)).reshape(sizes)
        places = [names.index(n) for n in chosen]
        return _rows(np.moveaxis(ids, places, range(-len(places), 0)), len(places))
    if match := _PAIRS.search(rest):
        pairs = re.findall(r"\{(\d+),(\d+)\}", match[1])
        return [tuple(sorted({int(a), int(b)})) for a, b in pairs if a != b] or [(0,)]
    return [tuple(range(devices))]


def _rows(ids: np.ndarray, axes: int) -> list[tuple[int, ...]]:
    """Groups along the last axes."""
    size = math.prod(ids.shape[-axes:]) if axes else 1
    return [tuple(row) for row in ids.reshape(-1, size).tolist()]


def _axes(groups: Sequence[Sequence[int]], mesh_shape: Mapping[str, int]) -> tuple[str, ...]:
    """The fewest mesh axes along which all members of each group differ."""
    for chosen in _subsets(mesh_shape):
        along = {frozenset(group) for group in groups_along(mesh_shape, chosen)}
        if {frozenset(group) for group in groups} == along:
            return chosen
    for chosen in _subsets(mesh_shape):  # parts of such groups, as pairs of a permutation are
        along = groups_along(mesh_shape, chosen)
        home = {device: number for number, group in enumerate(along) for device in group}
        if all(len({home[device] for device in group}) == 1 for group in groups):
            return chosen
    return (UNKNOWN,)


def _subsets(mesh_shape: Mapping[str, int]) -> Iterator[tuple[str, ...]]:
    wide = [axis for axis, size in mesh_shape.items() if size > 1]
    for count in range(1, len(wide) + 1):
        yield from itertools.combinations(wide, count)


def groups_along(mesh_shape: Mapping[str, int], axes: Sequence[str]) -> list[tuple[int, ...]]:
    """Devices that differ in these axes alone, group by group.

    Args:
        mesh_shape: devices along each axis.
        axes: some of them.
    """
    ids = np.arange(math.prod(mesh_shape.values())).reshape(tuple(mesh_shape.values()))
    places = [list(mesh_shape).index(axis) for axis in axes]
    return _rows(np.moveaxis(ids, places, range(-len(places), 0)), len(places))
