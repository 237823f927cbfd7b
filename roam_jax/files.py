"""Files that are there whole or not at all."""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
import uuid
from collections.abc import Iterator


def write_once(path: pathlib.Path, content: str | bytes) -> None:
    """Writes a file as a whole unless it is there already: of several processes the first wins."""
    with _written(path, content) as partial, contextlib.suppress(FileExistsError):
        os.link(partial, path)


def write_atomically(path: pathlib.Path, content: str | bytes) -> None:
    """Replaces a file as a whole: a reader, or a run after a crash, sees the old or the new one.

    Several processes may write at once; the last one wins.
    """
    with _written(path, content) as partial:
        os.replace(partial, path)


@contextlib.contextmanager
def named_errors(path: pathlib.Path) -> Iterator[None]:
    """Errors of writing to an open file, such as that of a full disk, name the file."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def free_bytes(path: pathlib.Path) -> int:
    """Bytes that are free where `path` is, or would be."""
    folder = path.absolute()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def sync_folder(path: pathlib.Path) -> None:
    """Forces the names in a folder to the disk: what was renamed there keeps its name."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _written(path: pathlib.Path, content: str | bytes) -> Iterator[pathlib.Path]:
    """A hidden file beside `path` with the content, on disk; removed unless it was moved."""
    partial = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
    try:
        with partial.open("xb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        yield partial
    finally:
        partial.unlink(missing_ok=True)
