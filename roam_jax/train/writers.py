"""Where the numbers of metrics.jsonl go as well: TensorBoard, and Weights & Biases if asked for.

A writer gets every line of one run. A run that resumes, or goes back to a checkpoint, repeats
steps: both services are told to forget what they have of them.
"""

from __future__ import annotations

import contextlib
import json
import math
import pathlib
import time
import types
import uuid
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from absl import logging
from ml_collections import ConfigDict
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

from roam_jax.files import named_errors, write_atomically
from roam_jax.train.workdir import SEEDS_FOLDER, Workdir, plain


@runtime_checkable
class Writer(Protocol):
    """Takes the numbers of one run."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Add the numbers of one step."""

    def rewind(self, last_step: int) -> None:
        """Forget the steps after this one."""

    def close(self) -> None:
        """Finish; nothing is written afterwards."""


def open_writers(workdir: Workdir, config: ConfigDict, *, last_step: int) -> list[Writer]:
    """The writers of a run: TensorBoard always, Weights & Biases where `train.wandb` names one.

    Args:
        workdir: of the run; it exists.
        config: the whole config.
        last_step: the step that the run goes on from.

    Raises:
        ValueError: as `require_wandb`, or the service refuses the run.
    """
    writers: list[Writer] = [TensorBoard(workdir.tensorboard, last_step=last_step)]
    if config.train.wandb:
        writers.append(WeightsAndBiases(workdir, config, last_step=last_step))
    return writers


def require_wandb(project: str) -> None:
    """Refuse `train.wandb` where its package is missing; nothing is asked of the network.

    Args:
        project: `train.wandb`; "" needs no package.

    Raises:
        ValueError: the package is not installed.
    """
    if project:
        _import_wandb(project)


class TensorBoard:
    """Event files.

    They are written at once, in this thread: an error, such as a full disk, is the caller's.
    (tensorboardX's own SummaryWriter has a thread that an error ends, and then waits for it.)

    Args:
        folder: where to.
        last_step: later steps of earlier files are hidden.

    Raises:
        OSError: nothing can be written there.
    """

    def __init__(self, folder: pathlib.Path, *, last_step: int):
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._open(last_step)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Add one scalar a number."""
        # TensorBoard's names have no bars.
        scalars = [
            Summary.Value(tag=name.replace("|", "_"), simple_value=value)
            for name, value in values.items()
        ]
        self._write(step, summary=Summary(value=scalars))

    def rewind(self, last_step: int) -> None:
        """Go on in a new file, which hides what earlier ones say of later steps."""
        self.close()
        self._open(last_step)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _open(self, last_step: int) -> None:
        # Files are named by the second and read in the order of their names.
        suffix = f".{time.time_ns()}"
        self._file = EventsWriter(str(self._folder / "events"), filename_suffix=suffix)
        self._write(last_step + 1, session_log=SessionLog(status=SessionLog.START))

    def _write(self, step: int, **content: Any) -> None:
        with named_errors(self._folder):
            self._file.write_event(Event(step=step, wall_time=time.time(), **content))
            self._file.flush()


class WeightsAndBiases:
    """A run of a project of Weights & Biases.

    Its id lies in WORKDIR/wandb.json, so that a resumed run goes on in the same one, rewound to
    the step that it goes on from. Account, server and offline mode are set as wandb's manual says
    (`wandb login`, WANDB_MODE). The runs of --seeds form a group.

    Args:
        workdir: of the run.
        config: the whole config, which the service gets as well.
        last_step: the step that the run goes on from; 0 begins another run of the project.

    Raises:
        ValueError: the package is not installed, wandb.json is damaged, or the service refuses.
    """

    def __init__(self, workdir: Workdir, config: ConfigDict, *, last_step: int):
        self._project = config.train.wandb
        self._wandb = _import_wandb(self._project)
        self._workdir, self._config = workdir, config
        self._open(last_step)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Log the numbers that have a value."""
        self._run.log({k: v for k, v in values.items() if math.isfinite(v)}, step=step)

    def rewind(self, last_step: int) -> None:
        """Finish, and go on in the same run from an earlier step."""
        self.close()
        self._open(last_step)

    def close(self) -> None:
        """Send what is held back."""
        self._run.finish()

    def _open(self, last_step: int) -> None:
        path = self._workdir.path.resolve()
        of_seeds = path.parent.name == SEEDS_FOLDER
        whole = path.parent.parent.name if of_seeds else None
        common = {
            "project": self._project,
            "dir": str(path),
            "config": plain(self._config),
            "name": f"{whole}, seed {path.name}" if of_seeds else path.name,
            "group": whole,
            "reinit": "create_new",  # several seeds at once
        }
        known = self._read_id() if last_step else None
        name = known or uuid.uuid4().hex
        if known is None:
            write_atomically(self._file, json.dumps({"project": self._project, "id": name}) + "\n")
            self._run = self._init(id=name, resume="never", **common)
            return
        try:
            self._run = self._wandb.init(id=name, resume_from=f"{name}?_step={last_step}", **common)
        except self._wandb.Error as error:
            logging.warning(
                "Weights & Biases did not rewind run %s to step %d (%s): what it has of later "
                "steps stays, and repeated steps are ignored",
                *(name, last_step, error),
            )
            self._run = self._init(id=name, resume="allow", **common)

    def _init(self, **options: Any) -> Any:
        try:
            return self._wandb.init(**options)
        except self._wandb.Error as error:
            raise ValueError(
                f"train.wandb = {self._project!r}: Weights & Biases refused the run ({error}); "
                "expected an account (`wandb login`), WANDB_MODE=offline, or train.wandb = ''"
            ) from error

    @property
    def _file(self) -> pathlib.Path:
        return self._workdir.path / "wandb.json"

    def _read_id(self) -> str | None:
        """The run's id in this project; None of a run that the project does not have yet."""
        if not self._file.exists():
            return None
        try:
            saved = json.loads(self._file.read_text(encoding="utf-8"))
            return saved["id"] if saved["project"] == self._project else None
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(
                f'{self._file}: expected {{"project": ..., "id": ...}}, got {error!r}; remove it '
                "to begin another run of the project"
            ) from error


def _import_wandb(project: str) -> types.ModuleType:
    with contextlib.suppress(ModuleNotFoundError):
        import wandb

        # The folder that it leaves where a run is started can be imported as well, and is empty.
        if hasattr(wandb, "init"):
            return wandb
    raise ValueError(
        f"train.wandb = {project!r}: the package wandb is not installed; expected `pip install "
        "wandb`, or train.wandb = ''"
    )
