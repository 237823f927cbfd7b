"""Claims about looping put to the test: canvas models of several seeds, paired, with intervals.

    python benchmarks/recurrence.py --part depth --steps 2000 --seeds 0:5 --out depth.json
    python benchmarks/recurrence.py --part distillation|joint|balance|halting ...

depth: 3 blocks x 4 rounds, 12 distinct blocks, and 12 narrowed to as many block parameters, with
every gate. distillation: 4 rounds with and without self-distillation, read after 1 to 6. joint: all
regions at once, and each alone. balance: rules for their weights. halting: cells that stop.

Nothing but JAX, Flax, Optax and this project is needed. Arms that --out already holds are skipped,
so a run may be continued. `--table FILE...` prints the tables of finished runs again.
"""

from __future__ import annotations

import argparse
import ast
import json
import pathlib
import sys
import time
from collections.abc import Sequence
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import jax
import ml_collections
import numpy as np
from recurrence_arms import PARTS, Arm
from recurrence_runs import Measurement, sizes, train
from recurrence_tables import tables

from configs import canvas_contact, canvas_toy
from roam_jax.cli.arguments import seeds_list

UNROLL = {"auto": None, "yes": True, "no": False}
SCENE_KEYS = ("scene", "objects", "observed_frames", "questions")


def make_config(arm: Arm, options: argparse.Namespace) -> ml_collections.ConfigDict:
    """The arm's variant of configs/canvas_toy.py, its changes, and those of the command line."""
    config = canvas_toy.get_config(arm.variant)
    if options.scene == "contact":
        scene = canvas_contact.get_config("")
        config.data.update({key: scene.data[key] for key in SCENE_KEYS})
    config.train.steps, config.train.batch_size = options.steps, options.batch
    config.optim.lr = options.lr
    given = dict(change.split("=", 1) for change in options.set)
    changes = {key: ast.literal_eval(value) for key, value in given.items()}
    for key, value in (changes | dict(arm.changes)).items():
        section, leaf = key.split(".")
        config[section][leaf] = value
    return config


def run_arm(arm: Arm, options: argparse.Namespace, seeds: Sequence[int]) -> dict[str, Any]:
    """Trains and measures one arm; what it returns is JSON."""
    config = make_config(arm, options)
    found = train(
        config,
        seeds=seeds,
        chunk=options.chunk,
        cosines=arm.cosines,
        unroll=UNROLL[options.unroll],
    )
    model, trained = found.model, config.loop.rounds
    print(
        f"{arm.name}: {options.steps} steps x {len(seeds)} seeds in {found.seconds:.0f} s "
        f"(compiled in {found.compiled:.0f} s)",
        flush=True,
    )
    measured = {}
    for threshold in arm.thresholds:
        exits = arm.exits or (trained,)
        measure = Measurement(
            model, rounds=max(exits), examples=options.examples, threshold=threshold
        )
        noises = ("trained", "pure", *(model.diffused if arm.alone else ()))
        for exit in exits:
            name = str(exit) if threshold is None else f"{exit} at {threshold}"
            measured[name] = {
                noise: measure(found.params, rounds=exit, noise=noise) for noise in noises
            }
    return as_json(
        {
            "changes": dict(arm.changes) | {"variant": arm.variant},
            "rounds": trained,
            "objectives": {name: model.regions[name].objective for name in model.predicted},
            "sizes": sizes(model, rounds=trained),
            "seconds": found.seconds,
            "compile_seconds": found.compiled,
            "curves": found.curves,
            "cosines": found.cosines,
            "measured": measured,
        }
    )


def as_json(tree: Any) -> Any:
    """Arrays as lists."""
    if isinstance(tree, dict):
        return {str(name): as_json(value) for name, value in tree.items()}
    if isinstance(tree, np.ndarray):
        return np.round(tree.astype(float), 6).tolist()
    return tree


def seeds_of(text: str) -> list[int]:
    """`seeds_list` as JSON has it."""
    return list(seeds_list(text))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", choices=PARTS)
    parser.add_argument("--scene", choices=("multimodal", "contact"), default="multimodal")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seeds", type=seeds_of, default=seeds_of("0:5"), help="0:5 or 0,3")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--chunk", type=int, default=100, help="steps of one call to the device")
    parser.add_argument("--examples", type=int, default=2048, help="that are measured")
    parser.add_argument(
        "--unroll", choices=UNROLL, default="auto", help="no compiles faster (default: auto)"
    )
    parser.add_argument("--arms", nargs="+", help="only those whose name holds one of these")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.LEAF=VALUE")
    parser.add_argument("--minutes", type=float, default=1e9, help="start no arm after so many")
    parser.add_argument("--out", type=pathlib.Path, help="JSON; default PART.json")
    parser.add_argument("--table", type=pathlib.Path, nargs="+", help="print these, and stop")
    return parser.parse_args()


def main() -> None:
    options = parse()
    if options.table:
        for path in options.table:
            print(tables(json.loads(path.read_text())), end="\n\n")
        return
    if not options.part:
        raise SystemExit(f"--part: expected one of {', '.join(PARTS)}")
    out = options.out or pathlib.Path(f"{options.part}.json")
    keys = ("part", "scene", "steps", "seeds", "batch", "lr", "examples", "set")
    settings = {key: getattr(options, key) for key in keys}
    result = {"settings": settings, "device": device(), "arms": {}}
    if out.exists():
        before = json.loads(out.read_text())
        if before["settings"] != settings:
            raise SystemExit(f"{out} holds a run with other settings: {before['settings']}")
        result["arms"] = before["arms"]
    began = time.perf_counter()
    for arm in PARTS[options.part](options.scene):
        wanted = options.arms is None or any(p in arm.name for p in options.arms)
        if not wanted or arm.name in result["arms"]:
            continue
        if time.perf_counter() - began > 60 * options.minutes:
            print(f"{arm.name}: not started, {options.minutes} minutes are over", flush=True)
            continue
        result["arms"][arm.name] = run_arm(arm, options, options.seeds)
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(result) + "\n")
    if not result["arms"]:
        raise SystemExit(f"no arm of {options.part} is named like {options.arms}")
    print(tables(result))


def device() -> str:
    """What it ran on."""
    return f"{jax.devices()[0].device_kind}, jax {jax.__version__}"


if __name__ == "__main__":
    main()
