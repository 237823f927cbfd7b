"""What a schema file may hold: its fields, their types, and the JSON around them.

The format is that of canvas-engineering (CE) 0.5.0, `schema.py`, whose fields stand here in the
order in which it writes them. `metadata.roam` is this package's part of it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pathlib
import re
import reprlib
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import numpy as np

from roam_jax.canvas.fills import TemporalFill
from roam_jax.files import write_atomically
from roam_jax.spelling import did_you_mean

FORMAT_VERSION = "0.2.0"


@dataclasses.dataclass(frozen=True)
class Field:
    """What a field of a file may hold.

    Args:
        expected: the rule in words, for errors.
        accepts: the rule.
        required: whether a file must have the field.
    """

    expected: str
    accepts: Callable[[Any], bool]
    required: bool = False


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _are_integers(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_integer, value))


_INTEGER = Field("an integer", _is_integer)
_OFFSET = Field("an integer or null", lambda value: value is None or _is_integer(value))
_NUMBER = Field("a number", lambda value: _is_integer(value) or isinstance(value, float))
_BOOLEAN = Field("true or false", lambda value: isinstance(value, bool))
_TEXT = Field("text", lambda value: isinstance(value, str))
_KIND = Field("text or null", lambda value: value is None or isinstance(value, str))
_OBJECT = Field("an object", lambda value: isinstance(value, dict))
_LIST = Field("a list", lambda value: isinstance(value, list))
_SHAPE = Field("a list of integers", _are_integers)
_BOUNDS = Field(
    "six integers [t0, t1, h0, h1, w0, w1]", lambda value: _are_integers(value) and len(value) == 6
)
_PAIRS = Field(
    "a list of two integers for each pair of frames",
    lambda value: isinstance(value, list) and all(_are_integers(p) and len(p) == 2 for p in value),
)
_FILL = Field(f"one of {', '.join(TemporalFill)}", lambda value: value in [*TemporalFill])
# CE's fields that nothing here reads; they are kept as they stand.
_UNREAD = Field("anything", lambda value: True)


def _required(field: Field) -> Field:
    return dataclasses.replace(field, required=True)


FILE = {
    "schema_version": _TEXT,
    "layout": _required(_OBJECT),
    "regions": _required(_OBJECT),
    "topology": _LIST,
    "metadata": _OBJECT,
}
LAYOUT = {
    "T": _required(_INTEGER),
    "spatial_shape": _SHAPE,
    "d_model": _required(_INTEGER),
    "t_current": _INTEGER,
    # In the old form of the format, instead of spatial_shape.
    "H": _INTEGER,
    "W": _INTEGER,
}
REGION = {
    "bounds": _required(_BOUNDS),
    "period": _INTEGER,
    "is_output": _BOOLEAN,
    "loss_weight": _NUMBER,
    "semantic_type": _UNREAD,
    "semantic_embedding": _UNREAD,
    "embedding_model": _UNREAD,
    "default_attn": _TEXT,
    "carrier": _UNREAD,
}
EDGE = {
    "src": _required(_TEXT),
    "dst": _required(_TEXT),
    "weight": _NUMBER,
    "t_src": _OFFSET,
    "t_dst": _OFFSET,
    "fn": _KIND,
    "operator": _UNREAD,
    "write_mode": _UNREAD,
}
REGION_EXTRAS = tuple(name for name, field in REGION.items() if field is _UNREAD)
EDGE_EXTRAS = tuple(name for name, field in EDGE.items() if field is _UNREAD)

# metadata.roam: what CE's format has no place for. A note repeats what it was written for, the box
# of a region and all that tells an edge from others, so that a file in which another program has
# changed a box or moved an edge is refused, not misread.
NOTES = {"regions": _OBJECT, "topology": _LIST}
REGION_NOTE = {"length": _required(_INTEGER), "bounds": _required(_BOUNDS)}
EDGE_KEY = {
    "src": _required(_TEXT),
    "dst": _required(_TEXT),
    "weight": _NUMBER,
    "t_src": _OFFSET,
    "t_dst": _OFFSET,
    "fn": _KIND,
}
EDGE_TIMES = {"temporal_fill": _FILL, "interpolation_order": _INTEGER, "pairs": _PAIRS}
EDGE_NOTE = {"index": _required(_INTEGER)} | EDGE_KEY | EDGE_TIMES


@contextlib.contextmanager
def located(where: str) -> Iterator[None]:
    """ValueErrors inside begin with where they happened."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def require_version(version: Any) -> None:
    """Refuse what is no version, and each later major or minor one; a patch changes no meaning."""
    pattern = r"(\d+)\.(\d+)(?:\.\d+)?"
    numbers = re.fullmatch(pattern, version) if isinstance(version, str) else None
    if numbers is None:
        raise ValueError(f"schema_version {version!r}: expected text such as {FORMAT_VERSION!r}")
    newest = re.fullmatch(pattern, FORMAT_VERSION).groups()
    if [*map(int, numbers.groups())] > [*map(int, newest)]:
        raise ValueError(
            f"schema_version {version!r} is newer than this package reads: "
            f"expected {'.'.join(newest)} or older"
        )


def require_known(names: Collection[str], known: Collection[str], *, what: str = "field") -> None:
    """Refuse a name that is not among the known ones."""
    for name in names:
        if name not in known:
            raise ValueError(f"unknown {what} {name!r}: {did_you_mean(name, known)}")


def require_fields(data: Any, fields: Mapping[str, Field]) -> None:
    """Refuse all but an object of known fields of the right types, with every required one."""
    if not isinstance(data, dict):
        raise ValueError(f"{reprlib.repr(data)}: expected an object")
    require_known(data, fields)
    missing = [name for name, field in fields.items() if field.required and name not in data]
    if missing:
        raise ValueError(f"missing {', '.join(missing)}")
    for name, value in data.items():
        if not fields[name].accepts(value):
            raise ValueError(f"{name} {reprlib.repr(value)}: expected {fields[name].expected}")


def read_json(path: pathlib.Path) -> Any:
    """The values of a JSON file; what is no JSON is refused with its line and column."""
    text = path.read_bytes()
    with located("cannot be read as JSON"):
        return json.loads(text, object_pairs_hook=_object)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{name!r} is given twice")
    return dict(pairs)


def write_json(path: pathlib.Path, data: Any) -> None:
    """Replace a file as a whole: a reader, or a run after a crash, sees the old or the new one."""
    write_atomically(path, json.dumps(data, indent=2, default=_plain))


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{value!r} cannot be written: expected JSON values")
