"""Memory of the loader over many batches: `python benchmarks/loader.py [--root DIR]`.

Shuffled batches are drawn from worker processes; resident memory (of the processes' own pages and
the shared ones, each counted once: PSS) is read at intervals. Growth is counted from a tenth of
the batches on, when every worker has read through its allocator's pools. Without --root the
embedded episodes are read.
"""

from __future__ import annotations

import argparse
import pathlib
import time

import psutil

from roam_jax.contracts import TimeSpec
from roam_jax.data.embedded import ensure_embedded
from roam_jax.data.loader import make_loader
from roam_jax.data.members import DatasetChoice, open_members
from roam_jax.data.options import WindowOptions

MEMORY_GROWTH = 0.05
READINGS = 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=pathlib.Path, help="dataset version folder")
    parser.add_argument("--batches", type=int, default=10_000)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--image_size", type=int, default=64)
    args = parser.parse_args()

    options = WindowOptions(
        time=TimeSpec(frames=9, t_current=2), image_size=(args.image_size, args.image_size)
    )
    root = args.root or ensure_embedded()
    (member,) = open_members([DatasetChoice(root)], options, cameras=("image_0",))
    loader = make_loader(member.train, batch_size=args.batch_size, seed=0, workers=args.workers)
    every, readings = max(1, args.batches // READINGS), []
    began = time.perf_counter()
    for number in range(args.batches):
        next(loader)
        if number % every == every - 1:
            readings.append(resident())
    seconds = time.perf_counter() - began
    loader.close()
    first = readings[len(readings) // 10]
    growth = max(readings[len(readings) // 10 :]) / first - 1
    print(
        f"{args.batches:,} batches of {args.batch_size} windows by {args.workers} workers from "
        f"{len(member.train)} windows: {args.batches * args.batch_size / seconds:,.0f} windows/s"
    )
    print(
        f"resident memory of all processes: {first / 2**20:.1f} MiB after a tenth, "
        f"{readings[-1] / 2**20:.1f} MiB at the end, {growth:+.2%} at most "
        f"(required: within {MEMORY_GROWTH:.0%})"
    )
    if growth > MEMORY_GROWTH:
        parser.exit(1, "memory grows\n")


def resident() -> int:
    """Bytes of this process and its children, shared pages counted once."""
    own = psutil.Process()
    return sum(p.memory_full_info().pss for p in (own, *own.children(recursive=True)))


if __name__ == "__main__":
    main()
