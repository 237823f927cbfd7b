"""Files that are there whole or not at all."""

from __future__ import annotations

import os
import pathlib
import uuid


def write_atomically(path: pathlib.Path, content: str | bytes) -> None:
    """Replaces a file as a whole: a reader, or a run after a crash, sees the old or the new one.

    Several processes may write at once; the last one wins.
    """
    partial = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
    try:
        with partial.open("xb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
