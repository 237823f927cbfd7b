"""Files that are there whole or not at all."""

from __future__ import annotations

import os
import pathlib
import tempfile


def write_atomically(path: pathlib.Path, text: str) -> None:
    """Replaces a file as a whole: a reader, or a run after a crash, sees the old or the new text.

    Several processes may write at once; the last one wins.
    """
    with tempfile.NamedTemporaryFile(
        "w", encoding="utf-8", dir=path.parent, prefix=f".{path.name}-", delete=False
    ) as partial:
        try:
            partial.write(text)
            partial.flush()
            os.fsync(partial.fileno())
            # A temporary file is for its owner alone; give it what any new file would have.
            mask = os.umask(0)
            os.umask(mask)
            os.chmod(partial.name, 0o666 & ~mask)
            os.replace(partial.name, path)
        except BaseException:
            os.unlink(partial.name)
            raise
