"""Kill -9 drill: `python benchmarks/kill_drill.py --kills 10 --steps 60`.

`train.py` runs once undisturbed and once under random SIGKILLs, started again after each until it
ends. Every logged number but the seconds, and every array of the last checkpoint (parameters and
optimizer), must then be the same bit for bit; otherwise the exit code is 1. Steps to die at are
drawn over the whole run, and the moment within a step at random too, so that start-up, steps,
writing of metrics and saving are all hit.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging

from roam_jax.train.checkpoint import STATE, Checkpoints
from roam_jax.train.metrics import read_metrics
from roam_jax.train.workdir import Workdir

ROOT = pathlib.Path(__file__).resolve().parents[1]
POLL_S = 0.02
# This share of the kills hits a start-up: imports, restoring, compiling, up to so many seconds in.
# The others follow a step by up to so many seconds: its save, or the steps after it.
STARTING, STARTING_S, RUNNING_S = 0.2, 15.0, 0.3


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], epilog="other arguments go to train.py as they are"
    )
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--save_every", type=int, default=5)
    parser.add_argument("--config", default="configs/bridge_3loop.py:tiny")
    parser.add_argument("--seed", type=int, default=0, help="of the moments to kill at")
    parser.add_argument("--workdir", type=pathlib.Path, help="where both runs go; default: removed")
    args, overrides = parser.parse_known_args()
    logging.set_verbosity(logging.ERROR)

    with tempfile.TemporaryDirectory() as temporary:
        folder = args.workdir or pathlib.Path(temporary)
        command = [sys.executable, "train.py", "--config", args.config, *overrides]
        command += [f"--config.train.steps={args.steps}", "--config.train.log_every=1"]
        command += [f"--config.train.save_every={args.save_every}"]
        undisturbed, killed = Workdir(folder / "undisturbed"), Workdir(folder / "killed")
        began = time.monotonic()
        run_to_the_end(command, undisturbed)
        print(f"undisturbed: {args.steps} steps in {time.monotonic() - began:.0f} s", flush=True)
        drill(command, killed, steps=args.steps, kills=args.kills, seed=args.seed)
        sys.exit(1 if differences(undisturbed, killed) else 0)


def drill(command: list[str], workdir: Workdir, *, steps: int, kills: int, seed: int) -> None:
    """Starts and kills the run `kills` times, then lets it end."""
    moments = random.Random(seed)
    chosen = sorted(moments.choices(range(1, steps), k=kills))
    print(f"{'kill':>4} {'after step':>10} {'checkpoints':>14}  while")
    for number, step in enumerate(chosen, start=1):
        began, process = time.time(), start(command, workdir)
        if starting := moments.random() < STARTING:
            time.sleep(moments.uniform(0, STARTING_S))
        else:
            while process.poll() is None and last_step(workdir, since=began) < step:
                time.sleep(POLL_S)
            time.sleep(moments.uniform(0, RUNNING_S))
        ended = process.poll() is not None
        process.kill()
        process.communicate()
        partial = workdir.checkpoints.glob("*tmp*")
        saving = any(folder.stat().st_mtime >= began for folder in partial)
        what = "starting" if starting else "ended" if ended else "saving" if saving else "running"
        saved = ", ".join(map(str, saved_steps(workdir))) or "none"
        print(f"{number:>4} {last_step(workdir):>10} {saved:>14}  {what}", flush=True)
    run_to_the_end(command, workdir)


def start(command: list[str], workdir: Workdir) -> subprocess.Popen:
    """One process of the run, in the checkout's root."""
    return subprocess.Popen(
        [*command, "--workdir", str(workdir.path.absolute())],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def run_to_the_end(command: list[str], workdir: Workdir) -> None:
    """Stops the drill with the run's own message where it fails by itself."""
    process = start(command, workdir)
    message = process.communicate()[1]
    if process.returncode:
        sys.exit(f"train.py ended with exit code {process.returncode}:\n{message[-4000:]}")


def last_step(workdir: Workdir, *, since: float = 0.0) -> int:
    """The last step in the metrics file; 0 = none, or not written since that time."""
    file = workdir.metrics_file
    # A resumed run replaces the file, without the lines past its checkpoint, when it opens it.
    if not file.exists() or file.stat().st_mtime < since:
        return 0
    rows = read_metrics(file)
    return rows[-1]["step"] if rows else 0


def saved_steps(workdir: Workdir) -> list[int]:
    """The whole checkpoints."""
    if not workdir.checkpoints.exists():
        return []
    with Checkpoints(workdir.checkpoints) as checkpoints:
        return checkpoints.steps


def differences(one: Workdir, other: Workdir) -> int:
    """Prints what is compared; the number of numbers and arrays that differ."""
    rows, others = (
        {row.pop("step"): row for row in read_metrics(run.metrics_file)} for run in (one, other)
    )
    wrong = []
    for step in sorted(rows.keys() | others.keys()):
        before, after = rows.get(step, {}), others.get(step, {})
        names = sorted((before.keys() | after.keys()) - {"seconds_per_step"})
        wrong += [f"step {step}, {n}" for n in names if before.get(n) != after.get(n)]
    print(f"{len(rows)} logged steps of {len(next(iter(rows.values()))) - 1} numbers compared")

    arrays, other_arrays = (final_arrays(run) for run in (one, other))
    for name in sorted(arrays.keys() | other_arrays.keys()):
        before, after = arrays.get(name), other_arrays.get(name)
        if before is None or after is None or before.tobytes() != after.tobytes():
            wrong.append(f"array {name}")
    numbers = sum(array.size for array in arrays.values())
    print(f"{len(arrays)} final arrays of {numbers:,} numbers compared (parameters and optimizer)")
    print("\n".join(["DIFFERENT:", *wrong[:20]]) if wrong else "identical bit for bit")
    return len(wrong)


def final_arrays(workdir: Workdir) -> dict[str, np.ndarray]:
    """Every array of the last checkpoint, by name."""
    step = saved_steps(workdir)[-1]
    folder = workdir.checkpoints.absolute() / str(step) / STATE
    checkpointer = ocp.PyTreeCheckpointer()
    on_host = jax.tree.map(
        lambda _: ocp.RestoreArgs(restore_type=np.ndarray),
        checkpointer.metadata(folder).item_metadata.tree,
    )
    tree = checkpointer.restore(folder, restore_args=on_host)
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


if __name__ == "__main__":
    main()
