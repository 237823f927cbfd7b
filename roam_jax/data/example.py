"""Reads `tf.train.Example` messages in place, touching only the features that are asked for.

An Example is a protobuf map from names to lists of bytes, floats or integers. Walking its wire
format by hand skips a whole camera in one step and never builds Python floats; the same walk over
a memory-mapped file reads only the pages that it needs.
Wire format: protobuf.dev/programming-guides/encoding; the messages: tensorflow's example.proto.
"""

from __future__ import annotations

import contextlib
import itertools
import mmap
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

Buffer = bytes | mmap.mmap
Span = tuple[int, int]


class Message(NamedTuple):
    """Where a serialized message lies; a memory map stays open only as long as its owner has it."""

    buffer: Buffer
    start: int
    stop: int


VARINT, FIXED64, LENGTH_DELIMITED, FIXED32 = 0, 1, 2, 5
BYTES_LIST, FLOAT_LIST, INT64_LIST = 1, 2, 3


class Example:
    """The features of one serialized Example.

    Args:
        buffer: holds the message; a memory map stays mapped only as long as its owner keeps it.
        start, stop: where the message lies in it.

    Raises:
        ValueError: the bytes are not an Example.
    """

    def __init__(self, buffer: Buffer, start: int = 0, stop: int | None = None):
        self._buffer = buffer
        self._features: dict[str, tuple[int, Span]] = {}
        stop = len(buffer) if stop is None else stop
        for features in _messages(buffer, (start, stop)):
            for entry in _messages(buffer, features):
                self._add(entry)

    def __contains__(self, name: str) -> bool:
        return name in self._features

    def _add(self, entry: Span) -> None:
        """Notes where the list of one map entry lies."""
        parts = {number: span for number, _, span in _fields(self._buffer, entry)}
        if set(parts) != {1, 2}:
            raise ValueError(f"malformed map entry at byte {entry[0]} of the message")
        name = bytes(self._buffer[slice(*parts[1])]).decode()
        # A feature without a list is how an empty one may be written.
        kind, span = 0, (0, 0)
        for kind, _, span in _fields(self._buffer, parts[2]):  # noqa: B007 - the last one counts
            pass
        self._features[name] = kind, span

    def _list(self, name: str, kind: int) -> Span:
        if name not in self._features:
            raise ValueError(f"no feature {name!r}; the record holds {sorted(self._features)}")
        found, span = self._features[name]
        if found not in (0, kind):
            raise ValueError(f"feature {name!r} is of kind {found}, expected {kind}")
        return span

    def byte_strings(self, name: str, limit: int | None = None) -> list[bytes]:
        """Values of a bytes feature, at most `limit` of them from the first."""
        spans = itertools.islice(self._byte_spans(name), limit)
        return [bytes(self._buffer[start:stop]) for start, stop in spans]

    def byte_views(self, name: str) -> list[memoryview]:
        """Values of a bytes feature without copying them; they keep the whole buffer alive."""
        view = memoryview(self._buffer)
        return [view[start:stop] for start, stop in self._byte_spans(name)]

    def _byte_spans(self, name: str) -> Iterator[Span]:
        return (span for _, _, span in _fields(self._buffer, self._list(name, BYTES_LIST)))

    def number_count(self, name: str) -> int:
        """How many values `numbers` gives; floats are counted without reading them."""
        if self._features.get(name, (0, None))[0] == INT64_LIST:
            return len(self.integers(name))
        spans = (span for _, _, span in _fields(self._buffer, self._list(name, FLOAT_LIST)))
        return sum(stop - start for start, stop in spans) // 4

    def first(self, name: str) -> str | int | None:
        """The first value of a text or integer feature; None where it has no value."""
        if self._features.get(name, (0, None))[0] == INT64_LIST:
            return next(iter(self.integers(name)), None)
        return next((text.decode() for text in self.byte_strings(name, 1)), None)

    def numbers(self, name: str) -> np.ndarray:
        """Values of a float, integer or boolean feature, flat float32."""
        if self._features.get(name, (0, None))[0] == INT64_LIST:
            return np.array(self.integers(name), np.float32)
        return self.floats(name)

    def floats(self, name: str) -> np.ndarray:
        """Values of a float feature, flat float32."""
        # Packed or not, every field is a run of little-endian floats.
        runs = [
            self._buffer[start:stop]
            for _, _, (start, stop) in _fields(self._buffer, self._list(name, FLOAT_LIST))
        ]
        return np.frombuffer(b"".join(runs), "<f4")

    def integers(self, name: str) -> list[int]:
        """Values of an integer feature."""
        values = []
        for _, wire, (start, stop) in _fields(self._buffer, self._list(name, INT64_LIST)):
            while start < stop:
                value, start = _varint(self._buffer, start)
                values.append(value - (1 << 64) if value >> 63 else value)
                if wire == VARINT:
                    break
        return values


def feature_ends(message: Message) -> Iterator[int]:
    """Bytes at which the features of an Example end, found without looking into them.

    Ends early where the bytes are no Example.
    """
    buffer, start, stop = message
    with contextlib.suppress(ValueError):
        for features in _messages(buffer, (start, stop)):
            for _, end in _messages(buffer, features):
                yield end


def _varint(buffer: Buffer, position: int) -> tuple[int, int]:
    """(value, position after it) of a base-128 integer."""
    value = shift = 0
    while True:
        byte = buffer[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
        if shift > 63:
            raise ValueError(f"malformed integer before byte {position} of the message")


def _fields(buffer: Buffer, span: Span) -> Iterator[tuple[int, int, Span]]:
    """(field number, wire type, span of the value) of each field of a message."""
    position, end = span
    while position < end:
        try:
            # Numbers below 128 are one byte; most are, and a call for each would double the time.
            tag, position = buffer[position], position + 1
            if tag > 0x7F:
                tag, position = _varint(buffer, position - 1)
            start, wire = position, tag & 7
            if wire == LENGTH_DELIMITED:
                size, start = buffer[position], position + 1
                if size > 0x7F:
                    size, start = _varint(buffer, position)
                position = start + size
            elif wire == VARINT:
                _, position = _varint(buffer, position)
            elif wire == FIXED32:
                position += 4
            elif wire == FIXED64:
                position += 8
            else:
                raise ValueError(f"unknown wire type {wire} before byte {position} of the message")
        except IndexError:
            position = end + 1
        if position > end:
            raise ValueError(f"a field runs past byte {end} of the message")
        yield tag >> 3, wire, (start, position)


def _messages(buffer: Buffer, span: Span) -> Iterator[Span]:
    """Spans of the nested messages in field 1; any other field means that this is no Example."""
    for number, wire, value in _fields(buffer, span):
        if (number, wire) != (1, LENGTH_DELIMITED):
            raise ValueError(f"unexpected field {number} at byte {value[0]} of the message")
        yield value
