"""`python -m roam_jax VERB`: commands beside training and evaluation."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence

from roam_jax.cli.arguments import run_command
from roam_jax.spelling import did_you_mean

# Verb -> what it does; `main(argv)` of roam_jax.cli.VERB is imported when it is asked for.
VERBS = {
    "budget": "memory, FLOPs and time of a step on accelerators that are not here",
    "describe": "what a config builds and costs, or what its data holds",
    "encode": "the latents of all training windows on disk, for data.latents",
    "generate": "a video of a prompt, or the future of a recorded window with its actions",
    "pack": "a dataset as ArrayRecord shards, which are read at random",
    "report": "runs as one HTML page: curves, figures, pictures, incidents",
}


def main(argv: Sequence[str]) -> None:
    """Hands the rest of the command line to a verb; lists the verbs where there is none.

    Raises:
        ValueError: no such verb.
    """
    width = max(map(len, VERBS))
    listed = "\n".join(f"  {verb:<{width}}  {about}" for verb, about in VERBS.items())
    parser = argparse.ArgumentParser(
        prog="python -m roam_jax",
        description="Commands beside train.py and eval.py; each has a --help of its own.",
        epilog=f"verbs:\n{listed}\n\nexample:\n  python -m roam_jax describe "
        "--config configs/bridge_3loop.py:tiny",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("verb", metavar="VERB", nargs="?")
    options = parser.parse_args(argv[:1])
    if options.verb is None:
        parser.print_help()
        return
    if options.verb not in VERBS:
        raise ValueError(f"no verb {options.verb!r}: {did_you_mean(options.verb, VERBS)}")
    importlib.import_module(f"roam_jax.cli.{options.verb}").main(argv[1:])


if __name__ == "__main__":
    run_command(main)
