"""One parser style for all commands: argparse, and `--config.key=value` overrides.

Configs are Python files with `get_config(variant)`, named FILE[:VARIANT]. They are locked before
overrides are applied, so a key that does not exist is refused with the nearest one that does.
"""

from __future__ import annotations

import argparse
import errno
import importlib.util
import inspect
import logging as std_logging
import pathlib
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import NoReturn

import ml_collections
from absl import flags, logging
from ml_collections import config_flags

from roam_jax.spelling import CLOSE, nearest

PREFIX = "--config."
# Seeds lie below it, and one command trains at most so many.
MOST_SEEDS = 1 << 32
MOST_AT_A_TIME = 4096
# What a user can mend; anything else is a defect and shows its traceback.
USER_ERRORS = (
    ValueError,
    FileNotFoundError,
    FileExistsError,
    NotADirectoryError,
    IsADirectoryError,
    PermissionError,
    FloatingPointError,
    TimeoutError,
)
# The same of a disk: full, beyond a quota, read-only, failing, or gone from the network.
DISK_ERRORS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS),
    *(errno.EIO, errno.ESTALE),
)


def run_command(main: Callable[[Sequence[str]], None]) -> None:
    """Runs a command's main function; bad input ends with one message and exit code 2."""
    flags.FLAGS(sys.argv[:1])  # Grain and absl logging want parsed flags; ours are argparse's
    logging.use_absl_handler()
    logging.set_verbosity(logging.INFO)
    logging.get_absl_handler().setFormatter(None)
    logging.get_absl_handler().addFilter(_ours_or_warning)
    try:
        main(sys.argv[1:])
    except Exception as error:
        mendable = isinstance(error, USER_ERRORS) or getattr(error, "errno", None) in DISK_ERRORS
        if hosts := _connected():
            _stop_all(hosts, error, mendable=mendable)
        if not mendable:
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def _connected() -> ModuleType | None:
    """`train.hosts` in a process that it has connected with others."""
    hosts = sys.modules.get("roam_jax.train.hosts")
    return hosts if hosts and hosts.are_several() else None


def _stop_all(hosts: ModuleType, error: Exception, *, mendable: bool) -> NoReturn:
    """The same in one of several processes; what breaks because another one stopped is told so."""
    if mendable:
        print(f"error: {error}", file=sys.stderr)
    elif why := hosts.failure():
        print(f"error: {why}", file=sys.stderr)
        mendable = True
    else:
        traceback.print_exc()
    hosts.stop_all(f"{error}" if mendable else repr(error), 2 if mendable else 1)


def _ours_or_warning(record: std_logging.LogRecord) -> bool:
    return record.levelno >= std_logging.WARNING or "roam_jax" in record.pathname


def make_parser(description: str, *, example: str) -> argparse.ArgumentParser:
    """A parser whose help ends with an example."""
    return argparse.ArgumentParser(
        description=description,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def parse(
    parser: argparse.ArgumentParser, argv: Sequence[str]
) -> tuple[argparse.Namespace, list[str]]:
    """Parses a command line into its options and its `--config.key=value` overrides."""
    options, rest = parser.parse_known_args(argv)
    for argument in rest:
        if not argument.startswith(PREFIX) or "=" not in argument:
            parser.error(f"unknown argument {argument!r} (overrides are {PREFIX}key=value)")
    return options, rest


def seeds_list(text: str) -> tuple[int, ...]:
    """Parses "0:8" (from, and up to but not including), "0,3,5", or both as in "0:4,9".

    Raises:
        argparse.ArgumentTypeError: anything else, no seed, a seed twice, or more than
            `MOST_AT_A_TIME`.
    """
    problem = f"{text!r}: expected seeds such as 0:8 (0 to 7) or 0,3,5"
    seeds: list[int] = []
    for part in text.split(","):
        first, colon, last = part.strip().partition(":")
        if not first.isdecimal() or (colon and not last.isdecimal()):
            raise argparse.ArgumentTypeError(problem)
        found = range(int(first), int(last) if colon else int(first) + 1)
        if not found:
            raise argparse.ArgumentTypeError(f"{problem}; {part} has none")
        if found.stop > MOST_SEEDS:
            raise argparse.ArgumentTypeError(f"{problem}, each below 2**32")
        # Counted before any is listed: a mistyped range would fill the memory.
        if (count := len(seeds) + len(found)) > MOST_AT_A_TIME:
            raise argparse.ArgumentTypeError(
                f"{problem}, at most {MOST_AT_A_TIME:,} of them; these are {count:,} or more"
            )
        if repeated := set(seeds) & set(found):
            raise argparse.ArgumentTypeError(f"{problem}; seed {min(repeated)} is there twice")
        seeds += found
    return tuple(seeds)


def load_config(name: str) -> ml_collections.ConfigDict:
    """The config of FILE[:VARIANT], unlocked.

    Raises:
        FileNotFoundError: no such file; names one that is spelt much like it.
        ValueError: the file has no such variant.
    """
    file, _, variant = name.partition(":")
    path = pathlib.Path(file)
    if not path.is_file():
        near = nearest(path.name, [p.name for p in path.parent.glob("*.py")], cutoff=CLOSE)
        hint = f"; did you mean {path.parent / near}?" if near else ""
        raise FileNotFoundError(f"--config {name}: no file {file}{hint}")
    root = str(path.resolve().parent.parent)
    if root not in sys.path:
        sys.path.insert(0, root)  # configs import `configs.defaults`
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if variant and not inspect.signature(module.get_config).parameters:
        raise ValueError(f"--config {name}: {file} has no variants")
    return module.get_config(variant) if variant else module.get_config()


def override(config: ml_collections.ConfigDict, arguments: Sequence[str]) -> None:
    """Applies `--config.key=value` arguments in place and locks the config.

    Raises:
        ValueError: a key that does not exist (names the nearest), or a value of another type.
    """
    config.lock()
    leaves = dict(leaf_items(config))
    for argument in arguments:
        key, _, value = argument[len(PREFIX) :].partition("=")
        if key not in leaves:
            raise ValueError(
                f"{PREFIX}{key}: no such key; did you mean {PREFIX}{nearest(key, leaves)}?"
            )
        values = flags.FlagValues()
        config_flags.DEFINE_config_dict(
            "config", config, flag_values=values, sys_argv=["", argument]
        )
        try:
            values(["", argument])
        except (flags.IllegalFlagValueError, TypeError, ValueError) as error:
            kind = type(leaves[key]).__name__
            raise ValueError(f"{PREFIX}{key}={value}: expected a value of type {kind}") from error


def leaf_items(config: ml_collections.ConfigDict, prefix: str = "") -> Iterator[tuple[str, object]]:
    """(dotted key, value) of every leaf."""
    for key, value in config.items():
        if isinstance(value, ml_collections.ConfigDict):
            yield from leaf_items(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
