"""`python -m roam_jax budget`: what a training step needs on devices that are not there.

The real step is compiled ahead of time at its real size; no array of it is allocated, and neither
data nor weights are opened beyond their headers.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import pathlib
import re
from collections.abc import Sequence

import ml_collections
from absl import logging

from roam_jax.accelerators import ACCELERATORS, by_name
from roam_jax.axes import MESH_AXES
from roam_jax.cli.arguments import load_config, make_parser, override, parse
from roam_jax.spelling import check_choice

UNITS = {"GB": 1e9, "GiB": 1 << 30, "MB": 1e6, "MiB": 1 << 20}


def main(argv: Sequence[str]) -> None:
    """Parses the command line, prints the budget, writes it as JSON where that is asked for."""
    options, overrides = parse(_parser(), argv)
    config = load_config(options.config)
    override(config, overrides)
    _check(options)
    if options.rounds is not None:
        config.loop.rounds = options.rounds
    _start_jax(options.devices)

    # Imported late, so that --help and a mistyped key answer at once.
    from roam_jax.budget.account import Setting
    from roam_jax.cli.budget_text import budget_lines

    accelerator = by_name(options.accelerator)
    memory = accelerator.memory if options.hbm is None else options.hbm
    setting = Setting(
        accelerator, memory, options.devices, options.devices_per_node, options.mesh or {}
    )
    found = {"name": options.config, **_budget(config, setting, options)}
    print("\n".join(budget_lines(found)))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = make_parser(
        "Print what a training step of a config needs on each of so many devices: bytes, FLOPs, "
        "what is sent between devices, time. Needs no such device, no data and no weights: the "
        "real step is compiled ahead of time without being allocated.",
        example="python -m roam_jax budget --config configs/bridge_3loop.py --devices 8 "
        "--mesh fsdp=8 --hbm 40GB",
    )
    parser.prog = "python -m roam_jax budget"
    parser.add_argument("--config", metavar="FILE[:VARIANT]", required=True)
    parser.add_argument("--devices", type=int, default=1, metavar="N", help="default: 1")
    parser.add_argument(
        "--mesh",
        type=mesh_sizes,
        metavar="AXIS=N,...",
        help=f"devices along {', '.join(MESH_AXES)}; an axis that is left out has 1, data the "
        "rest (default: as the config has it)",
    )
    parser.add_argument(
        "--accelerator",
        default=ACCELERATORS[0].name,
        metavar="NAME",
        help=f"one of {', '.join(each.name for each in ACCELERATORS)} (default: %(default)s)",
    )
    parser.add_argument(
        "--hbm",
        type=memory_size,
        metavar="SIZE",
        help="memory of a device, such as 40GB (default: the accelerator's)",
    )
    parser.add_argument("--devices_per_node", type=int, default=8, metavar="N", help="default: 8")
    parser.add_argument(
        "--rounds", type=int, metavar="R", help="loop.rounds (default: the config's)"
    )
    parser.add_argument(
        "--compile_for",
        default="auto",
        metavar="PLATFORM",
        help="cuda (with JAX's CUDA plugin installed; no GPU is needed), cpu, or auto: cuda where "
        "that can be done (default: %(default)s)",
    )
    parser.add_argument(
        "--no_compile",
        action="store_true",
        help="the analytic account alone, in seconds; nothing is known of what is sent then",
    )
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="also write it there")
    return parser


def mesh_sizes(text: str) -> dict[str, int]:
    """Parses "fsdp=8" or "data=2,fsdp=4".

    Raises:
        argparse.ArgumentTypeError: anything else.
    """
    found: dict[str, int] = {}
    for part in text.split(","):
        axis, _, size = part.strip().partition("=")
        if axis not in MESH_AXES or not re.fullmatch(r"-1|[1-9]\d*", size) or axis in found:
            raise argparse.ArgumentTypeError(
                f"{text!r}: expected AXIS=N,... with each axis of {', '.join(MESH_AXES)} at most "
                "once and N of 1 or more, or -1, the rest"
            )
        found[axis] = int(size)
    return found


def memory_size(text: str) -> float:
    """Parses "40GB" or "37.5GiB" to bytes.

    Raises:
        argparse.ArgumentTypeError: anything else.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]+)", text.strip())
    if match is None or match[2] not in UNITS or not float(match[1]):
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected a size with one of the units {', '.join(UNITS)}, such as 40GB"
        )
    return float(match[1]) * UNITS[match[2]]


def _check(options: argparse.Namespace) -> None:
    """Refuses numbers out of range and unknown names, before JAX starts."""
    for name in ("devices", "devices_per_node", "rounds"):
        if (value := getattr(options, name)) is not None and value < 1:
            raise ValueError(f"--{name} {value}: expected 1 or more")
    check_choice("--compile_for", options.compile_for, ("auto", "cuda", "cpu"))
    by_name(options.accelerator)
    if options.json and not options.json.parent.is_dir():
        raise FileNotFoundError(f"--json {options.json}: no folder {options.json.parent}")
    if options.devices > options.devices_per_node and options.devices % options.devices_per_node:
        raise ValueError(
            f"--devices {options.devices}: expected a multiple of --devices_per_node = "
            f"{options.devices_per_node}, or fewer"
        )


def _start_jax(devices: int) -> None:
    """As many fake CPUs; a GPU that happens to be here is left alone."""
    os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"  # its driver is not needed
    import jax

    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", devices)


def _budget(config: ml_collections.ConfigDict, setting, options: argparse.Namespace) -> dict:
    """The report, with the smallest change that fits where the step does not."""
    import jax

    from roam_jax.budget.account import compile_step, estimate, report
    from roam_jax.budget.changes import smallest_change
    from roam_jax.budget.targets import choose_platform

    def try_it(config, setting):
        return estimate(config, setting, jax.devices()[: setting.count])

    def account(found, config, setting):
        compiled = None
        if not options.no_compile:
            platform = choose_platform(options.compile_for, setting.accelerator)
            compiled = compile_step(config, setting, platform=platform)
        return report(found, setting, compiled=compiled)

    asked = try_it(config, setting)
    made = {**account(asked, config, setting), "change": None}
    if made["bytes"]["fits"]:
        return made
    logging.info("it does not fit: looking for the smallest change with which it does, in minutes")
    better = smallest_change(config, asked, setting, try_it=try_it)
    if better is None:
        return {**made, "change": {"flags": None}}
    change, changed, found = better
    with_it = account(found, changed, dataclasses.replace(setting, mesh={}))
    return {**made, "change": {"flags": str(change), **with_it}}
