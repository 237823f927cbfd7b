"""Checkpoints: train state, position in the data and config together, or not at all.

They are written in the background (`saving`), each with the size and checksum of every file
(`manifest`), and kept by rules (`retention`). What is read is checked first: the latest checkpoint
whose files are all as they were written is taken, with a warning for each later one that is not.
"""

from __future__ import annotations

import json
import math
import pathlib
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, TypeVar

import jax
import orbax.checkpoint as ocp
from absl import logging

from roam_jax.contracts import Params
from roam_jax.train import manifest
from roam_jax.train.hosts import is_first, of_first
from roam_jax.train.quiet_orbax import quiet_orbax
from roam_jax.train.retention import Keep
from roam_jax.train.saving import (
    CONFIG,
    DATA,
    EXTRA,
    STATE,
    Saver,
    handler,
    numbered,
)
from roam_jax.train.state import TrainState

# What is named so was found damaged and set aside.
DAMAGED = ".damaged"
# Orbax's file of a part that is JSON.
_JSON = "metadata"
T = TypeVar("T")


class Checkpoints:
    """The saved steps of one run.

    Args:
        directory: where they are; made if `keep` is given.
        keep: save, and keep these; a number = so many of the latest steps; None = only read,
            change nothing.

    Of several processes all do the same, with `directory` shared.

    Raises:
        FileNotFoundError: only reading, and there is no such folder.
    """

    def __init__(self, directory: pathlib.Path, *, keep: Keep | int | None = None):
        if keep is None and not directory.is_dir():
            raise FileNotFoundError(f"no checkpoints at {directory}")
        self.directory = directory
        keep = Keep(last=keep) if isinstance(keep, int) else keep
        quiet_orbax()
        self._saver = None if keep is None else Saver(directory, keep)
        self._faults: dict[int, str] = {}  # of the steps that were looked at; "" = none

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: object, trace: TracebackType | None
    ) -> None:
        """Waits for the running save.

        Raises:
            OSError: it failed; only logged where another error is on its way.
        """
        if self._saver is None:
            return
        try:
            self._saver.close()
        except (OSError, RuntimeError) as failed:
            if kind is None or issubclass(kind, SystemExit):
                raise
            logging.error("%s", failed)

    @property
    def steps(self) -> list[int]:
        """Saved steps, oldest first, after the running save; damaged ones are among them."""
        if self._saver is not None:
            self._saver.join()
        return numbered(self.directory)

    def agreed_steps(self) -> list[int]:
        """`steps` as the first process sees them: another host may see a new folder late.

        Of several processes all must call this.
        """
        here = self.steps
        return of_first("saved steps", lambda: here)

    def save(
        self,
        step: int,
        state: TrainState,
        *,
        data: Any,
        config: Mapping[str, Any],
        metrics: Mapping[str, float] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        """Begin to save one step; the arrays may be donated when this returns.

        A step that is already there is left as it is. What no rule keeps is deleted afterwards.

        Args:
            step: finished updates.
            state: the arrays.
            data: JSON-serialisable state of the batch iterator after the last consumed batch.
            config: the plain config.
            metrics: numbers that `keep` may choose by.
            extra: what else the run must remember, a small JSON object.

        Raises:
            OSError: this save, or the one before, failed; the earlier checkpoints are whole.
        """
        self.wait()
        if of_first("saved already", (self.directory / str(step)).exists):
            return
        numbers = {name: float(value) for name, value in (metrics or {}).items()}
        self._saver.start(
            step,
            state,
            data=data,
            config=config,
            extra=dict(extra or {}),
            metrics={k: v if math.isfinite(v) else None for k, v in numbers.items()},
        )

    def wait(self) -> None:
        """Wait until the running save is whole on disk.

        Raises:
            OSError: it failed.
        """
        if self._saver is not None:
            self._saver.wait()

    def drop_after(self, step: int) -> None:
        """Remove later steps, for a run that goes on from this one."""
        for later in self.steps:
            if later > step:
                logging.info("removing checkpoint %s: going on from step %d", later, step)
                self._saver.remove(later)

    def fault(self, step: int) -> str:
        """What is wrong with the files of a saved step; "" = nothing, all of them were checked.

        Of checkpoints that were made before there were manifests, whether each part is there.
        """
        if step not in self._faults:
            self._faults[step] = _fault(self._folder(step))
        return self._faults[step]

    def pick(self, step: int | None = None) -> int:
        """The step itself, or the latest for None, its files checked.

        For None, later steps that are damaged are named in a warning, and set aside if this may
        change the folder.

        Raises:
            FileNotFoundError: there is no such step; names those that are.
            ValueError: it is damaged, or for None all are; names the file.
        """
        steps = self.agreed_steps()
        if not steps or (step is not None and step not in steps):
            wanted = "no checkpoint" if step is None else f"no checkpoint of step {step}"
            raise FileNotFoundError(f"{wanted} in {self.directory}; there are: {steps or 'none'}")
        looked_at = steps[::-1] if step is None else [step]
        # Files are read by one process and decided on once.
        good = of_first("good checkpoint", lambda: self._first_good(looked_at))
        if good is None:
            faults = "; ".join(f"{self._folder(s)}: {self.fault(s)}" for s in looked_at)
            others = [other for other in steps if other not in looked_at]
            raise ValueError(
                f"damaged checkpoint{'s' * (len(looked_at) > 1)}: {faults}; expected the files as "
                f"they were written. "
                + (f"Other steps: {others}" if others else "No other step is left")
            )
        for later in (later for later in reversed(steps) if step is None and later > good):
            self._pass_over(later, good)
        return good

    def restore(
        self, like: TrainState, *, step: int | None = None
    ) -> tuple[TrainState, Any, dict[str, Any]]:
        """One saved step, on the shardings of `like`.

        Args:
            like: tree of ShapeDtypeStructs with shardings, from `state.abstract_state`.
            step: which; None = the latest that is not damaged, see `pick`.

        Returns:
            The state, the state of the batch iterator, the plain config.

        Raises:
            FileNotFoundError: that step is not there; names those that are.
            ValueError: it holds other parameters than `like`, is damaged, or cannot be read.
        """
        return self._read(
            step,
            lambda found: (
                self._arrays(found, like),
                self._json(found, DATA),
                self._json(found, CONFIG),
            ),
        )

    def restore_part(self, part: str, like: Params, *, step: int | None = None) -> Params:
        """Only one part of the state, such as "trainable", without the optimizer's moments.

        Args and errors are those of `restore`, with that part of `abstract_state`.
        """
        return self._read(
            step, lambda found: self._arrays(found, {part: like}, partial_restore=True)[part]
        )

    def restore_trainable(self, like: Params, *, step: int | None = None) -> Params:
        """Only the trained parameters of one step; see `restore_part`."""
        return self.restore_part("trainable", like, step=step)

    def extra(self, step: int) -> dict[str, Any]:
        """What a step was saved with as `extra`; {} of a checkpoint from before there was any."""
        if not (self._folder(step) / EXTRA).exists():
            return {}
        return self._read(step, lambda found: self._json(found, EXTRA))

    def _read(self, step: int | None, read: Callable[[int], T]) -> T:
        """What `read` finds in the picked step.

        Where None is asked for, what cannot be read is passed over as well if it has no manifest.
        Of files that match theirs it is not the files' fault, but such as too little memory.
        """
        while True:
            found = self.pick(step)
            try:
                return read(found)
            except _ReadError as error:
                folder = self._folder(found)
                whole = (folder / manifest.FILE).exists()
                if step is not None or whole or jax.process_count() > 1:
                    raise ValueError(f"checkpoint {folder} cannot be read ({error})") from error
                self._faults[found] = str(error)

    def _arrays(self, step: int, like: Any, **kwargs: bool) -> Any:
        folder = self._folder(step).absolute()
        restore = ocp.args.PyTreeRestore(
            like, restore_args=ocp.checkpoint_utils.construct_restore_args(like), **kwargs
        )
        try:
            with ocp.Checkpointer(handler()) as reader:
                problems = _misfits(reader.metadata(folder).item_metadata[STATE].tree, like)
                if not problems:
                    return reader.restore(folder, args=ocp.args.Composite(state=restore))[STATE]
        except Exception as error:  # whatever Orbax and TensorStore raise on a damaged file
            raise _ReadError(f"{type(error).__name__}: {str(error)[:200]}") from error
        raise ValueError(
            f"checkpoint {self._folder(step)} does not fit this config: " + "; ".join(problems)
        )

    def _json(self, step: int, part: str) -> Any:
        try:
            return json.loads((self._folder(step) / part / _JSON).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise _ReadError(f"{part}/{_JSON}: {error}") from error

    def _first_good(self, steps: list[int]) -> int | None:
        """The first of the steps without a fault."""
        return next((step for step in steps if not self.fault(step)), None)

    def _pass_over(self, step: int, good: int) -> None:
        """Warns of a damaged step, and sets it aside if this may change the folder."""
        if not is_first():
            return
        folder, fault = self._folder(step), self.fault(step)
        where = "left as it is"
        if self._saver is not None:
            aside = folder.with_name(folder.name + DAMAGED)
            while aside.exists():
                aside = aside.with_name(aside.name + DAMAGED)
            folder.rename(aside)
            del self._faults[step]  # the step may be saved again
            where = f"renamed to {aside.name}"
        logging.warning(
            "checkpoint %s is damaged: %s; %s, going on from step %d", folder, fault, where, good
        )

    def _folder(self, step: int) -> pathlib.Path:
        return self.directory / str(step)


class _ReadError(Exception):
    """A checkpoint that Orbax cannot read."""


def _fault(folder: pathlib.Path) -> str:
    """The first fault of a checkpoint's files; "" = none."""
    missing = [part for part in (STATE, DATA, CONFIG) if not (folder / part).is_dir()]
    if missing:
        return f"{missing[0]} is missing"
    if (folder / manifest.FILE).exists():
        return manifest.first_fault(folder)
    # Checkpoints with this part have always had a manifest.
    return f"{manifest.FILE} is missing" if (folder / EXTRA).exists() else ""


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
