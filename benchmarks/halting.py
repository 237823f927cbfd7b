"""What it saves that cells which have stopped are no longer computed.

    python benchmarks/halting.py

3 blocks x 4 rounds, forward, width 512 (512 cells) and width 64 (120 cells, batch 8); rows set so
that after every round more than half of what runs stops for good. Against the same loop that
computes all cells and masks them, and against one without a threshold, alternated in one process.
"""

from __future__ import annotations

import argparse
import functools
import sys

import jax
import numpy as np
from against_torch import alternate, machine, relative_error
from looped_stack import DEPTH, ROUNDS, SIZES, Size, our_loop
from scipy.stats import norm

from roam_jax.contracts import Params
from roam_jax.model.loop_options import LoopOptions
from roam_jax.model.stack import CanvasLoop

# Of the weights that tell cells apart: large, so that cells stop or do not.
SCALE = 50.0
THRESHOLD = 0.5
SHARES = (1.0, 0.45, 0.2, 0.1)


def halting_params(module: CanvasLoop, cells: jax.Array) -> Params:
    """Parameters with which about `SHARES` of the cells run in each round of every block."""
    init = jax.jit(functools.partial(module.init, rounds=1))
    params = init(jax.random.key(0), cells)["params"]
    rows = params["blocks"]["loop"]
    direction = np.random.default_rng(1).standard_normal(cells.shape[-1])
    direction *= SCALE / np.linalg.norm(direction)
    # A cell stops after a round where direction . LN(h) is above a quantile of all cells.
    quantiles = [*SHARES[1:], 0.5]
    halt = np.broadcast_to(-SCALE * norm.ppf(quantiles), rows["halt"].shape)
    rows = rows | {
        "gate": np.full_like(rows["gate"], -4.0),
        "halt": halt.astype(np.float32),
        "halt_token": np.broadcast_to(direction, rows["halt_token"].shape).astype(np.float32),
    }
    return {"blocks": params["blocks"] | {"loop": rows}}


def measure(size: Size, *, repeats: int) -> None:
    """Prints times of one size.

    Raises:
        ValueError: the results differ.
    """
    options = LoopOptions(rounds=ROUNDS, gate="sigmoid", halting="learned")
    module = our_loop(size, "block", unroll=None, remat=None).clone(options=options)
    shape = (size.batch, size.cells, size.width)
    cells = jax.numpy.asarray(np.random.default_rng(0).standard_normal(shape, np.float32))
    params = halting_params(module, cells)

    def compiled(module: CanvasLoop, threshold: float | None):
        run = functools.partial(module.apply, rounds=ROUNDS, threshold=threshold)
        program = jax.jit(run).lower({"params": params}, cells).compile()
        return lambda: jax.block_until_ready(program({"params": params}, cells))

    runs = {
        "running cells alone": compiled(module, THRESHOLD),
        "all cells, masked": compiled(module.clone(call_running=False), THRESHOLD),
        "no threshold": compiled(module, None),
    }
    found = {name: run() for name, run in runs.items()}
    out, info = found["running cells alone"]
    error = relative_error([out], [found["all cells, masked"][0]])
    if error > 1e-5:
        raise ValueError(f"relative L2 error {error:.1e} against all cells, expected 1e-05")
    timings, _ = alternate(list(runs.values()), repeats=repeats)
    share = np.mean([np.asarray(x) for x in info["running"].values()], axis=(0, 1))
    print(f"width {size.width}, {size.cells} cells, batch {size.batch}; running {share.round(2)}")
    for name, timing in zip(runs, timings, strict=True):
        print(f"  {name:<22} {timing}, {timings[0].median / timing.median:.2f} of it is ours")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=15)
    repeats = parser.parse_args().repeats
    print(machine(), f"{DEPTH} blocks x {ROUNDS} rounds")
    for size in SIZES:
        measure(size, repeats=repeats)
    return 0


if __name__ == "__main__":
    sys.exit(main())
