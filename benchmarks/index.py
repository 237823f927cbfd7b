"""Time to index 60,064 episodes and to open the index again: `python benchmarks/index.py`.

Writes records of Bridge's size and layout whose frames and embeddings are holes in the files, so
that 100 GB take two on disk; what an index looks at lies as far apart as in real ones. Every
measurement is a process of its own, and the files are dropped from the page cache before the
first.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import bridge_like
import psutil

BUILD_S, REOPEN_S = 60.0, 1.0
FRAME_BYTES = 13_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--episodes", type=int, default=bridge_like.EPISODES)
    parser.add_argument("--shards", type=int, default=64)
    parser.add_argument("--dir", type=pathlib.Path, help="where to write; default: the temporary")
    parser.add_argument("--open", type=pathlib.Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.open:
        open_once(args.open)
        return
    with tempfile.TemporaryDirectory(dir=args.dir) as folder:
        root = pathlib.Path(folder) / bridge_like.NAME / "1.0.0"
        write(root, episodes=args.episodes, shards=args.shards)
        environment = os.environ | {"ROAM_CACHE": f"{folder}/cache"}
        seconds = []
        for what in ("built", "opened again"):
            done = subprocess.run(
                [sys.executable, __file__, "--open", root],
                env=environment,
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
            taken, memory, episodes = done.stdout.split()
            seconds.append(float(taken))
            print(
                f"index of {int(episodes):,} episodes {what} in {seconds[-1]:.2f} s, "
                f"{memory} MiB more resident"
            )
        (index,) = (pathlib.Path(folder) / "cache" / "index").iterdir()
        print(f"index on disk: {index.stat().st_size / 2**20:.1f} MiB")
    print(f"required: built in {BUILD_S:.0f} s, opened again in {REOPEN_S:.0f} s")
    if seconds[0] > BUILD_S or seconds[1] > REOPEN_S:
        parser.exit(1, "slower than required\n")


def write(root: pathlib.Path, *, episodes: int, shards: int) -> None:
    """Shards with holes for frames, out of the page cache."""
    began = time.perf_counter()
    root.mkdir(parents=True)
    frames = {camera: [bridge_like.STEPS * FRAME_BYTES] for camera in bridge_like.CAMERAS}
    lengths = [len(range(shard, episodes, shards)) for shard in range(shards)]
    size = taken = 0
    for shard, count in enumerate(lengths):
        with bridge_like.shard_path(root, shard, shards).open("wb") as file:
            for number in range(count):
                for piece in bridge_like.record(sum(lengths[:shard]) + number, frames):
                    if isinstance(piece, int):
                        file.seek(piece, os.SEEK_CUR)
                    else:
                        file.write(piece)
            file.flush()
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            found = os.fstat(file.fileno())
        size, taken = size + found.st_size, taken + 512 * found.st_blocks
        if 2 * taken > size:
            raise SystemExit(f"{root}: no holes in files there; name another folder with --dir")
    bridge_like.describe(root, lengths)
    print(
        f"{shards} shards of {size / 1e9:.1f} GB ({taken / 1e9:.1f} GB on disk) written in "
        f"{time.perf_counter() - began:.0f} s"
    )


def open_once(root: pathlib.Path) -> None:
    """Prints seconds, MiB and episodes."""
    from roam_jax.data.dataset import EpisodeReader

    process = psutil.Process()
    before, began = process.memory_info().rss, time.perf_counter()
    reader = EpisodeReader(root, "train")
    taken = time.perf_counter() - began
    print(taken, round((process.memory_info().rss - before) / 2**20, 1), len(reader))


if __name__ == "__main__":
    main()
