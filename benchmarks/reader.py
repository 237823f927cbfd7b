"""Speed and memory of the reader: `python benchmarks/reader.py --root DIR [--passes 20]`.

Counted are camera frames that were decoded and delivered: every window of the split is read from
its file (checked by crc32c), parsed, decoded, cut and resized, on one core, in order, and nothing
that an earlier window of another episode left in memory is used again. With adjacent windows of one
episode the record is read once, but every window decodes its own frames.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import time

import cv2
import psutil

from roam_jax.contracts import TimeSpec
from roam_jax.data.dataset import EpisodeReader
from roam_jax.data.statistics import compute_statistics
from roam_jax.data.windows import EPISODES_KEPT, WindowSource

FRAMES_A_SECOND = 3000
MEMORY_GROWTH = 0.05


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=pathlib.Path, required=True, help="dataset version folder")
    parser.add_argument("--camera", default="image_0")
    parser.add_argument("--frames", type=int, default=9, help="frames of a window, 4n + 1")
    parser.add_argument("--image_size", type=int, default=64)
    parser.add_argument("--passes", type=int, default=20)
    args = parser.parse_args()

    cores = pin_to_one_core()
    reader = EpisodeReader(args.root, "train", camera=args.camera)
    windows = WindowSource(
        reader,
        TimeSpec(frames=args.frames, t_current=1),
        image_size=args.image_size,
        statistics=compute_statistics(reader),
    )
    if windows.describe()["episodes"] <= EPISODES_KEPT:
        parser.error(f"more than {EPISODES_KEPT} episodes are needed, or they stay in memory")
    print(
        f"{len(windows)} windows of {args.frames} frames, {reader.dataset}, {args.camera} "
        f"{reader.frame_shape} -> {args.image_size}, on {cores} core"
    )
    rates, resident = measure(windows, args.passes)
    # The first pass fills the allocator's pools, so growth is counted from its end.
    growth = max(resident) / resident[0] - 1
    print(
        f"frames/s: median {sorted(rates)[len(rates) // 2]:,.0f}, slowest {min(rates):,.0f}, "
        f"fastest {max(rates):,.0f} over {args.passes} passes (required: {FRAMES_A_SECOND:,})"
    )
    print(
        f"resident memory: {resident[0] / 2**20:.1f} MiB after the first pass, "
        f"{max(resident) / 2**20:.1f} MiB at most, {growth:+.2%} "
        f"(required: within {MEMORY_GROWTH:.0%})"
    )
    if sorted(rates)[len(rates) // 2] < FRAMES_A_SECOND or growth > MEMORY_GROWTH:
        parser.exit(1, "below what is required\n")


def pin_to_one_core() -> int:
    """Leaves this process one core and OpenCV one thread."""
    cv2.setNumThreads(1)
    core = min(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {core})
    return len(os.sched_getaffinity(0))


def measure(windows: WindowSource, passes: int) -> tuple[list[float], list[int]]:
    """Frames a second and bytes resident after each pass over all windows."""
    process = psutil.Process()
    rates, resident = [], []
    for _ in range(passes):
        start = time.perf_counter()
        frames = sum(len(windows[i]["frames"]) for i in range(len(windows)))
        rates.append(frames / (time.perf_counter() - start))
        resident.append(process.memory_info().rss)
    return rates, resident


if __name__ == "__main__":
    main()
