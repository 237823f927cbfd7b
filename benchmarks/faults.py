"""Fault drill: `python benchmarks/faults.py [--kills 100] [--only kills damage disk records]`.

A run is disturbed in every way that ends real runs: killed while it starts, trains and saves; its
checkpoint files truncated, changed by one bit, or deleted; its disk full; its data broken. Each
time it must end with the parameters, optimizer state and logged numbers of the undisturbed run, bit
for bit, or stop with one message that says what is wrong and, once that is put right, end with
them.
The table counts both; whatever else happens is listed below it, and the exit code is then 1.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import functools
import pathlib
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

from absl import logging

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # for tests.train

from benchmarks import fault_kinds
from benchmarks.fault_runs import Command, Program, Toy

KINDS = ("kills", "damage", "disk", "records")


@dataclasses.dataclass
class Table:
    """Counts of what happened.

    Args:
        same: kind of fault -> runs that ended as the undisturbed one.
        refused: kind of fault -> those of them that stopped with a message first.
        wrong: what should not be.
    """

    same: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    refused: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    faults: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    wrong: list[str] = dataclasses.field(default_factory=list)

    def add(self, fault: fault_kinds.Fault) -> None:
        """Counts one fault."""
        self.faults[fault.kind] += 1
        self.same[fault.kind] += fault.outcome == "same"
        self.refused[fault.kind] += fault.outcome == "refused, then same"
        if fault.problem:
            self.wrong.append(f"{fault.kind}: {fault.problem}")
        print(f"{time.strftime('%H:%M:%S')} {fault.kind}: {fault.outcome}", flush=True)

    def print(self) -> None:
        """The table, in Markdown."""
        print(
            "| fault | times | ended the same | stopped with its message, then the same | wrong |"
        )
        print("|---|---|---|---|---|")
        for kind, count in self.faults.items():
            same, refused = self.same[kind], self.refused[kind]
            print(f"| {kind} | {count} | {same} | {refused} | {count - same - refused} |")
        sums = (sum(c.values()) for c in (self.faults, self.same, self.refused))
        total, same, refused = sums
        print(f"| all | {total} | {same} | {refused} | {total - same - refused} |")
        print("\n".join(["", *self.wrong]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--damages", type=int, default=30)
    parser.add_argument("--disks", type=int, default=12)
    parser.add_argument("--records", type=int, default=6)
    parser.add_argument("--only", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--config", help="kill train.py on this config; default: a two-layer toy")
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--save_every", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0, help="of what is done when")
    parser.add_argument("--folder", type=pathlib.Path, help="where the runs go; default: removed")
    args = parser.parse_args()
    logging.set_verbosity(logging.ERROR)
    table = Table()
    program = functools.partial(program_of, args)
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or pathlib.Path(temporary)
        for fault in drill(args, program, folder, random.Random(args.seed)):
            table.add(fault)
    table.print()
    sys.exit(1 if table.wrong else 0)


def program_of(args: argparse.Namespace, keep: int = 2) -> Program:
    """The run that is killed, and whose checkpoints and disk are."""
    if not args.config:
        return Toy(args.steps, args.save_every, keep)
    leaves = {"train.save_every": args.save_every, "train.keep": keep}
    return Command(args.config, args.steps, leaves)


def program_on(data: pathlib.Path, compiled: pathlib.Path) -> Program:
    """The run whose data are broken, read as it trains."""
    leaves = {
        "train.save_every": 2,
        "train.batch_size": 2,
        "train.compile_cache": compiled.absolute(),
        "optim.warmup_steps": 2,
        "data.encode_once": 0,
        "data.root": data.absolute(),
    }
    return Command("configs/bridge_3loop.py:tiny", 8, leaves)


def drill(
    args: argparse.Namespace,
    program: Callable[..., Program],
    folder: pathlib.Path,
    chance: random.Random,
) -> Iterator[fault_kinds.Fault]:
    """All faults that are asked for, one after the other."""
    if "records" in args.only:
        on = functools.partial(program_on, compiled=folder / "compiled")
        yield from fault_kinds.broken_records(on, folder, args.records, chance)
    if "disk" in args.only:
        hoarding = program(keep=args.steps)
        yield from fault_kinds.full_disks(hoarding, folder, args.disks, chance)
    if not {"kills", "damage"} & {*args.only}:
        return
    expected = fault_kinds.undisturbed(program(), folder / "undisturbed")
    if "kills" in args.only:
        yield from fault_kinds.kills(program(), expected, args.kills, chance)
    if "damage" in args.only:
        yield from fault_kinds.damages(program(), expected, args.damages, chance)


if __name__ == "__main__":
    main()
