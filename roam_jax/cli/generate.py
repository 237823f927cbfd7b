"""`python -m roam_jax generate`: a video of a prompt, or the future of a recorded window.

With `--model` a converted CogVideoX makes a video of a prompt, or continues given frames. With
`--workdir` a trained run continues a window of its data, video and actions together.
"""

from __future__ import annotations

import argparse
import pathlib
import re
import resource
import sys
from collections.abc import Sequence

from roam_jax.cli.arguments import make_parser, parse
from roam_jax.cli.pack import size as bytes_text

# As in the published example.
GUIDANCE, STEPS, RATE = 6.0, 50, 8.0
# Options of one way alone -> what they are without it.
OF_MODEL = {
    "prompt": None,
    "negative_prompt": "",
    "embeddings": None,
    "frames": None,
    "size": None,
    "guidance": None,
    "dynamic_guidance": False,
    "first_frames": None,
    "first_count": None,
    "clean_timestep": "global",
    "tile": None,
}
OF_WORKDIR = {"step": None, "window": 0, "split": "val", "rounds": None, "extrapolate": None}


def main(argv: Sequence[str]) -> None:
    """Parses the command line, samples, prints what was written and what it took."""
    options, overrides = parse(_parser(), argv)
    _check(options, overrides)

    # Imported late, so that --help and a mistyped option answer at once.
    from roam_jax.video_files import check_video_file

    check_video_file(options.out, rate=RATE if options.rate is None else options.rate)
    if options.workdir is not None:
        from roam_jax.cli.generate_window import generate_window

        generate_window(options, overrides)
    else:
        from roam_jax.cli.generate_video import generate_video

        generate_video(options)
    print(f"memory:   at most {bytes_text(peak_memory())} resident")


def _parser() -> argparse.ArgumentParser:
    parser = make_parser(
        "Make a video of a prompt with a converted CogVideoX, or continue a window of a trained "
        "run's data.",
        example='python -m roam_jax generate --model converted --prompt "A panda plays a guitar." '
        "--out panda.mp4\n"
        '  python -m roam_jax generate --model tiny --prompt "touch the green cylinder" '
        "--out tiny.gif\n"
        "  python -m roam_jax generate --workdir runs/tiny --window 3 --out future.mp4",
    )
    parser.prog = "python -m roam_jax generate"
    add = parser.add_argument
    add("--out", required=True, type=pathlib.Path, metavar="FILE", help="video: .mp4 or .gif")
    add("--steps", type=int, default=STEPS, metavar="N", help="denoising steps (%(default)s)")
    add(
        "--sampler",
        default="auto",
        choices=["auto", "ddim", "dpm"],
        help="auto: as the model's scheduler says, ddim for a run",
    )
    add("--seed", type=int, metavar="N", help="of all noise (default: 0, of a run the window)")
    add("--rate", type=float, metavar="HZ", help="frames a second (8; of a run that of its data)")
    _add_model_options(parser.add_argument_group("a model that was converted from diffusers"))
    _add_workdir_options(parser.add_argument_group("a trained run"))
    return parser


def _add_model_options(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--model",
        metavar="DIR",
        help="folder of `python -m convert import`, or tiny for the weights of this package",
    )
    add("--prompt", metavar="TEXT")
    add("--negative_prompt", default="", metavar="TEXT", help="what guidance leads away from")
    add(
        "--embeddings",
        type=pathlib.Path,
        metavar="FILE",
        help="of `python -m convert text`, in place of the model's text encoder; holds the prompts",
    )
    add("--frames", type=int, metavar="N", help="4n + 1 (default: as the model was trained)")
    add("--size", type=_size, metavar="HxW", help="pixels (default: as the model was trained)")
    add(
        "--guidance",
        type=float,
        metavar="SCALE",
        help=f"1 = none, which halves the time (default: {GUIDANCE:g}, and 1 with tiny)",
    )
    add(
        "--dynamic_guidance",
        action="store_true",
        help="guidance that changes from step to step, recommended for the 5B model with dpm",
    )
    add(
        "--first_frames",
        type=pathlib.Path,
        metavar="FILE|DIR",
        help="video, picture or folder of pictures that the video continues: 4n + 1 frames",
    )
    add("--first_count", type=int, metavar="N", help="only so many frames of it, from its start")
    add(
        "--clean_timestep",
        default=OF_MODEL["clean_timestep"],
        choices=["global", "zero"],
        help="what modulates the first frames: the step's timestep, or one of their own, 0 (which "
        "one the model was trained with: loss.clean_timestep; default: %(default)s)",
    )
    add(
        "--tile",
        type=_size,
        metavar="HxW",
        help="the VAE decodes frames with more pixels in tiles of this size (240x360)",
    )


def _add_workdir_options(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--workdir", type=pathlib.Path, metavar="RUN", help="folder of a run, or model directory")
    add("--step", type=int, metavar="N", help="which checkpoint (default: the latest)")
    add("--window", type=int, default=0, metavar="N", help="which window (%(default)s)")
    add(
        "--split",
        default="val",
        help="which windows: train or val, of a mixture such as val/NAME (%(default)s)",
    )
    add("--rounds", type=int, metavar="R", help="number of rounds (default: the trained one)")
    add("--extrapolate", choices=["last"], help="more rounds reuse the parameters of the last one")


def _size(text: str) -> tuple[int, int]:
    """Parses "480x720"."""
    try:
        height, width = map(int, text.split("x"))
    except ValueError as error:
        message = f"{text!r}: expected height x width in pixels, such as 480x720"
        raise argparse.ArgumentTypeError(message) from error
    return height, width


def _check(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Refuses an option of the way that was not chosen."""
    if (options.model is None) == (options.workdir is None):
        raise ValueError("expected --model DIR (with --prompt) or --workdir RUN, one of the two")
    way, others = ("--workdir", OF_MODEL) if options.model is None else ("--model", OF_WORKDIR)
    given = [name for name, default in others.items() if getattr(options, name) != default]
    given += [] if options.model is None else [text.partition("=")[0][2:] for text in overrides]
    if given:
        raise ValueError(f"--{given[0]} does not go with {way}")
    if options.model is not None and options.prompt is None:
        raise ValueError("--model without --prompt: expected what the video shows")
    if options.first_count is not None and options.first_frames is None:
        raise ValueError("--first_count without --first_frames")


def peak_memory() -> int:
    """Most bytes that this process had in memory, pages of mapped files among them."""
    status = pathlib.Path("/proc/self/status")
    if status.exists():
        # What getrusage says begins with the memory of the process that started this one.
        return int(re.search(r"VmHWM:\s*(\d+) kB", status.read_text())[1]) * 1024
    found = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return found if sys.platform == "darwin" else found * 1024
