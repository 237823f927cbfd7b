"""`python -m roam_jax encode`: the latents of all training windows on disk, for `data.latents`."""

from __future__ import annotations

import argparse
import pathlib
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from roam_jax.cli.arguments import load_config, make_parser, override, parse
from roam_jax.cli.pack import size
from roam_jax.cli.progress import Progress

if TYPE_CHECKING:
    from roam_jax.data.latent_shards import Encoding, Part
    from roam_jax.data.members import Member
    from roam_jax.tasks.build import Experiment

STOPPED = 130


def main(argv: Sequence[str]) -> None:
    """Parses the command line, says what it will take, encodes, says what to do next."""
    options, overrides = parse(_parser(), argv)
    _check(options)
    config = load_config(options.config)
    override(config, overrides)
    if options.stride is not None:
        config.data.latents_stride = options.stride
    # What this command makes, and nothing else, is what it is about.
    config.data.encode_once, config.data.latents = 0, ""

    # Imported late, so that --help and a mistyped option answer at once.
    from roam_jax.tasks.build import build
    from roam_jax.tasks.latents import plan_encodings

    experiment = build(config)
    if not hasattr(experiment.model, "backbone"):
        raise ValueError(f"train.task = {config.train.task}: expected one that reads latents")
    encodings = plan_encodings(
        experiment,
        options.out,
        copies=options.copies,
        dtype=options.dtype,
        shard_windows=options.shard_windows,
        arguments=_arguments(options, overrides),
        part=_part(options.process),
    )
    for member, encoding in zip(experiment.members, encodings, strict=True):
        _print_plan(member, encoding)
    _require_space(encodings)
    if not options.dry_run:
        _run(options, experiment, encodings)


def _parser() -> argparse.ArgumentParser:
    parser = make_parser(
        "Encode the training windows of a config with its VAE, once, into shards on disk. An "
        "interrupted run goes on when the same command is run again.",
        example="python -m roam_jax encode --config configs/bridge_3loop.py:tiny --out latents/tiny"
        "\n  python train.py --config configs/bridge_3loop.py:tiny --workdir runs/tiny "
        "--config.data.latents=latents/tiny",
    )
    parser.prog = "python -m roam_jax encode"
    parser.add_argument("--config", required=True, metavar="FILE[:VARIANT]")
    parser.add_argument(
        "--out",
        required=True,
        type=pathlib.Path,
        metavar="DIR",
        help="folder to fill: new, empty, or begun by an earlier run",
    )
    parser.add_argument(
        "--stride",
        type=int,
        metavar="N",
        help="every n-th start of an episode is a window (--config.data.latents_stride)",
    )
    parser.add_argument(
        "--copies",
        type=int,
        default=0,
        metavar="K",
        help="draws of each window, where data.augment or data.goal is random; 0 = as it is",
    )
    parser.add_argument(
        "--dtype", choices=("float32", "float16"), default="float32", help="of latents on disk"
    )
    parser.add_argument(
        "--process", default="0/1", metavar="I/N", help="encode every N-th shard, from I (0..N-1)"
    )
    parser.add_argument("--batch", type=int, default=8, help="windows of a call of the VAE")
    parser.add_argument(
        "--shard_windows",
        type=int,
        default=256,
        metavar="N",
        help="windows of a shard, each with its K copies: the most that a kill loses",
    )
    parser.add_argument("--dry_run", action="store_true", help="print what it will take, and stop")
    return parser


def _check(options: argparse.Namespace) -> None:
    if options.batch < 1 or options.shard_windows < 1 or options.copies < 0:
        raise ValueError(
            f"--batch {options.batch}, --shard_windows {options.shard_windows}, --copies "
            f"{options.copies}: expected at least 1, 1 and 0"
        )
    if options.stride is not None and options.stride < 1:
        raise ValueError(f"--stride {options.stride}: expected at least 1")
    _part(options.process)


def _arguments(options: argparse.Namespace, overrides: list[str]) -> list[str]:
    """The command without where it writes and which part, as the folder remembers it."""
    arguments = ["--config", options.config, *overrides]
    for name in ("stride", "copies", "dtype", "shard_windows"):
        value = getattr(options, name)
        if value is not None:
            arguments += [f"--{name}", str(value)]
    return arguments


def _part(text: str) -> Part:
    from roam_jax.data.latent_shards import Part

    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise ValueError(f"--process {text}: expected I/N with 0 <= I < N, such as 0/4")
    return Part(int(index), int(count))


def _print_plan(member: Member, encoding: Encoding) -> None:
    layout = encoding.layout
    named = f" of {member.name}" if member.name else ""
    every = f", every {layout.stride} starts" if layout.stride > 1 else ""
    copies = f", {layout.copies} copies each" if layout.drawn else ""
    print(f"windows{named}: {layout.windows:,} of {len(member.train):,}{every}{copies}")
    print(
        f"size:    {size(layout.window_bytes)} a window, {size(encoding.size())} in "
        f"{layout.shards:,} shards; {size(encoding.free)} free"
    )
    print(
        f"here:    {len(encoding.missing):,} of {len(encoding.ours):,} shards to encode, "
        f"{encoding.missing_windows:,} windows, {size(encoding.size(encoding.missing))}"
    )


def _require_space(encodings: Sequence[Encoding]) -> None:
    needed = sum(encoding.size(encoding.missing) for encoding in encodings)
    free = min(encoding.free for encoding in encodings)
    if needed > free:
        raise ValueError(
            f"--out {encodings[0].out}: {size(needed)} are needed, {size(free)} are free; a larger "
            "--stride or --dtype float16 needs less"
        )


def _run(
    options: argparse.Namespace, experiment: Experiment, encodings: Sequence[Encoding]
) -> None:
    """Encodes all datasets in turn."""
    from roam_jax.tasks.latents import layout_encoder

    began, windows = time.monotonic(), sum(encoding.missing_windows for encoding in encodings)
    complete = []
    # One of all datasets, which differ in nothing that it depends on.
    encode = layout_encoder(experiment, encodings[0].layout) if windows else _nothing
    try:
        with Progress(windows, done="encoded", unit="window", things="windows") as progress:
            for encoding in encodings:
                complete.append(
                    encoding.run(encode, batch_size=options.batch, advance=progress.advance)
                )
    except KeyboardInterrupt:
        print(
            f"stopped after {progress.done:,} of {windows:,} windows; the same command goes on "
            "with the first shard that was not finished",
            file=sys.stderr,
        )
        sys.exit(STOPPED)
    seconds = time.monotonic() - began
    rate = windows / seconds if windows else 0.0
    print(f"encoded: {windows:,} windows in {seconds:,.1f} s ({rate:,.1f} a second)")
    if all(complete):
        print(f"next:    train.py with --config.data.latents={options.out}")
    else:
        print(
            "next:    shards of other processes are missing; the last of them completes the folder"
        )


def _nothing(videos: object) -> dict:
    raise AssertionError(f"no shard is missing, and yet {videos} are to be encoded")
