"""Simulated worlds: steps a second of MJX and of native MuJoCo, how well both agree, and frames.

    python benchmarks/worlds.py reach/arm3 push/arm3 walk/biped

Physics and control steps are of all episodes together, by the clock, and physics steps also by the
time that cores work for this process, which other processes hardly change. Both sides start from
the same draws and take the same random actions; their difference is that of any generalised
position (m or rad) after 100 physics steps, by episode.
"""

from __future__ import annotations

import argparse
import time

import jax
import numpy as np

from roam_jax.sim.mjx_worlds import MJXWorlds
from roam_jax.sim.native import NativeWorlds
from roam_jax.sim.worlds import WORLDS, make_world

COLUMNS = (
    ("world", "{}"),
    ("MJX compile s", "{:.0f}"),
    ("MJX physics/s", "{:,.0f}"),
    ("MJX control/s", "{:,.0f}"),
    ("MJX physics/core s", "{:,.0f}"),
    ("native physics/s", "{:,.0f}"),
    ("native control/s", "{:,.0f}"),
    ("native physics/core s", "{:,.0f}"),
    ("difference median", "{:.1e}"),
    ("95 %", "{:.1e}"),
    ("largest", "{:.1e}"),
    ("frames/s", "{:,.0f}"),
)
AGREEMENT_STEPS = 100  # of physics


def measure(environment: str, body: str, *, batch: int, control_steps: int, size: int) -> tuple:
    """A row of `COLUMNS`."""
    world = make_world(environment, body)
    draws = world.draw(np.random.default_rng(0), batch)
    rng = np.random.default_rng(1)
    actions = rng.uniform(-1, 1, (control_steps, batch, len(world.spec.morphology)))
    actions = actions.astype(np.float32)
    native, worlds = NativeWorlds(world, draws), MJXWorlds(world)
    state = worlds.reset(draws)

    begin = time.perf_counter()
    jax.block_until_ready(worlds.step(state, actions[0]))
    compiling = time.perf_counter() - begin

    spent = {"mjx": np.zeros(2), "native": np.zeros(2)}  # seconds by the clock and of cores
    for step in range(control_steps):
        begin = clocks()
        state, *_ = jax.block_until_ready(worlds.step(state, actions[step]))
        middle = clocks()
        native.step(actions[step])
        spent["native"] += clocks() - middle
        spent["mjx"] += middle - begin
        if (step + 1) * world.substeps == AGREEMENT_STEPS:
            apart = np.abs(np.asarray(state.qpos) - native.qpos).max(axis=1)

    native.frame(0, size)
    begin = time.perf_counter()
    for index in range(100):
        native.frame(index % batch, size)
    frames = 100 / (time.perf_counter() - begin)
    rates = {side: batch * control_steps / seconds for side, seconds in spent.items()}
    sides = [
        (rate[0] * world.substeps, rate[0], rate[1] * world.substeps) for rate in rates.values()
    ]
    return (
        world.spec.name,
        compiling,
        *sides[0],
        *sides[1],
        np.median(apart),
        np.quantile(apart, 0.95),
        apart.max(),
        frames,
    )


def clocks() -> np.ndarray:
    """Seconds by the clock and of this process's cores."""
    return np.array([time.perf_counter(), time.process_time()])


def main() -> None:
    """Prints a row a world."""
    everything = [f"{environment}/{body}" for environment in WORLDS for body in WORLDS[environment]]
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("worlds", nargs="*", default=everything, help="such as reach/arm3")
    parser.add_argument("--batch", type=int, default=256, help="episodes at once")
    parser.add_argument("--control_steps", type=int, default=40, help="that are timed")
    parser.add_argument("--size", type=int, default=32, help="pixels of a frame's side")
    options = parser.parse_args()
    if unknown := set(options.worlds) - set(everything):
        parser.error(f"{', '.join(unknown)}: expected some of {', '.join(everything)}")
    if options.control_steps < 10:
        parser.error(
            f"--control_steps {options.control_steps}: expected at least 10, after which "
            "both sides are compared"
        )
    print("| " + " | ".join(name for name, _ in COLUMNS) + " |")
    print("|---" * len(COLUMNS) + "|")
    for name in options.worlds:
        row = measure(
            *name.split("/"),
            batch=options.batch,
            control_steps=options.control_steps,
            size=options.size,
        )
        cells = (form.format(value) for (_, form), value in zip(COLUMNS, row, strict=True))
        print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
