"""What `benchmarks/faults.py` does to runs, and what they must then do."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator

from benchmarks.fault_runs import (
    POLL_S,
    Ended,
    Process,
    Program,
    difference,
    ended,
    logged,
    messages_of,
    run,
    saved_steps,
)
from roam_jax.data.embedded import ensure_embedded
from roam_jax.train.checkpoint import Checkpoints
from roam_jax.train.interrupts import REQUEUE
from roam_jax.train.workdir import Workdir

# Shares of the kills that hit the start-up and a save that is under way; the others follow a step
# by up to so many seconds. A grace period is what some schedulers leave between their two signals.
STARTING, SAVING, RUNNING_S, GRACE_S = 0.15, 0.4, 1.0, 0.2
SIGNALS = ("SIGKILL", "SIGTERM", "SIGTERM, then SIGKILL")
SAME, REFUSED, WRONG = "same", "refused, then same", "WRONG"


@dataclasses.dataclass(frozen=True)
class Fault:
    """One disturbance.

    Args:
        kind: of fault, a row of the table.
        outcome: SAME, REFUSED or WRONG.
        problem: what was wrong.
    """

    kind: str
    outcome: str
    problem: str = ""

    @classmethod
    def judged(cls, kind: str, problem: str, *, refused: bool = False) -> Fault:
        """From what is wrong after it; "" = nothing."""
        return cls(kind, WRONG if problem else REFUSED if refused else SAME, problem)


def undisturbed(program: Program, workdir: pathlib.Path) -> pathlib.Path:
    """The workdir of a run that nothing happens to."""
    after = run(program, workdir)
    if after.code:
        raise RuntimeError(f"the undisturbed run ended with code {after.code}: {after.message}")
    return workdir


def kills(
    program: Program, expected: pathlib.Path, count: int, chance: random.Random
) -> Iterator[Fault]:
    """Kills processes of runs until there were so many; each run is then compared."""
    started_s, runs, done = 10.0, 0, 0
    while done < count:
        runs += 1
        workdir, kinds, problems = expected.parent / f"killed-{runs}", [], []
        while done + len(kinds) < count and saved_steps(workdir)[-1:] != [program.steps]:
            kind, problem, started_s = _kill(program, workdir, chance, started_s)
            if kind:
                kinds.append(kind)
                problems.append(problem)
        after = run(program, workdir)
        last = after.message[-500:] if after.code else difference(expected, workdir)
        for kind, problem in zip(kinds, problems, strict=True):
            yield Fault.judged(kind, "; ".join(filter(None, (problem, last))))
        done += len(kinds)
        if not last:
            shutil.rmtree(workdir)


def _kill(
    program: Program, workdir: pathlib.Path, chance: random.Random, started_s: float
) -> tuple[str, str, float]:
    """Kind of what was killed ("" = it had ended before), what is wrong, seconds of a start."""
    how, moment, began = chance.choice(SIGNALS), chance.random(), time.time()
    folder = Workdir(workdir).checkpoints
    process = program.start(workdir, messages_of(workdir))
    if moment < STARTING:
        time.sleep(chance.uniform(0, started_s))
    else:
        _wait(process, lambda: _trained_since(workdir, began))
        started_s = time.time() - began
        time.sleep(chance.uniform(0, RUNNING_S))
        if moment < STARTING + SAVING:
            _wait(process, lambda: any(folder.glob("*.saving*")))
            time.sleep(chance.uniform(0, 0.05))
    trained, saving = _trained_since(workdir, began), any(folder.glob("*.saving*"))
    ended_before = process.poll() is not None
    process.send_signal(signal.SIGKILL if how == "SIGKILL" else signal.SIGTERM)
    if how == SIGNALS[2]:
        time.sleep(chance.uniform(0, GRACE_S))
        process.send_signal(signal.SIGKILL)
    after = ended(process, workdir)
    if ended_before:
        return "", "", started_s
    while_ = "starting" if not trained else "saving" if saving else "training"
    problem = "" if how != "SIGTERM" else _ended_ill(after, workdir, trained=trained)
    return f"{how} while {while_}", problem, started_s


def _ended_ill(after: Ended, workdir: pathlib.Path, *, trained: bool) -> str:
    """What is wrong after a SIGTERM."""
    if after.code == 0 or (after.code == -signal.SIGTERM and not trained):
        return ""  # it was done, or had not yet begun to note signals
    if after.code != REQUEUE:
        return f"exit code {after.code}: {after.message[-300:]}"
    steps, saved = logged(workdir), saved_steps(workdir)
    if trained and max(steps) != saved[-1]:
        return f"step {max(steps)} is logged, step {saved[-1]} saved"
    return ""


def damages(
    program: Program, expected: pathlib.Path, count: int, chance: random.Random
) -> Iterator[Fault]:
    """Damages checkpoints of a stopped run, in a copy of it each time."""
    stopped = expected.parent / "stopped"
    process = program.start(stopped, messages_of(stopped))
    _wait(process, lambda: len(saved_steps(stopped)) > 1)
    process.send_signal(signal.SIGTERM)
    if (code := ended(process, stopped).code) != REQUEUE:
        raise RuntimeError(f"SIGTERM ended the run to be damaged with {code}")
    ways = {"truncated": _truncate, "with a changed bit": _flip, "deleted": _delete}
    for number in range(count):
        way, all_of_them = chance.choice(list(ways)), number % 5 == 4
        workdir = shutil.copytree(stopped, stopped.with_name("damaged"))
        steps = saved_steps(workdir)
        files = [
            _any_file(Workdir(workdir).checkpoints / str(step), chance)
            for step in (steps if all_of_them else steps[-1:])
        ]
        for file in files:
            ways[way](file, chance)
        after = run(program, workdir)
        relative = [file.relative_to(Workdir(workdir).checkpoints).as_posix() for file in files]
        names = [name.partition("/")[2] for name in relative]
        problem = "" if all(name in after.message for name in names) else f"{names} not named"
        if all_of_them:
            problem = problem or ("" if after.refused else f"not refused: {after.message[-300:]}")
            shutil.rmtree(workdir)
            shutil.copytree(stopped, workdir)
            after = run(program, workdir)
        problem = problem or after.message[-300:] * bool(after.code)
        problem = problem or difference(expected, workdir)
        what = f"a file of {'every' if all_of_them else 'the last'} checkpoint {way}"
        yield Fault.judged(what, problem, refused=all_of_them)
        shutil.rmtree(workdir)


def full_disks(
    program: Program, folder: pathlib.Path, count: int, chance: random.Random
) -> Iterator[Fault]:
    """Lets a small disk become full, which is then made larger."""
    whole = undisturbed(program, folder / "all_kept")
    size = sum(file.stat().st_size for file in whole.rglob("*"))
    for _ in range(count):
        with _small_disk(folder / "disk", int(size * chance.uniform(0.05, 0.8))) as disk:
            workdir = disk / "run"
            after = run(program, workdir)
            problem = "" if after.refused else f"code {after.code}: {after.message[-600:]}"
            if "No space left on device" not in after.message:
                problem = problem or f"another message: {after.message[-300:]}"
            problem = problem or _faults(workdir)
            subprocess.run(["mount", "-o", "remount,size=256m", disk], check=True)
            after = run(program, workdir)
            problem = problem or after.message[-600:] * bool(after.code)
            problem = problem or difference(whole, workdir)
            yield Fault.judged("a full disk", problem, refused=True)


def broken_records(
    program: Callable[[pathlib.Path], Program],
    folder: pathlib.Path,
    count: int,
    chance: random.Random,
) -> Iterator[Fault]:
    """Breaks the data of a run; `program` makes one of the data's folder."""
    data = shutil.copytree(ensure_embedded(), folder / "data")
    whole = shutil.copytree(data, folder / "whole")
    expected = undisturbed(program(data), folder / "on_whole_data")
    ways = {"truncated": _truncate, "with a changed bit": _flip, "deleted": _delete}
    shards = sorted(file.name for file in whole.glob("*.tfrecord*"))
    for number in range(count):
        way, shard = list(ways)[number % len(ways)], chance.choice(shards)
        workdir, file = folder / "broken", data / shard
        ways[way](file, chance)
        after = run(program(data), workdir)
        refused, problem = after.code != 0, ""
        if refused and not (after.refused and shard in after.message):
            problem = f"code {after.code}, expected a message that names {shard}: {after.message}"
        shutil.copy2(whole / shard, file)
        after = run(program(data), workdir)
        problem = problem or after.message[-600:] * bool(after.code)
        problem = problem or difference(expected, workdir)
        yield Fault.judged(f"a data shard {way}", problem, refused=refused)
        shutil.rmtree(workdir)


@contextlib.contextmanager
def _small_disk(folder: pathlib.Path, size: int) -> Iterator[pathlib.Path]:
    """A disk of so many bytes, in memory; only root may make one."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)
        folder.rmdir()


def _faults(workdir: pathlib.Path) -> str:
    """What is damaged in the checkpoints of a run."""
    if not saved_steps(workdir):
        return ""
    with Checkpoints(Workdir(workdir).checkpoints) as checkpoints:
        return "; ".join(filter(None, map(checkpoints.fault, checkpoints.steps)))


def _wait(process: Process, until: Callable[[], bool]) -> None:
    """Until it is so, or the process has ended."""
    while process.poll() is None and not until():
        time.sleep(POLL_S)


def _trained_since(workdir: pathlib.Path, began: float) -> bool:
    """Whether a process that began then has finished a step."""
    file = Workdir(workdir).metrics_file
    # A resumed run replaces the file, without the lines past its checkpoint, when it opens it.
    return file.exists() and file.stat().st_mtime >= began and bool(logged(workdir))


def _any_file(folder: pathlib.Path, chance: random.Random) -> pathlib.Path:
    """Of those that are not empty."""
    return chance.choice(
        sorted(file for file in folder.rglob("*") if file.is_file() and file.stat().st_size)
    )


def _truncate(file: pathlib.Path, chance: random.Random) -> None:
    os.truncate(file, chance.randrange(file.stat().st_size))


def _flip(file: pathlib.Path, chance: random.Random) -> None:
    content = bytearray(file.read_bytes())
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    file.write_bytes(content)


def _delete(file: pathlib.Path, chance: random.Random) -> None:
    file.unlink()
