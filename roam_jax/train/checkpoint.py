"""Checkpoints: train state, position in the data and config together, or not at all.

Orbax writes a step into a temporary folder and renames it when all is there, so a folder with a
step's number as its name is whole. What a killed save leaves is removed when the next run opens
the folder, and is never picked. Saves are synchronous.
"""

from __future__ import annotations

import logging as std_logging
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging

from roam_jax.contracts import Params
from roam_jax.train.state import TrainState

STATE, DATA, CONFIG = "state", "data", "config"
# Orbax writes this file of a step just before the rename.
_COMMITTED = "_CHECKPOINT_METADATA"


def _no_orbax_chatter(record: std_logging.LogRecord) -> bool:
    """Keep Orbax's warnings only: it logs about 60 lines a save."""
    return record.levelno > std_logging.INFO or "orbax" not in record.pathname


class Checkpoints:
    """The saved steps of one run.

    Args:
        directory: where they are; made if `keep` is given.
        keep: save, and keep that many of the latest steps; None = only read, change nothing.

    Raises:
        FileNotFoundError: only reading, and there is no such folder.
    """

    def __init__(self, directory: pathlib.Path, *, keep: int | None = None):
        if keep is None and not directory.is_dir():
            raise FileNotFoundError(f"no checkpoints at {directory}")
        self.directory = directory
        if keep is not None:
            _remove_partial(directory)
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            create=keep is not None,
            cleanup_tmp_directories=keep is not None,
            enable_async_checkpointing=False,
        )
        logging.get_absl_logger().addFilter(_no_orbax_chatter)
        handlers = {
            STATE: ocp.PyTreeCheckpointHandler(),
            DATA: ocp.JsonCheckpointHandler(),
            CONFIG: ocp.JsonCheckpointHandler(),
        }
        self._manager = ocp.CheckpointManager(
            directory.absolute(), options=options, item_handlers=handlers
        )

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_: object) -> None:
        self._manager.close()

    @property
    def steps(self) -> list[int]:
        """Whole checkpoints, oldest first."""
        return sorted(step for step in self._manager.all_steps() if _is_whole(self._folder(step)))

    def save(self, step: int, state: TrainState, *, data: Any, config: Mapping[str, Any]) -> None:
        """Save one step; when this returns it is on disk and the oldest may be gone.

        Args:
            step: finished updates.
            state: the arrays.
            data: JSON-serialisable state of the batch iterator after the last consumed batch.
            config: the plain config.
        """
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.PyTreeSave(state),
                data=ocp.args.JsonSave(data),
                config=ocp.args.JsonSave(config),
            ),
        )

    def drop_after(self, step: int) -> None:
        """Remove later steps, for a run that goes on from this one."""
        for later in self.steps:
            if later > step:
                logging.info("removing checkpoint %s: going on from step %d", later, step)
                self._manager.delete(later)

    def restore(
        self, like: TrainState, *, step: int | None = None
    ) -> tuple[TrainState, Any, dict[str, Any]]:
        """One saved step, on the shardings of `like`.

        Args:
            like: tree of ShapeDtypeStructs with shardings, from `state.abstract_state`.
            step: which; None = the latest.

        Returns:
            The state, the state of the batch iterator, the plain config.

        Raises:
            FileNotFoundError: that step is not there; names those that are.
            ValueError: it holds other parameters than `like`, or cannot be read.
        """
        args = {STATE: _restore_args(like), DATA: ocp.args.JsonRestore()}
        found = self._read(step, like, args | {CONFIG: ocp.args.JsonRestore()})
        return found[STATE], found[DATA], found[CONFIG]

    def restore_trainable(self, like: Params, *, step: int | None = None) -> Params:
        """Only the trained parameters of one step, without the optimizer's moments.

        Args and errors are those of `restore`, with the trainable part of `abstract_params`.
        """
        part = {"trainable": like}
        found = self._read(step, part, {STATE: _restore_args(part, partial_restore=True)})
        return found[STATE]["trainable"]

    def _read(self, step: int | None, like: Any, args: dict[str, Any]) -> Any:
        step = self.pick(step)
        try:
            problems = _misfits(self._manager.item_metadata(step)[STATE].tree, like)
            if not problems:
                return self._manager.restore(step, args=ocp.args.Composite(**args))
        except Exception as error:  # whatever Orbax and TensorStore raise on a damaged file
            earlier = [other for other in self.steps if other < step]
            raise ValueError(
                f"checkpoint {self._folder(step)} cannot be read ({type(error).__name__}: "
                f"{str(error)[:200]}); remove that folder to go on from "
                + (f"step {earlier[-1]}" if earlier else "the start")
            ) from error
        raise ValueError(
            f"checkpoint {self._folder(step)} does not fit this config: " + "; ".join(problems)
        )

    def pick(self, step: int | None) -> int:
        """The step itself, or the latest for None.

        Raises:
            FileNotFoundError: there is no such step; names those that are.
        """
        steps = self.steps
        if not steps or (step is not None and step not in steps):
            wanted = "no checkpoint" if step is None else f"no checkpoint of step {step}"
            raise FileNotFoundError(f"{wanted} in {self.directory}; there are: {steps or 'none'}")
        return steps[-1] if step is None else step

    def _folder(self, step: int) -> pathlib.Path:
        return self.directory / str(step)


def _is_whole(folder: pathlib.Path) -> bool:
    return all((folder / part).exists() for part in (_COMMITTED, STATE, DATA, CONFIG))


def _remove_partial(directory: pathlib.Path) -> None:
    """Folders named as a step that no finished save has left, such as an interrupted copy."""
    for folder in directory.glob("*"):
        if folder.name.isdigit() and not _is_whole(folder):
            logging.warning("removing half-written checkpoint %s", folder)
            shutil.rmtree(folder)


def _restore_args(like: Any, **kwargs: bool) -> ocp.args.PyTreeRestore:
    restore_args = ocp.checkpoint_utils.construct_restore_args(like)
    return ocp.args.PyTreeRestore(like, restore_args=restore_args, **kwargs)


def _misfits(saved: Any, like: Any) -> list[str]:
    """Names that are missing, unexpected, or of another shape in a saved tree."""
    have, want = _shapes(saved), _shapes(like)
    parts = {name.split("/")[0] for name in want}  # `like` may be a part of the state
    have = {name: shape for name, shape in have.items() if name.split("/")[0] in parts}
    return [
        f"{name} is {have.get(name, 'missing')} in the checkpoint, "
        f"{want.get(name, 'absent')} in the model"
        for name in sorted(have.keys() | want.keys())
        if have.get(name) != want.get(name)
    ]


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    paths = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
        for path, leaf in paths
    }
