"""What a folder of encoded windows holds and how: its description, its records, its file names.

    DIR/latents.json                            the description, written before the first shard
    DIR/latents-00000-of-00012.array_record     one record a window and copy
    DIR/complete.json                           sizes of all shards, once all of them are there

A record is the window's arrays one after another, in the order of the description. Actions and
states are stored in physical units, so that a cache knows no statistics: those of the run that
reads it are applied then.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import pathlib
import shlex
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from roam_jax.contracts import Batch

DESCRIPTION, COMPLETE = "latents.json", "complete.json"
# Part of the description: a change in what is stored must not meet older readers.
LAYOUT = 1
DTYPES = ("float32", "float16")
ABSENT = "(absent)"


@dataclasses.dataclass(frozen=True)
class Field:
    """One array of a record.

    Args:
        name: field of `Batch`.
        shape: without the batch axis.
        dtype: name of its type in the file.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


@dataclasses.dataclass(frozen=True)
class LatentLayout:
    """The description of a folder of encoded windows.

    Args:
        made_with: what the numbers depend on, by config key or in a word; JSON values.
        arithmetic: dtype and kind of device that encoded.
        windows: how many there are, without copies.
        stride: every n-th start of an episode is a window.
        copies: of each window, at least 1.
        drawn: whether copies are augmented, or have goals drawn at random.
        seed: what these draws derive from, with the window's index in its split and the number of
            the copy.
        shard_windows: windows of a shard, all copies of them.
        fields: of a record.
        own_text: bytes of an embedding that the dataset stores, 0 where texts come from a file.
            Shards then end with a record of their distinct ones.
        arguments: of the command that made it, without its folder and its part.
    """

    made_with: Mapping[str, Any]
    arithmetic: str
    windows: int
    stride: int
    copies: int
    drawn: bool
    seed: int
    shard_windows: int
    fields: tuple[Field, ...]
    own_text: int
    arguments: tuple[str, ...]

    @property
    def shards(self) -> int:
        """Number of shards."""
        return -(-self.windows // self.shard_windows)

    def shard_records(self, shard: int) -> int:
        """Records of a shard."""
        return len(self.shard_range(shard)) * self.copies + bool(self.own_text)

    @property
    def latent_fields(self) -> tuple[str, ...]:
        """Latents and log-variances of a record."""
        return tuple(field.name for field in self.fields if "_latent" in field.name)

    @property
    def record_bytes(self) -> int:
        """Size of one record."""
        return sum(field.nbytes for field in self.fields)

    @property
    def window_bytes(self) -> int:
        """Size of all copies of a window."""
        return self.copies * self.record_bytes

    def shard_name(self, shard: int) -> str:
        """File of a shard."""
        return f"latents-{shard:05}-of-{self.shards:05}.array_record"

    def shard_range(self, shard: int) -> range:
        """Windows of a shard, numbered within the cache."""
        first = shard * self.shard_windows
        return range(first, min(first + self.shard_windows, self.windows))

    def place(self, window: int, copy: int) -> tuple[int, int]:
        """(shard, record) of a copy of a window."""
        shard, row = divmod(window, self.shard_windows)
        return shard, row * self.copies + copy

    def pack(self, window: Batch) -> bytes:
        """One record.

        Raises:
            ValueError: an array of another shape than described.
        """
        parts = []
        for field in self.fields:
            array = np.asarray(window[field.name], field.dtype)
            if array.shape != field.shape:
                raise ValueError(f"{field.name} of shape {array.shape}, expected {field.shape}")
            parts.append(array.tobytes())
        return b"".join(parts)

    def unpack(self, record: bytes, wanted: Collection[str]) -> dict[str, np.ndarray]:
        """The wanted arrays of a record; floats are float32 whatever they are stored as.

        Raises:
            ValueError: the record has another size.
        """
        if len(record) != self.record_bytes:
            raise ValueError(f"a record of {len(record):,} bytes, expected {self.record_bytes:,}")
        found, offset = {}, 0
        for field in self.fields:
            if field.name in wanted:
                count = math.prod(field.shape)
                array = np.frombuffer(record, field.dtype, count, offset).reshape(field.shape)
                found[field.name] = array.astype(np.float32) if field.dtype == "float16" else array
            offset += field.nbytes
        return found

    def to_json(self) -> str:
        """One JSON object; `from_json` gives back the same layout."""
        return json.dumps({"layout": LAYOUT, **dataclasses.asdict(self)}, indent=1)

    @classmethod
    def from_json(cls, text: str | bytes) -> LatentLayout:
        """Reads what `to_json` wrote.

        Raises:
            ValueError: not JSON, or other entries than expected.
        """
        values = json.loads(text)
        expected = {"layout", *(field.name for field in dataclasses.fields(cls))}
        if not isinstance(values, dict) or set(values) != expected:
            raise ValueError(f"expected a JSON object with {sorted(expected)}")
        if (layout := values.pop("layout")) != LAYOUT:
            raise ValueError(f"layout {layout}, expected {LAYOUT}: encode again")
        fields = tuple(
            Field(f["name"], tuple(f["shape"]), f["dtype"]) for f in values.pop("fields")
        )
        return cls(**values | {"fields": fields, "arguments": tuple(values["arguments"])})

    @property
    def fingerprint(self) -> str:
        """Hash of all that the numbers of a window and their order depend on."""
        about = dataclasses.asdict(self) | {"arguments": (), "shard_windows": 0}
        return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()

    def command(self, folder: pathlib.Path) -> str:
        """What fills the folder."""
        arguments = shlex.join([*self.arguments, "--out", str(folder)])
        return f"python -m roam_jax encode {arguments}"


def read_layout(folder: pathlib.Path, *, key: str) -> LatentLayout:
    """The description of a folder of encoded windows.

    Args:
        folder: that holds `DESCRIPTION`.
        key: what named it, for messages.

    Raises:
        FileNotFoundError: nothing was encoded there.
        ValueError: the description is damaged, or of another version.
    """
    path = folder / DESCRIPTION
    if not path.is_file():
        below = sorted(found.parent.name for found in folder.glob(f"*/{DESCRIPTION}"))
        hint = f"; it holds {', '.join(below)}, of a mixture" if below else ""
        raise FileNotFoundError(
            f"{key} = {folder}: no {DESCRIPTION} there{hint}; expected a folder that `python -m "
            "roam_jax encode` filled"
        )
    try:
        return LatentLayout.from_json(path.read_bytes())
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: damaged or of another version ({error})") from error


def read_sizes(folder: pathlib.Path, layout: LatentLayout) -> dict[str, int]:
    """Bytes of each shard by name, of a folder that is complete.

    Raises:
        FileNotFoundError: the folder is not complete.
        ValueError: the file is damaged.
    """
    path = folder / COMPLETE
    try:
        sizes = json.loads(path.read_bytes())["shards"]
        return {name: int(sizes[name]) for name in map(layout.shard_name, range(layout.shards))}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: damaged ({error!r}), expected the size of each of {layout.shards} shards; "
            f"this makes it again: {layout.command(folder)}"
        ) from error


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """ "key: X there, Y here" for every entry that is not the same, JSON-wise, in both."""
    there, here = (json.loads(json.dumps(dict(values))) for values in (there, here))
    names: Sequence[str] = list(dict.fromkeys([*there, *here]))
    return [
        f"{name}: {there.get(name, ABSENT)} there, {here.get(name, ABSENT)} here"
        for name in names
        if there.get(name, ABSENT) != here.get(name, ABSENT)
    ]
