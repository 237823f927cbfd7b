"""A toy training run as its own process, which ends itself at a chosen moment.

`python -m tests.train.child WORKDIR EVENT STEP`; EVENT is kill (SIGKILL before batch STEP is
drawn), save (SIGKILL while the checkpoint of STEP is written) or term (SIGTERM at batch STEP).
"""

from __future__ import annotations

import os
import pathlib
import signal
import sys
import threading
import time

from roam_jax.train import loop
from tests.train import toy


def kill_during_save(folder: pathlib.Path) -> None:
    """Watches for the temporary folder of a checkpoint whose arrays are being written."""
    while not folder.is_dir() or not any(folder.iterdir()):
        time.sleep(0.001)
    os.kill(os.getpid(), signal.SIGKILL)


def main(workdir: str, event: str, step: int) -> None:
    path = pathlib.Path(workdir)
    tmp = path / "checkpoints" / f"{step}.orbax-checkpoint-tmp"
    actions = {
        "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
        "term": lambda: os.kill(os.getpid(), signal.SIGTERM),
        "save": lambda: threading.Thread(target=kill_during_save, args=[tmp], daemon=True).start(),
    }
    # Batch step - 1 is the last one before the checkpoint of `step`.
    drawn = step - 1 if event == "save" else step
    loop.run(
        toy.make_task(),
        toy.ToyBatches({drawn: actions[event]}),
        config=toy.make_config(mesh=(2, 4)),
        workdir=path,
        rounds=2,
        rules=toy.RULES,
    )


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
