"""The table of docs/scaling.md: `python benchmarks/budget_table.py [--write docs/scaling.md]`.

The 2B graft of configs/bridge_3loop.py on A100-40, one row of a batch for each device along data
and fsdp: every freeze policy, 1 to 4 rounds, 17 frames of 256x256 and 49 of 480x720, on 1, 8, 64
and 256 devices. Of the meshes below the first that fits is taken. All of it is the analytic account
of `python -m roam_jax budget --no_compile`, which allocates and compiles nothing; some twenty
minutes on two cores. More nodes are more devices along data, each with rows of its own: they hold
what those of one node do. Prints a line of JSON a cell.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import pathlib
from collections.abc import Iterator
from typing import Any

import jax

COUNTS = (1, 8, 64, 256)
NODE = 8
POLICIES = ("full", "half", "none", "unfrozen")
ROUNDS = (1, 2, 3, 4)
SIZES = {"17x256x256": (17, (256, 256)), "49x480x720": (49, (480, 720))}
# Meshes that are tried, by devices along the axes; data has the rest. With each, remat.
MESHES = (
    ({}, "layers"),
    ({"fsdp": 8}, "layers"),
    ({"fsdp": 8}, "blocks"),
    ({"fsdp": 4, "sequence": 2}, "layers"),
    ({"fsdp": 2, "sequence": 4}, "layers"),
    ({"fsdp": 2, "sequence": 4}, "blocks"),
    ({"sequence": 8}, "blocks"),
)
ALONE = (({}, "layers"), ({}, "blocks"))
BEGIN, END = "<!-- budget_table.py writes from here -->", "<!-- to here -->"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", type=pathlib.Path, help="file whose table is replaced")
    args = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", NODE)
    lines = []
    for size in SIZES:
        lines += ["", f"**{size}**", ""]
        counts = " | ".join(f"{n} GPU{'s' * (n > 1)}" for n in COUNTS)
        lines.append(f"| policy | rounds | {counts} |")
        lines.append("|---" * (2 + len(COUNTS)) + "|")
        for policy in POLICIES:
            for rounds in ROUNDS:
                cells = []
                for count in COUNTS:
                    if count <= NODE:
                        found = one_node = cell(size, policy, rounds, count)
                    else:
                        found = on_nodes(one_node, count)
                    print(json.dumps(found), flush=True)
                    cells.append(spelt(found))
                lines.append(f"| `{policy}` | {rounds} | " + " | ".join(cells) + " |")
    table = "\n".join(lines).strip()
    if args.write:
        text = args.write.read_text()
        before, rest = text.split(BEGIN)
        args.write.write_text(f"{before}{BEGIN}\n{table}\n{END}{rest.split(END)[1]}")
    else:
        print(table)


def cell(size: str, policy: str, rounds: int, count: int) -> dict[str, Any]:
    """The first mesh that fits, or the last one, with what a device needs and how long it takes."""
    found = {}
    for axes, remat in ALONE if count == 1 else MESHES:
        found = tried(size, policy, rounds, count, axes=axes, remat=remat)
        if found["most"] <= found["memory"]:
            break
    return found


def on_nodes(one_node: dict[str, Any], count: int) -> dict[str, Any]:
    """The same on each of several nodes, which differ along data."""
    data = one_node["mesh"].get("data", 1) * count // NODE
    mesh = {"data": data, **{a: n for a, n in one_node["mesh"].items() if a != "data"}}
    return {**one_node, "devices": count, "mesh": mesh}


def tried(
    size: str, policy: str, rounds: int, count: int, *, axes: dict[str, int], remat: str
) -> dict[str, Any]:
    from roam_jax.accelerators import by_name
    from roam_jax.budget.abstract import abstract_step, accelerator_config
    from roam_jax.budget.account import Estimate
    from roam_jax.budget.layout import device_size, shared_work
    from roam_jax.budget.liveness import peak_bytes
    from roam_jax.budget.roofline import roofline
    from roam_jax.train import sharding

    accelerator = by_name("a100-40")
    rows = count // math.prod(n for axis, n in axes.items() if axis != "fsdp")
    config = accelerator_config(run_config(size, policy, rounds, remat, rows), axes)
    mesh = sharding.make_mesh(**config.mesh, devices=jax.devices()[:count])
    step = abstract_step(config, mesh)
    program = one_row(size, policy, rounds, remat)
    size_of = device_size(step)
    estimate = Estimate(step, program, step.argument_bytes(), peak_bytes(program, size_of=size_of))
    line = roofline(program, accelerator, size_of=size_of, split=shared_work(mesh.shape))
    return {
        "size": size,
        "policy": policy,
        "rounds": rounds,
        "devices": count,
        "mesh": {axis: n for axis, n in mesh.shape.items() if n > 1},
        "remat": remat,
        "most": estimate.most,
        "memory": accelerator.memory,
        "seconds": line.expected,
    }


def run_config(size: str, policy: str, rounds: int, remat: str, batch: int) -> Any:
    from roam_jax.cli.arguments import load_config

    config = load_config("configs/bridge_3loop.py")
    config.data.frames, config.data.image_size = SIZES[size]
    config.freeze, config.loop.rounds, config.train.remat = policy, rounds, remat
    config.train.batch_size = batch
    return config


@functools.cache
def one_row(size: str, policy: str, rounds: int, remat: str) -> Any:
    """The program of a row; meshes and numbers of devices share it."""
    from roam_jax.budget.abstract import accelerator_config, gradient_program

    config = accelerator_config(run_config(size, policy, rounds, remat, 1), {})
    return gradient_program(config, rows=1)


def spelt(found: dict[str, Any]) -> str:
    """A cell: GB a device, the mesh, milliseconds."""
    gigabytes = f"{found['most'] / 1e9:.1f} GB"
    if found["most"] > found["memory"]:
        return f"({gigabytes})"
    mesh = list(parts(found["mesh"]))
    if found["remat"] != "layers":
        mesh.append(found["remat"])
    where = f" `{' '.join(mesh)}`" if mesh else ""
    return f"{gigabytes}{where}, {1e3 * found['seconds']:,.0f} ms"


def parts(mesh: dict[str, int]) -> Iterator[str]:
    """A mesh in few letters: d8 f8 s2."""
    return (f"{axis[0]}{n}" for axis, n in mesh.items())


if __name__ == "__main__":
    main()
