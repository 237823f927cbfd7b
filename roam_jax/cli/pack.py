"""`python -m roam_jax pack`: a dataset as ArrayRecord shards, which are read at random."""

from __future__ import annotations

import pathlib
import time
from collections.abc import Sequence

import tqdm

from roam_jax.cli.arguments import make_parser
from roam_jax.cli.progress import Progress


def main(argv: Sequence[str]) -> None:
    """Parses the command line, copies, prints what was copied and how to use it."""
    parser = make_parser(
        "Copy a tfds dataset (TFRecord or ArrayRecord) into ArrayRecord shards without encoding "
        "anything again. Every record is checked. An interrupted copy goes on when the same "
        "command is run again; a finished one is left as it is.",
        example="python -m roam_jax pack --src bridge_dataset/1.0.0 --out packed/bridge/1.0.0",
    )
    parser.prog = "python -m roam_jax pack"
    parser.add_argument(
        "--src", required=True, type=pathlib.Path, metavar="DIR", help="version folder to copy"
    )
    parser.add_argument(
        "--out",
        required=True,
        type=pathlib.Path,
        metavar="DIR",
        help="folder to fill: new, empty, or begun by an earlier run",
    )
    parser.add_argument(
        "--split",
        action="append",
        default=[],
        metavar="NAME",
        help="copy this split alone (may be given several times); all of them without it",
    )
    options = parser.parse_args(argv)

    # Imported late, so that --help and a mistyped option answer at once.
    from roam_jax.data.pack import Packing

    packing = Packing(options.src, options.out, splits=options.split)
    began = time.monotonic()
    copied = packing.missing_bytes
    with Progress(copied, done="packed", unit="B", shown=size, scaled=True) as progress:
        packing.run(progress.advance)
    seconds = time.monotonic() - began
    there = len(packing.shards) - len(packing.missing)
    print(
        f"packed: {len(packing.missing):,} shards, {size(copied)} in {seconds:,.1f} s"
        + (f"; {there:,} were there" if there else "")
    )
    print(f"now:    {len(packing.shards):,} shards, {packing.episodes:,} episodes in {packing.out}")
    if packing.left:
        print(
            f"left:   {', '.join(packing.left)} (train.py reads one split to train on and one to "
            "validate on); the same command without --split copies the rest"
        )
    else:
        print(f"next:   train.py with --config.data.root={packing.out}")


def size(count: int) -> str:
    """Bytes as people read them, such as 1.23 GB."""
    text = tqdm.tqdm.format_sizeof(count)
    number = text.rstrip("kMGTPEZ")
    return f"{number} {text[len(number) :]}B"
