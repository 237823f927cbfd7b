"""A toy training run as its own process, which ends itself at a chosen moment.

`python -m tests.train.child WORKDIR EVENT STEP`; EVENT is kill (SIGKILL before batch STEP is
drawn), save (SIGKILL while the checkpoint of STEP is written), term or usr1 (SIGTERM or SIGUSR1 at
batch STEP) or none. Errors end it as they end `train.py`. More options: `--help`.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import signal
import threading
import time
from collections.abc import Sequence

from roam_jax.cli.arguments import run_command
from roam_jax.train import loop
from tests.train import toy


def kill_during_save(folder: pathlib.Path) -> None:
    """Watches for the temporary folder of a checkpoint whose arrays are being written."""
    while not folder.is_dir() or not any(folder.iterdir()):
        time.sleep(0.001)
    os.kill(os.getpid(), signal.SIGKILL)


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("workdir", type=pathlib.Path)
    parser.add_argument("event", choices=["kill", "save", "term", "usr1", "none"])
    parser.add_argument("step", type=int)
    parser.add_argument("--mesh", type=int, nargs=2, default=(2, 4))
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--save_every", type=int, default=4)
    parser.add_argument("--keep", type=int, default=2)
    args = parser.parse_args(argv)
    tmp = args.workdir / "checkpoints" / f"{args.step}.saving.orbax-checkpoint-tmp"
    actions = {
        "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
        "term": lambda: os.kill(os.getpid(), signal.SIGTERM),
        "usr1": lambda: os.kill(os.getpid(), signal.SIGUSR1),
        "save": lambda: threading.Thread(target=kill_during_save, args=[tmp], daemon=True).start(),
        "none": lambda: None,
    }
    # Batch step - 1 is the last one before the checkpoint of `step`.
    drawn = args.step - 1 if args.event == "save" else args.step
    loop.run(
        toy.make_task(),
        toy.ToyBatches({drawn: actions[args.event]}),
        config=toy.make_config(
            mesh=tuple(args.mesh), steps=args.steps, save_every=args.save_every, keep=args.keep
        ),
        workdir=args.workdir,
        rounds=2,
        rules=toy.RULES,
    )


if __name__ == "__main__":
    run_command(main)
