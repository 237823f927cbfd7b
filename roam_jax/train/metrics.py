"""metrics.jsonl, its copy for TensorBoard, and the reader of both the resume and the reports.

A line is one JSON object: `step` (finished updates) and the numbers of that step; where several
seeds share the file, `seed` comes first. Each step of a run stands in the file once, also after a
crash: on resume the lines past the restored step are dropped.
"""

from __future__ import annotations

import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import tensorboardX

from roam_jax.files import write_atomically


def read_metrics(path: pathlib.Path) -> list[dict[str, Any]]:
    """All whole lines of a metrics file.

    A last line without its newline is what a killed run leaves, and is skipped.

    Raises:
        ValueError: another line is not JSON; names file and line.
    """
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    rows = []
    for number, line in enumerate(lines[:-1], start=1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number}: not a JSON object: {line[:80]!r}") from error
    return rows


def _line(row: Mapping[str, Any]) -> str:
    """One line. JSON has no NaN: a metric without a value (an empty bucket) is null."""
    finite = {
        k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()
    }
    return json.dumps(finite, allow_nan=False) + "\n"


class MetricsLog:
    """Appends to metrics.jsonl and TensorBoard.

    Args:
        path: the metrics file.
        tensorboard: folder of event files, by the seed of their run; {None: folder} of a run alone.
        last_step: the step that these runs go on from; their later lines are dropped.
    """

    def __init__(
        self,
        path: pathlib.Path,
        tensorboard: Mapping[int | None, pathlib.Path],
        *,
        last_step: int,
    ):
        rows = read_metrics(path) if path.exists() else []
        kept = [
            row for row in rows if row.get("seed") not in tensorboard or row["step"] <= last_step
        ]
        write_atomically(path, "".join(map(_line, kept)))
        self._file = path.open("a", encoding="utf-8")
        self._writers = {
            seed: tensorboardX.SummaryWriter(str(folder), purge_step=last_step + 1)
            for seed, folder in tensorboard.items()
        }

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        for writer in self._writers.values():
            writer.close()

    def write(self, step: int, values: Mapping[str, float], *, seed: int | None = None) -> None:
        """Add the numbers of one step of a run; they are in the file when this returns."""
        whose = {} if seed is None else {"seed": seed}
        self._file.write(_line({**whose, "step": step, **values}))
        self._file.flush()
        for name, value in values.items():
            # TensorBoard's names have no bars; it would rename, and say so at every line.
            self._writers[seed].add_scalar(name.replace("|", "_"), value, step)
