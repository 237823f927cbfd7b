"""metrics.jsonl, its copies for writers such as TensorBoard, and its reader.

A line is one JSON object: `step` (finished updates) and the numbers of that step; where several
seeds share the file, `seed` comes first. Each step of a run stands in the file once, also after a
crash: on resume the lines past the restored step are dropped, and so they are where a run goes
back to a checkpoint.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import IO, Any

from roam_jax.files import named_errors, write_atomically
from roam_jax.train.writers import Writer

# What a line says of the machine, not of the model.
_MACHINE = re.compile(r"^seconds_|_per_second$|^(mfu|memory_bytes|peak_memory_bytes)$|^compile_")


def read_metrics(path: pathlib.Path) -> list[dict[str, Any]]:
    """All whole lines of a metrics file.

    A last line without its newline is what a killed run leaves, and is skipped.

    Raises:
        ValueError: another line is no JSON object with a step; names file and line.
    """
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    rows = []
    for number, line in enumerate(lines[:-1], start=1):
        try:
            row = json.loads(line)
            row["step"]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path}, line {number}: not a JSON object with a step: {line[:80]!r}"
            ) from error
        rows.append(row)
    return rows


def reproducible(row: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of a line that a resumed run repeats: all but how the machine fared."""
    return {name: value for name, value in row.items() if not _MACHINE.search(name)}


def _line(row: Mapping[str, Any]) -> str:
    """One line. JSON has no NaN: a metric without a value (an empty bucket) is null."""
    finite = {
        k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()
    }
    return json.dumps(finite, allow_nan=False) + "\n"


class MetricsLog:
    """Appends to metrics.jsonl, and hands the same numbers to writers.

    Args:
        path: the metrics file; None = nothing is written, in the other processes of a cluster.
        writers: by the seed of their run; {None: [...]} of a run alone. They have been opened for
            `last_step` and are closed with the log.
        last_step: the step that these runs go on from; their later lines are dropped.
    """

    def __init__(
        self,
        path: pathlib.Path | None,
        writers: Mapping[int | None, Sequence[Writer]],
        *,
        last_step: int,
    ):
        self._path, self._writers = path, writers
        self._file = self._open(last_step)

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.ExitStack() as closing:  # all, whichever fails
            for writer in itertools.chain(*self._writers.values()):
                closing.callback(writer.close)
            if self._file is not None:
                with named_errors(self._path):
                    self._file.close()

    def write(self, step: int, values: Mapping[str, float], *, seed: int | None = None) -> None:
        """Add the numbers of one step of a run; they are in the file when this returns."""
        if self._file is None:
            return
        whose = {} if seed is None else {"seed": seed}
        with named_errors(self._path):
            self._file.write(_line({**whose, "step": step, **values}))
            self._file.flush()
        for writer in self._writers[seed]:
            writer.write(step, values)

    def rewind(self, last_step: int) -> None:
        """Drop the lines past a step that these runs go back to."""
        if self._file is None:
            return
        self._file.close()
        self._file = self._open(last_step)
        for writers in self._writers.values():
            for writer in writers:
                writer.rewind(last_step)

    def _open(self, last_step: int) -> IO[str] | None:
        if self._path is None:
            return None
        rows = read_metrics(self._path) if self._path.exists() else []
        kept = [
            row for row in rows if row.get("seed") not in self._writers or row["step"] <= last_step
        ]
        write_atomically(self._path, "".join(map(_line, kept)))
        return self._path.open("a", encoding="utf-8")
