"""Speed and memory of the reader on one core: `python benchmarks/reader.py [--root DIR]`.

Makes episodes as BridgeData V2 has them (38 steps of four 256x256 cameras), packs them with `pack`
and reads their windows in shuffled order: the record from its file, checked, parsed, and of 38
frames a camera the nine that are used decoded. Hardly two windows in a row share an episode, so
almost every window reads a record of its own.

With --root also in order at 64x64 from that dataset: adjacent windows of an episode read its record
once, but each decodes, cuts and resizes its own frames.
Rates are of the time that the core works for this process, with the files in the page cache; by the
clock they are less where other processes share the core.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import tempfile
import time
from collections.abc import Iterable

import bridge_like
import cv2
import numpy as np
import psutil

from roam_jax.contracts import TimeSpec
from roam_jax.data.cached_statistics import compute_statistics
from roam_jax.data.dataset import EpisodeReader
from roam_jax.data.pack import Packing
from roam_jax.data.windows import EPISODES_KEPT, WindowOptions, WindowSource

# Cameras -> windows a second that are required, shuffled, at 256x256.
WINDOWS_A_SECOND = {1: 200, 3: 70}
# Required of --root, in order, at 64x64.
FRAMES_A_SECOND = 3000
MEMORY_GROWTH = 0.05
TIME = TimeSpec(frames=9, t_current=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--episodes", type=int, default=256)
    parser.add_argument("--windows", type=int, default=1000, help="that a pass reads, shuffled")
    parser.add_argument("--quality", type=int, default=90, help="of the JPEGs")
    parser.add_argument("--root", type=pathlib.Path, help="also a dataset, in order, at 64x64")
    parser.add_argument("--passes", type=int, default=10)
    args = parser.parse_args()
    if args.episodes <= EPISODES_KEPT:
        parser.error(f"more than {EPISODES_KEPT} episodes are needed, or they stay in memory")

    cores = pin_to_one_core()
    print(f"on {cores} core of {os.cpu_count()}, load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["ROAM_CACHE"] = f"{folder}/cache"
        root = make_dataset(pathlib.Path(folder), args.episodes, quality=args.quality)
        good = [
            measure_shuffled(root, cameras, windows=args.windows, passes=args.passes)
            for cameras in WINDOWS_A_SECOND
        ]
        if args.root:
            good.append(measure_in_order(args.root, passes=args.passes))
    if not all(good):
        parser.exit(1, "below what is required\n")


def pin_to_one_core() -> int:
    """Leaves this process one core and OpenCV one thread."""
    cv2.setNumThreads(1)
    core = min(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {core})
    return len(os.sched_getaffinity(0))


def make_dataset(folder: pathlib.Path, episodes: int, *, quality: int, shards: int = 4):
    """Writes TFRecords and packs them; returns the folder of the ArrayRecords."""
    frames = bridge_like.natural_jpegs(2000, quality=quality)
    rng = np.random.default_rng(0)
    stored = folder / "stored"
    stored.mkdir()
    for shard in range(shards):
        with bridge_like.shard_path(stored, shard, shards).open("wb") as file:
            for number in range(shard, episodes, shards):
                drawn = rng.integers(0, len(frames), (len(bridge_like.CAMERAS), bridge_like.STEPS))
                images = {
                    camera: [frames[i] for i in row]
                    for camera, row in zip(bridge_like.CAMERAS, drawn, strict=True)
                }
                file.writelines(bridge_like.record(number, images))
    bridge_like.describe(stored, [len(range(shard, episodes, shards)) for shard in range(shards)])
    packing = Packing(stored, folder / "packed")
    size, began = packing.missing_bytes, time.perf_counter()
    packing.run()
    seconds = time.perf_counter() - began
    print(
        f"{episodes} episodes of {bridge_like.STEPS} steps, JPEGs of quality {quality}, "
        f"{np.mean([*map(len, frames)]) / 1e3:.1f} kB on average; packed {size / 1e6:.0f} MB at "
        f"{size / 1e6 / seconds:.0f} MB/s"
    )
    return folder / "packed"


def measure_shuffled(root: pathlib.Path, cameras: int, *, windows: int, passes: int) -> bool:
    """Whether shuffled windows of some cameras come as fast as required, in flat memory."""
    reader = EpisodeReader(root, "train", cameras=bridge_like.CAMERAS[:cameras])
    source = WindowSource(
        reader,
        WindowOptions(time=TIME, image_size=(bridge_like.FRAME, bridge_like.FRAME)),
        statistics=compute_statistics(reader),
    )
    rng = np.random.default_rng(0)
    orders = [rng.permutation(len(source))[:windows] for _ in range(passes)]
    print(f"{cameras} of 4 cameras, 256x256 from ArrayRecord, {len(source):,} windows, shuffled:")
    return measure(source, orders, unit="windows", required=WINDOWS_A_SECOND[cameras])


def measure_in_order(root: pathlib.Path, *, passes: int) -> bool:
    """Whether frames of a dataset come as fast as required, in order, in flat memory."""
    reader = EpisodeReader(root, "train")
    source = WindowSource(
        reader,
        WindowOptions(time=TIME, image_size=(64, 64)),
        statistics=compute_statistics(reader),
    )
    shape = reader.frame_shapes[reader.cameras[0]]
    print(f"{root}: {shape} -> 64x64, {len(source):,} windows, in order:")
    if source.describe()["episodes"] <= EPISODES_KEPT:
        raise SystemExit(f"{root}: more than {EPISODES_KEPT} episodes are needed")
    orders = [range(len(source))] * passes
    return measure(source, orders, unit="frames", required=FRAMES_A_SECOND)


def measure(
    source: WindowSource, orders: list[Iterable[int]], *, unit: str, required: float
) -> bool:
    """Reads the windows of each order, and prints rates and the memory after each."""
    process = psutil.Process()
    rates, by_clock, resident = [], [], []
    for order in orders:
        worked, began, count = time.process_time(), time.perf_counter(), 0
        for index in order:
            window = source[int(index)]
            count += 1 if unit == "windows" else len(window["frames"])
        rates.append(count / (time.process_time() - worked))
        by_clock.append(count / (time.perf_counter() - began))
        resident.append(process.memory_info().rss)
    median = sorted(rates)[len(rates) // 2]
    # The first pass fills the allocator's pools, so growth is counted from its end.
    growth = max(resident) / resident[0] - 1
    print(
        f"  {unit}/s: median {median:,.0f}, slowest {min(rates):,.0f}, fastest "
        f"{max(rates):,.0f} over {len(rates)} passes (required: {required:,}); by the clock "
        f"{min(by_clock):,.0f} to {max(by_clock):,.0f}"
    )
    print(
        f"  resident memory: {resident[0] / 2**20:.1f} MiB after the first pass, "
        f"{max(resident) / 2**20:.1f} MiB at most, {growth:+.2%} "
        f"(required: within {MEMORY_GROWTH:.0%})"
    )
    return median >= required and growth <= MEMORY_GROWTH


if __name__ == "__main__":
    main()
