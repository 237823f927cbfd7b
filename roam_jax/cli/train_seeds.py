"""`train.py --seeds`: its options, and what it does in place of one run."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
from collections.abc import Sequence
from typing import Any

import ml_collections

from roam_jax.cli.arguments import PREFIX, seeds_list


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds --seeds and --seeds_at_once."""
    parser.add_argument(
        "--seeds",
        type=seeds_list,
        metavar="0:8",
        help="train these seeds (0:8 or 0,3,5) as one program, each in WORKDIR/seeds/SEED",
    )
    parser.add_argument(
        "--seeds_at_once",
        type=int,
        metavar="N",
        help="so many of --seeds as one program (default: as many as fit in memory)",
    )


def set_first_seed(
    config: ml_collections.ConfigDict, options: argparse.Namespace, overrides: Sequence[str]
) -> None:
    """Gives the config the first of --seeds, if there are any.

    Raises:
        ValueError: options that contradict each other.
    """
    if not options.seeds:
        if options.seeds_at_once is not None:
            raise ValueError(f"--seeds_at_once {options.seeds_at_once}: expected --seeds with it")
        return
    for argument in overrides:
        if argument.startswith(f"{PREFIX}seed="):
            raise ValueError(f"{argument} with --seeds, which sets it: expected one of both")
    config.seed = options.seeds[0]


def train_seeds(experiment: Any, options: argparse.Namespace, **common: Any) -> None:
    """Trains all seeds of the options.

    Args:
        experiment: of the first seed, as `tasks.build.build` returns it.
        options: of the command line.
        common: what `train.loop.run` takes as well.
    """
    from roam_jax.train.seeds import run_seeds, with_seed

    def of(seed: int) -> Any:
        """The experiment of a seed, on the same data and model."""
        return dataclasses.replace(experiment, config=with_seed(experiment.config, seed))

    run_seeds(
        experiment.task,
        lambda seed: contextlib.closing(of(seed).batches()),
        seeds=options.seeds,
        at_once=options.seeds_at_once,
        provenances={seed: of(seed).provenance() for seed in options.seeds},
        **common,
    )
