"""The runs that `benchmarks/faults.py` disturbs: how they start, and whether two ended alike."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import fields
from typing import Protocol

import jax
import numpy as np
import orbax.checkpoint as ocp

from roam_jax.cli.arguments import run_command
from roam_jax.train.checkpoint import Checkpoints
from roam_jax.train.metrics import read_metrics
from roam_jax.train.saving import STATE
from roam_jax.train.workdir import Workdir
from tests.train import child

ROOT = pathlib.Path(__file__).resolve().parents[1]
POLL_S = 0.002
# Parts of the names of what is measured, which no two runs have alike.
MEASURED = ("second", "mfu", "bytes")


class Process(Protocol):
    """What is asked of a process, as of `subprocess.Popen`."""

    def poll(self) -> int | None:
        """Its exit code; None = it still runs."""

    def send_signal(self, number: int) -> None:
        """To it alone."""


@dataclasses.dataclass(frozen=True)
class Command:
    """A training run as `train.py`.

    Args:
        config: FILE[:VARIANT].
        steps: that it trains.
        leaves: values of other leaves, by name.
    """

    config: str
    steps: int
    leaves: Mapping[str, object]

    def start(self, workdir: pathlib.Path, messages: pathlib.Path) -> Process:
        """One process of the run, in the checkout's root; its stderr goes to `messages`."""
        leaves = {"train.steps": self.steps, "train.log_every": 1, **self.leaves}
        return subprocess.Popen(
            [
                *(sys.executable, "train.py", "--config", self.config),
                *("--workdir", workdir.absolute()),
                *(f"--config.{leaf}={value}" for leaf, value in leaves.items()),
            ],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.DEVNULL,
            stderr=messages.open("w"),
        )


@dataclasses.dataclass(frozen=True)
class Toy:
    """Two layers on one device: the trainer and nothing else.

    Its processes are forked from one that has imported all that they need, without a backend, so
    that they train after two seconds.

    Args:
        steps: that it trains.
        save_every, keep: as in `train.*`.
    """

    steps: int
    save_every: int
    keep: int = 2

    def start(self, workdir: pathlib.Path, messages: pathlib.Path) -> Process:
        """One process of the run; its stderr goes to `messages`."""
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["tests.train.child"])
        options = (f"--{field.name}={getattr(self, field.name)}" for field in fields(self))
        argv = [str(workdir.absolute()), "none", "0", "--mesh", "1", "1", *options]
        return Forked(context.Process(target=_toy, args=[argv, str(messages)]))


def _toy(argv: list[str], messages: str) -> None:
    """What a forked process does."""
    os.dup2(os.open(messages, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), sys.stderr.fileno())
    jax.config.update("jax_platforms", "cpu")
    os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0"  # quick compiles, one device
    sys.argv = ["tests.train.child", *argv]
    run_command(child.main)


class Forked:
    """A process of `multiprocessing` as a `Process`.

    Args:
        process: that is to be started.
    """

    def __init__(self, process: multiprocessing.process.BaseProcess):
        self._process = process
        process.start()

    def poll(self) -> int | None:
        """Its exit code; None = it still runs."""
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        """To it alone."""
        if self.poll() is None:
            os.kill(self._process.pid, number)


Program = Command | Toy


def run(program: Program, workdir: pathlib.Path) -> Ended:
    """To its end, whatever that is."""
    return ended(program.start(workdir, messages_of(workdir)), workdir)


def ended(process: Process, workdir: pathlib.Path) -> Ended:
    """How it ended, when it has."""
    while process.poll() is None:
        time.sleep(POLL_S)
    return Ended(process.poll(), messages_of(workdir).read_text(errors="replace"))


def messages_of(workdir: pathlib.Path) -> pathlib.Path:
    """Where the stderr of its last process is; beside it, not on a disk that is full."""
    name = str(workdir.absolute()).strip("/").replace("/", "-")
    return pathlib.Path(tempfile.gettempdir()) / f"{name}.stderr"


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a process ended: its exit code and all that it wrote to stderr."""

    code: int
    message: str

    @property
    def refused(self) -> bool:
        """Whether it ended with one message, as commands do on bad input and disk errors."""
        last = self.message.rstrip().rsplit("\n", 1)[-1]
        return self.code == 2 and last.startswith("error: ") and "Traceback" not in self.message


def saved_steps(workdir: pathlib.Path) -> list[int]:
    """Of its checkpoints."""
    folder = Workdir(workdir).checkpoints
    if not folder.exists():
        return []
    with Checkpoints(folder) as checkpoints:
        return checkpoints.steps


def logged(workdir: pathlib.Path) -> dict[int, Mapping[str, float]]:
    """Step -> what was logged of it, without what is measured anew in every run."""
    rows = read_metrics(Workdir(workdir).metrics_file)
    if len({row["step"] for row in rows}) < len(rows):
        return {}
    return {
        row.pop("step"): {
            name: value for name, value in row.items() if not any(part in name for part in MEASURED)
        }
        for row in rows
    }


def final_arrays(workdir: Workdir) -> dict[str, np.ndarray]:
    """Every array of the last checkpoint, by name."""
    step = saved_steps(workdir.path)[-1]
    folder = workdir.checkpoints.absolute() / str(step) / STATE
    checkpointer = ocp.PyTreeCheckpointer()
    on_host = jax.tree.map(
        lambda _: ocp.RestoreArgs(restore_type=np.ndarray),
        checkpointer.metadata(folder).item_metadata.tree,
    )
    tree = checkpointer.restore(folder, restore_args=on_host)
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def difference(one: pathlib.Path, other: pathlib.Path) -> str:
    """The first difference between the last states and the logged numbers; "" = there is none."""
    if saved_steps(one)[-1:] != saved_steps(other)[-1:]:
        return f"last checkpoints: {saved_steps(one)[-1:]} and {saved_steps(other)[-1:]}"
    before, after = (final_arrays(Workdir(path)) for path in (one, other))
    for name in sorted(before.keys() | after.keys()):
        pair = before.get(name), after.get(name)
        if any(array is None for array in pair) or pair[0].tobytes() != pair[1].tobytes():
            return f"array {name}"
    rows, others = logged(one), logged(other)
    for step in sorted(rows.keys() | others.keys()):
        if rows.get(step) != others.get(step):
            return f"metrics of step {step}: {rows.get(step)} and {others.get(step)}"
    return ""
