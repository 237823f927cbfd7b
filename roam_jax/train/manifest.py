"""Size and checksum of every file of a checkpoint, in a file beside them.

The manifest is written last, before the folder gets its name, so what is in a named folder and does
not match its manifest was damaged later. CRC-32 finds every error of up to 32 bits in a row and all
but one in 2**32 of the others; at 2 GB a second and core it costs less than reading the files.
"""

from __future__ import annotations

import concurrent.futures
import json
import os
import pathlib
import time
import zlib
from collections.abc import Mapping
from typing import Any

from roam_jax.files import write_atomically

FILE = "MANIFEST.json"
CHUNK = 1 << 22
# More readers than that win nothing on one disk; each holds one chunk.
READERS = 8


def write(folder: pathlib.Path, *, metrics: Mapping[str, float | None]) -> None:
    """Writes the manifest of all files that are in the folder, each of them forced to the disk.

    Args:
        folder: of one checkpoint, with nothing still being written.
        metrics: numbers that the step is known by, kept beside the files.

    Raises:
        OSError: the disk is full, or a file cannot be read.
    """
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != FILE)
    with concurrent.futures.ThreadPoolExecutor(READERS) as readers:
        sums = readers.map(_forced_sum, paths)
        files = {
            path.relative_to(folder).as_posix(): found
            for path, found in zip(paths, sums, strict=True)
        }
    body = {"saved_at": time.time(), "metrics": dict(metrics), "files": files}
    write_atomically(folder / FILE, json.dumps({"crc32": _crc(body), **body}, indent=1) + "\n")


def read(folder: pathlib.Path) -> dict[str, Any]:
    """{"saved_at": seconds since 1970, "metrics": ..., "files": {name: [bytes, CRC-32]}}.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is not what `write` has written.
    """
    try:
        body = json.loads((folder / FILE).read_text(encoding="utf-8"))
        if body.pop("crc32") == _crc(body):
            return body
    except (ValueError, KeyError, AttributeError, TypeError):  # no UTF-8, no JSON, no object
        pass
    raise ValueError(f"{FILE} is damaged")


def first_fault(folder: pathlib.Path) -> str:
    """What is wrong with the first file that does not match the manifest; "" = all match.

    Args:
        folder: of one checkpoint, with a manifest.
    """
    try:
        files = read(folder)["files"]
    except (OSError, ValueError) as error:
        return str(error)
    with concurrent.futures.ThreadPoolExecutor(READERS) as readers:
        faults = readers.map(lambda name: _fault(folder / name, name, *files[name]), files)
        return next(filter(None, faults), "")


def _fault(path: pathlib.Path, name: str, size: int, crc: int) -> str:
    """Why a file is not what was written; "" = it is."""
    try:
        have = path.stat().st_size
        if have != size:
            return f"{name} has {have} bytes, expected {size}"
        found = _sum(path)[1]
    except FileNotFoundError:
        return f"{name} is missing"
    except OSError as error:
        return f"{name} cannot be read ({error.strerror})"
    return "" if found == crc else f"{name} has CRC-32 {found:08x}, expected {crc:08x}"


def _forced_sum(path: pathlib.Path) -> tuple[int, int]:
    """Size and CRC-32 of a file, which is on the disk and not only in memory afterwards."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return _sum(path)


def _sum(path: pathlib.Path) -> tuple[int, int]:
    """Size and CRC-32 of a file."""
    size, crc = 0, 0
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(CHUNK):
            size, crc = size + len(chunk), zlib.crc32(chunk, crc)
    return size, crc


def _crc(body: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(body, sort_keys=True).encode())
