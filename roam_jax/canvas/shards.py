"""The cells of a sequence split over devices: who holds which, and whose keys each must be sent.

A sequence is one stream or several one after another, such as text and video. Every stream is split
evenly by itself, with cells that carry nothing at its end where it does not divide, so that a
device can join its own parts of all streams without a word to the others. A device computes the
queries that it holds; which keys these read is known from the plan, so that no others travel.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping

import numpy as np

from roam_jax.canvas.plan import AttentionPlan, chosen_stacks
from roam_jax.canvas.segments import SegmentTable

# Stands for a cell that carries nothing.
EMPTY = -1
# From this share of all keys on, one gather of all is better than a message to each device.
GATHER_SHARE = 0.9
# Messages that are sent together are as long as the longest; shorter ones than this share of it
# are sent apart.
LIKE_LENGTH = 0.75


@dataclasses.dataclass(frozen=True)
class CellSplit:
    """Streams of a sequence over so many devices.

    Args:
        lengths: cells of each stream.
        shards: devices.

    Raises:
        ValueError: a number below 1.
    """

    lengths: tuple[int, ...]
    shards: int

    def __post_init__(self):
        if min(*self.lengths, self.shards) < 1:
            raise ValueError(
                f"streams of {self.lengths} cells over {self.shards} devices: expected 1 or more"
            )

    @property
    def padded(self) -> tuple[int, ...]:
        """Cells of each stream with those that carry nothing."""
        return tuple(-(-length // self.shards) * self.shards for length in self.lengths)

    @functools.cached_property
    def places(self) -> np.ndarray:
        """(shards, cells of a device) int32, where each cell stands in the sequence, or `EMPTY`."""
        parts, first = [], 0
        for length, padded in zip(self.lengths, self.padded, strict=True):
            numbers = np.full(padded, EMPTY, np.int32)
            numbers[:length] = np.arange(first, first + length)
            parts.append(numbers.reshape(self.shards, -1))
            first += length
        return np.concatenate(parts, axis=1)

    def spread(self, values: np.ndarray) -> np.ndarray:
        """Values (N, ...) of the cells of a sequence, device after device; 0 of empty cells."""
        places = self.places.reshape(-1)
        empty = (places == EMPTY).reshape(-1, *[1] * (values.ndim - 1))
        return np.where(empty, np.zeros((), values.dtype), values[places])

    def padded_stream(self, values: np.ndarray, stream: int) -> np.ndarray:
        """Values (N, ...) of the cells of one stream, 0 of the empty ones at its end."""
        more = self.padded[stream] - self.lengths[stream]
        return np.pad(values, [(0, more)] + [(0, 0)] * (values.ndim - 1))


@dataclasses.dataclass(frozen=True, eq=False)
class Message:
    """Keys that some devices send to the ones so much further on, at the same time.

    Args:
        pairs: (from, to).
        cells: (shards, length) int32, places among a device's own cells of what it sends, again
            from the first up to the length of the longest; 0 where it sends nothing.
    """

    pairs: tuple[tuple[int, int], ...]
    cells: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class KeyExchange:
    """What every device is sent, and what its queries then run on.

    Args:
        messages: one after the other; None = every device is sent all keys, in the order of the
            devices.
        keys: of each device, (M,) int32 places of the keys that it reads, in the order of the
            sequence, among its own and then those of each message; or among all.
        plans: of each device, its queries over those keys; an empty query is one like another that
            the device has.
        traffic: (shards,) key cells that each device is sent.
    """

    messages: tuple[Message, ...] | None
    keys: tuple[np.ndarray, ...]
    plans: tuple[AttentionPlan, ...]
    traffic: np.ndarray


@functools.lru_cache(maxsize=64)
def key_exchange(plan: AttentionPlan, split: CellSplit) -> KeyExchange:
    """Plans a sequence that is split over devices.

    Args:
        plan: of the whole sequence, queries and keys alike.
        split: of the sequence.

    Raises:
        ValueError: the plan is for another number of cells, or has edges of other kinds than
            softmax, whose sums go over all cells.
    """
    _check(plan, split)
    needed = [_needed(plan.table, split, shard) for shard in range(split.shards)]
    owners, locals_ = _owners(split)
    shards, own = split.places.shape
    messages = _messages(needed, owners, locals_, shards)
    sent = sum(len(m.pairs) * m.cells.shape[1] for m in messages)
    if sent >= GATHER_SHARE * shards * (shards - 1) * own and messages:
        places = owners * own + locals_
        keys = tuple(places[cells].astype(np.int32) for cells in needed)
        traffic = np.full(shards, (shards - 1) * own)
        return KeyExchange(None, keys, _plans(plan, split, needed), traffic)
    keys = tuple(
        _received(cells, shard, owners, locals_, messages, own)
        for shard, cells in enumerate(needed)
    )
    traffic = np.zeros(shards, int)
    for message in messages:
        for _, receiver in message.pairs:
            traffic[receiver] += message.cells.shape[1]
    return KeyExchange(messages, keys, _plans(plan, split, needed), traffic)


def sequence_traffic(plan: AttentionPlan, split: CellSplit) -> np.ndarray:
    """(shards,) key cells that each device is sent for one attention; as many values travel.

    Args:
        plan: of the whole sequence.
        split: of the sequence.

    Raises:
        ValueError: as `key_exchange`.
    """
    return key_exchange(plan, split).traffic


@functools.lru_cache(maxsize=8)
def free_plan(cells: int) -> AttentionPlan:
    """Of so many cells that all read each other."""
    table = SegmentTable(np.zeros(cells, np.int32), np.zeros((1, 1), np.float32))
    return AttentionPlan(table, chosen_stacks(table), (), np.ones((1, 1)), ((0,),))


def _check(plan: AttentionPlan, split: CellSplit) -> None:
    cells = sum(split.lengths)
    if (plan.query_cells, plan.key_cells) != (cells, cells):
        raise ValueError(
            f"streams of {split.lengths} cells over {split.shards} devices: the plan has "
            f"{plan.query_cells} queries and {plan.key_cells} keys, expected {cells} of both"
        )
    if plan.edges:
        kinds = ", ".join(sorted({f"{e.src} -> {e.dst}: {e.kind}" for e in plan.edges}))
        raise ValueError(
            f"mesh.sequence = {split.shards} with edges of other kinds than softmax ({kinds}): "
            "their sums go over all cells; expected softmax edges, or mesh.sequence = 1"
        )


def _segments_of(table: SegmentTable, split: CellSplit, shard: int) -> np.ndarray:
    """Segments of a device's queries; an empty one has that of the cell before it."""
    places = split.places[shard]
    real = np.flatnonzero(places != EMPTY)
    if not real.size:
        # A device without cells computes some others' for nothing: all run the same program.
        return np.full(len(places), table.query_segments[0])
    before = np.searchsorted(real, np.arange(len(places)), side="right") - 1
    return table.query_segments[places[real[np.maximum(before, 0)]]]


def _needed(table: SegmentTable, split: CellSplit, shard: int) -> np.ndarray:
    """Places in the sequence of the keys that a device's queries read, rising."""
    segments = np.unique(_segments_of(table, split, shard))
    read = np.isfinite(table.log_weight[segments]).any(axis=0)
    found = np.flatnonzero(read[table.segments])
    # Attention over no keys at all has no shape; over one that is hidden it gives 0.
    return found if found.size else np.zeros(1, int)


def _owners(split: CellSplit) -> tuple[np.ndarray, np.ndarray]:
    """Device of each cell of the sequence, and its place there."""
    cells = sum(split.lengths)
    owners, places = np.zeros(cells, int), np.zeros(cells, int)
    for shard, numbers in enumerate(split.places):
        here = np.flatnonzero(numbers != EMPTY)
        owners[numbers[here]], places[numbers[here]] = shard, here
    return owners, places


def _messages(
    needed: list[np.ndarray], owners: np.ndarray, places: np.ndarray, shards: int
) -> tuple[Message, ...]:
    """Of each distance between devices at which anything is sent, those of like length together."""
    found = []
    for distance in range(1, shards):
        sent = {}
        for sender in range(shards):
            receiver = (sender + distance) % shards
            cells = needed[receiver]
            own = places[cells[owners[cells] == sender]]
            if own.size:
                sent[sender, receiver] = own
        for pairs in _alike({pair: len(own) for pair, own in sent.items()}):
            longest = max(len(sent[pair]) for pair in pairs)
            cells = np.zeros((shards, longest), np.int32)
            for pair in pairs:
                cells[pair[0]] = np.resize(sent[pair], longest)
            found.append(Message(tuple(sorted(pairs)), cells))
    return tuple(found)


def _alike(sizes: Mapping[tuple[int, int], int]) -> list[list[tuple[int, int]]]:
    """Pairs of devices by what they send, none much less than the longest beside it."""
    found: list[list[tuple[int, int]]] = []
    for pair in sorted(sizes, key=lambda pair: -sizes[pair]):
        if found and sizes[pair] >= LIKE_LENGTH * sizes[found[-1][0]]:
            found[-1].append(pair)
        else:
            found.append([pair])
    return found


def _received(
    cells: np.ndarray,
    shard: int,
    owners: np.ndarray,
    places: np.ndarray,
    messages: tuple[Message, ...],
    own: int,
) -> np.ndarray:
    """Where the keys of a device lie behind its own cells and those of the messages."""
    found = np.full(len(cells), EMPTY)
    here = owners[cells] == shard
    found[here] = places[cells[here]]
    first = own
    for message in messages:
        for sender, receiver in message.pairs:
            if receiver == shard:
                sent = np.flatnonzero(owners[cells] == sender)
                found[sent] = first + np.arange(sent.size)
        first += message.cells.shape[1]
    return found.astype(np.int32)


def _plans(
    plan: AttentionPlan, split: CellSplit, needed: list[np.ndarray]
) -> tuple[AttentionPlan, ...]:
    """Of the queries of each device over the keys that they read; equal ones are one object."""
    known: dict[SegmentTable, AttentionPlan] = {}
    found = []
    for shard, cells in enumerate(needed):
        segments = _segments_of(plan.table, split, shard)
        table = _merged(plan.table.log_weight, segments, plan.table.segments[cells], plan.orders)
        if table not in known:
            known[table] = AttentionPlan(table, chosen_stacks(table), (), np.ones((1, 1)))
        found.append(known[table])
    return tuple(found)


def _merged(
    log_weight: np.ndarray,
    queries: np.ndarray,
    keys: np.ndarray,
    orders: tuple[tuple[int, ...], ...],
) -> SegmentTable:
    """The table of some cells, with segments that these cannot tell apart as one.

    Devices that hold different frames but read alike then have equal plans, which are compiled
    once.

    Args:
        log_weight: between all segments.
        queries, keys: segments of the cells.
        orders: of the segments; the new ones are numbered along the first, if any.
    """
    rank = np.arange(len(log_weight))
    if orders:
        rank[list(orders[0])] = np.arange(len(rank))
    rows, columns = (np.array(sorted(set(x.tolist()), key=rank.item)) for x in (queries, keys))
    weight = log_weight[np.ix_(rows, columns)]
    of_row, first_rows = _alike_rows(weight)
    of_column, first_columns = _alike_rows(weight.T)
    count = len(first_rows) + len(first_columns)
    merged = np.full((count, count), -np.inf, np.float32)
    merged[: len(first_rows), len(first_rows) :] = weight[np.ix_(first_rows, first_columns)]
    numbers = np.zeros((2, len(log_weight)), np.int32)
    numbers[0, rows], numbers[1, columns] = of_row, len(first_rows) + of_column
    return SegmentTable(numbers[1, keys], merged, numbers[0, queries])


def _alike_rows(values: np.ndarray) -> tuple[np.ndarray, list[int]]:
    """The class of each row, equal rows in one, by first appearance; and the first of each."""
    classes: dict[bytes, int] = {}
    of_row = [classes.setdefault(row.tobytes(), len(classes)) for row in values]
    return np.array(of_row, np.int32), [of_row.index(number) for number in range(len(classes))]
