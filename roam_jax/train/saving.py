"""Checkpoints written in the background: arrays are copied to the host, then the run goes on.

    12.saving.orbax-checkpoint-tmp   Orbax writes the parts
    12.saving                        all parts are there; the manifest is made
    12                               the checkpoint, whole
    4.removed                        one that is no longer kept, on its way out

Each name follows by a rename, so a kill at any moment leaves the checkpoints that were whole and
a rest that no reader looks at. Of several processes, which share the folder, each writes its
shards and the first one does the rest.
"""

from __future__ import annotations

import datetime
import os
import pathlib
import re
import shutil
import threading
from collections.abc import Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging

from roam_jax.files import sync_folder
from roam_jax.train import manifest
from roam_jax.train.hosts import is_first
from roam_jax.train.retention import Keep, Saved
from roam_jax.train.state import TrainState

STATE, DATA, CONFIG, EXTRA = "state", "data", "config", "extra"
SAVING, REMOVED = ".saving", ".removed"
# What a killed save or removal leaves.
RESTS = (f"*{SAVING}", f"*{SAVING}.orbax-checkpoint-tmp*", "*.orbax-checkpoint-tmp*", f"*{REMOVED}")
# Processes wait so long for the slowest one to have written its shards.
TIMEOUT_S = 3600
# How TensorStore spells the errno of a failed system call.
_ERRNO = re.compile(r"(?:OS error |os_error_code=')(\d+)")


def numbered(directory: pathlib.Path) -> list[int]:
    """Steps that have a folder, oldest first, whole or damaged."""
    return sorted(int(path.name) for path in directory.glob("*/") if path.name.isdigit())


class Saver:
    """Writes the checkpoints of one folder, one at a time.

    Args:
        directory: where they are; made if needed. What a killed save left there is removed.
        keep: which of them stay.
    """

    def __init__(self, directory: pathlib.Path, keep: Keep):
        self._directory, self._keep = directory.absolute(), keep
        self._thread: threading.Thread | None = None
        self._failed: tuple[int, BaseException] | None = None
        if is_first():
            directory.mkdir(parents=True, exist_ok=True)
            for path in (path for rest in RESTS for path in directory.glob(rest)):
                logging.info("removing %s, which a killed run has left", path)
                shutil.rmtree(path, ignore_errors=True)
        _barrier("checkpoints opened")
        self._orbax = ocp.AsyncCheckpointer(
            handler(), async_options=ocp.AsyncOptions(timeout_secs=TIMEOUT_S)
        )

    def start(
        self,
        step: int,
        state: TrainState,
        *,
        data: Any,
        config: Mapping[str, Any],
        extra: Mapping[str, Any],
        metrics: Mapping[str, float | None],
    ) -> None:
        """Begins to save a step, after the one before is done.

        Orbax holds a copy of the arrays, or the buffers themselves, when this returns: XLA does
        not write into a donated buffer that is held.

        Raises:
            OSError: this or the save before failed, such as on a full disk.
        """
        self.wait()
        args = ocp.args.Composite(
            state=ocp.args.PyTreeSave(state),
            data=ocp.args.JsonSave(data),
            config=ocp.args.JsonSave(config),
            extra=ocp.args.JsonSave(extra),
        )
        try:
            self._orbax.save(self._directory / f"{step}{SAVING}", args=args)
        except Exception as error:  # whatever Orbax and TensorStore raise on a full disk
            self._fail(step, error)
            self.wait()
        self._thread = threading.Thread(
            target=self._finish, args=[step, dict(metrics)], name=f"checkpoint of step {step}"
        )
        self._thread.start()

    def join(self) -> None:
        """Waits until no save is running; its error is kept for `wait`."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def wait(self) -> None:
        """Waits until no save is running.

        Raises:
            OSError: it failed; raised once.
        """
        self.join()
        if self._failed is None:
            return
        (step, error), self._failed = self._failed, None
        steps = numbered(self._directory)
        good = f"step {steps[-1]}" if steps else "none"
        text = f"the checkpoint of step {step} was not saved; the last one in {self._directory} is "
        number = _errno(error)
        if number is None:
            raise RuntimeError(f"{text}{good}: {error}") from error
        raise OSError(number, f"{os.strerror(number)}: {text}{good}") from error

    def close(self) -> None:
        """Waits; then nothing more can be saved."""
        try:
            self.wait()
        finally:
            self._orbax.close()

    def remove(self, step: int) -> None:
        """Deletes one checkpoint."""
        _remove(self._directory / str(step))

    def _finish(self, step: int, metrics: Mapping[str, float | None]) -> None:
        """In the background: the rest of a save."""
        folder, whole = self._directory / f"{step}{SAVING}", self._directory / str(step)
        try:
            self._orbax.wait_until_finished()
            if is_first():
                manifest.write(folder, metrics=metrics)
                folder.rename(whole)
                sync_folder(self._directory)
                self._remove_old()
            # Where one fails the others stay here, until its error ends them (`hosts.stop_all`).
            _barrier(f"checkpoint {step} is whole")
        except BaseException as error:  # raised again by `wait`
            self._fail(step, error)

    def _remove_old(self) -> None:
        saved = [_known_of(self._directory / str(step)) for step in numbered(self._directory)]
        for step in {one.step for one in saved} - self._keep.chosen(saved):
            _remove(self._directory / str(step))

    def _fail(self, step: int, error: BaseException) -> None:
        """Notes the error, and makes room on a full disk."""
        self._failed = step, error
        if is_first():
            for path in self._directory.glob(f"{step}{SAVING}*"):
                shutil.rmtree(path, ignore_errors=True)


def handler() -> ocp.CompositeCheckpointHandler:
    """How the parts of a checkpoint are written and read."""
    return ocp.CompositeCheckpointHandler(
        **{STATE: ocp.PyTreeCheckpointHandler()},
        **{name: ocp.JsonCheckpointHandler() for name in (DATA, CONFIG, EXTRA)},
    )


def _barrier(name: str) -> None:
    """Waits for the other processes, from any thread and without the devices."""
    if jax.process_count() > 1:
        key = ocp.multihost.unique_barrier_key(name.replace(" ", "_"))
        ocp.multihost.get_barrier_sync_fn()(key=key, timeout_ms=1000 * TIMEOUT_S)


def _remove(folder: pathlib.Path) -> None:
    """Renamed first: half a folder never has a checkpoint's name."""
    going = folder.with_name(folder.name + REMOVED)
    folder.rename(going)
    try:
        shutil.rmtree(going)
    except OSError as error:  # such as a file that is still read elsewhere, on a network disk
        logging.warning("%s stays until the run is started again (%s)", going, error)


def _known_of(folder: pathlib.Path) -> Saved:
    """Time and metrics of a checkpoint; without a manifest, the time of its folder and none."""
    try:
        found = manifest.read(folder)
        seconds, metrics = found["saved_at"], found["metrics"]
    except (OSError, ValueError):
        seconds, metrics = folder.stat().st_mtime, None
    return Saved(int(folder.name), datetime.datetime.fromtimestamp(seconds, datetime.UTC), metrics)


def _errno(error: BaseException | None) -> int | None:
    """The number of the system's error that an exception goes back to."""
    while error is not None:
        if isinstance(error, OSError) and error.errno:
            return error.errno
        if found := _ERRNO.search(str(error)):
            return int(found.group(1))
        error = error.__cause__ or error.__context__
    return None
