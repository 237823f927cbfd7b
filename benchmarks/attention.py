"""Attention under a topology: `python benchmarks/attention.py [--only SECTION] [--charts DIR]`.

float32, 8 heads of 64, batch 1, two torch threads; both sides take turns in one process. Sections:

- plan: time and memory of a plan for the published canvas of CogVideoX with new regions;
- mask: the (N, N) mask against canvas-engineering's, 2,048 cells;
- attention: planned attention against torch's dense one, 2,048 and 8,192 cells, and the temporaries
  of its two passes. First it is compared with torch's under the mask, at full size;
- block: one looped block, 4,096 cells, against canvas-engineering's dispatcher and torch's layer;
- shares: time against the share of allowed pairs, and against the number of cells; --charts draws
  them.

Every figure is printed beside what was asked; the exit code is 1 where one is missed. The last line
is JSON.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import pathlib
import sys
import time
import tracemalloc

import canvas_engineering as ce
import numpy as np
import torch
from against_torch import alternate, machine, relative_error
from attention_block import measure_block
from attention_cases import (
    CELLS_A_FRAME,
    Case,
    Figure,
    causal_case,
    dense_case,
    hub_case,
    milliseconds,
    ratio,
    thought_case,
)
from attention_sharing import measure_shares
from attention_sides import BOTH, FORWARD, OurAttention, TorchAttention, draw_heads, in_our_order

from roam_jax.canvas.layout import CanvasLayout
from roam_jax.canvas.plan import compile_plan
from roam_jax.canvas.temporal_topologies import causal, local_window
from roam_jax.canvas.topologies import central_thought
from roam_jax.canvas.topology import CanvasTopology
from roam_jax.cogvideox.graft_canvas import NewRegions, graft_layout, graft_topology
from roam_jax.contracts import TimeSpec

THREADS = 2
TOLERANCE = 5e-6
PLAN_SECONDS, PLAN_MB = 0.3, 50
MASK_CELLS, MASK_TIMES = 2048, 1000
TEMPORARIES = 300
CELLS = 8192
# Times slower than torch's dense attention that dense attention may be.
DENSE_TIMES = {FORWARD: 1.15, BOTH: 1.25}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    sections = ("plan", "mask", "attention", "block", "shares")
    parser.add_argument("--only", choices=sections, help="one section; default: all")
    parser.add_argument("--repeats", type=int, default=5, help="of every timing")
    parser.add_argument("--charts", type=pathlib.Path, metavar="DIR", help="default: not drawn")
    args = parser.parse_args()

    torch.set_num_threads(THREADS)
    measure = {
        "plan": functools.partial(measure_plans, repeats=args.repeats),
        "mask": functools.partial(measure_mask, repeats=args.repeats),
        "attention": functools.partial(measure_attention, repeats=args.repeats),
        "block": functools.partial(measure_block, repeats=args.repeats),
        "shares": functools.partial(measure_shares, repeats=args.repeats, charts=args.charts),
    }
    print(machine())
    figures = []
    for section in (args.only,) if args.only else sections:
        began = time.perf_counter()
        print(f"\n{section}")
        figures += measure[section]()
        print(f"  {time.perf_counter() - began:.0f} s in all", flush=True)
    print()
    for figure in figures:
        print(figure)
    print(json.dumps([{**dataclasses.asdict(f), "met": f.met} for f in figures]))
    sys.exit(0 if all(f.met for f in figures) else 1)


def published_canvas() -> CanvasLayout:
    """226 text and 13 x 30 x 45 visual cells of CogVideoX-2B's 49 frames, and new regions."""
    return graft_layout(
        time=TimeSpec(frames=49, t_current=2),
        rows=30,
        columns=45,
        width=1920,
        text_length=226,
        new=NewRegions(proprio=True, proprio_weight=1.0, thought_cells=16),
    )


def measure_plans(*, repeats: int) -> list[Figure]:
    """Time, and memory in other runs, of plans for the published canvas."""
    layout = published_canvas()
    names = list(layout.regions)
    streams = [name for name in names if name != "thought"]
    topologies = {
        "graft": graft_topology(layout),
        "dense": CanvasTopology.dense(names),
        "causal_temporal": CanvasTopology.causal_temporal(names).matching(layout),
        "causal": causal(layout),
        "central_thought": central_thought(layout, streams=streams, thought="thought"),
        "local_window": local_window(layout, frames=2),
    }
    figures = []
    for name, topology in topologies.items():
        compiled = functools.partial(compile_plan, layout, topology)
        [taken], [plan] = alternate([compiled], repeats=repeats)
        tracemalloc.start()
        compiled()
        peak = tracemalloc.get_traced_memory()[1] / 1e6
        tracemalloc.stop()
        share = plan.pairs / plan.query_cells**2
        print(
            f"  {name:<16} {plan.query_cells:,} cells, {share:6.1%} of pairs, "
            f"{plan.scores / plan.query_cells**2:6.1%} computed: {milliseconds(taken)}"
        )
        figures.append(Figure(f"plan, {name}", taken.median, PLAN_SECONDS, False, "s"))
        figures.append(Figure(f"plan, {name}, peak", peak, PLAN_MB, False, "MB"))
    return figures


def measure_mask(*, repeats: int) -> list[Figure]:
    """The mask of a dense topology; canvas-engineering's, which takes long, is made once."""
    case = dense_case(MASK_CELLS)
    layout = case.layout
    theirs = ce.CanvasLayout(
        T=layout.T,
        spatial_shape=(layout.H, layout.W),
        d_model=layout.d_model,
        regions={name: spec.bounds for name, spec in layout.regions.items()},
    )
    topology = ce.CanvasTopology.dense(list(layout.regions))
    [taken], [mask] = alternate(
        [functools.partial(case.topology.to_attention_mask, layout)], repeats=repeats
    )
    began = time.perf_counter()
    their_mask = topology.to_attention_mask(theirs).numpy()
    seconds = time.perf_counter() - began
    if not np.array_equal(mask, their_mask):
        raise ValueError("the masks differ")
    print(f"  {len(mask):,} cells: {milliseconds(taken)}, canvas-engineering {seconds:.1f} s")
    return [Figure(f"mask, {len(mask):,} cells", seconds / taken.median, MASK_TIMES, True, "x")]


def measure_attention(*, repeats: int) -> list[Figure]:
    """Planned attention against torch's dense one; what was asked, by topology and pass."""
    figures = []
    for cells in (4 * CELLS_A_FRAME, CELLS):
        taken, temporaries = time_case(dense_case(cells), repeats=repeats)
        for name, (ours, theirs) in taken.items():
            title = f"dense, {cells:,} cells, {name}, times torch's"
            figures.append(Figure(title, ratio(ours, theirs), DENSE_TIMES[name], False, "x"))
    figures.append(Figure("dense, temporaries", temporaries, TEMPORARIES, False, "MiB"))
    for case, asked in (
        (causal_case(CELLS), {FORWARD: 6, BOTH: 7}),
        (thought_case(CELLS), {FORWARD: 2, BOTH: 2}),
        (hub_case(CELLS), {FORWARD: 1}),
    ):
        taken, temporaries = time_case(case, repeats=repeats)
        for name, bound in asked.items():
            ours, theirs = taken[name]
            title = f"{case.name}, {name}, faster than torch's dense"
            figures.append(Figure(title, ratio(theirs, ours), bound, True, "x"))
        title = f"{case.name}, temporaries"
        figures.append(Figure(title, temporaries, TEMPORARIES, False, "MiB"))
    return figures


def time_case(case: Case, *, repeats: int) -> tuple[dict, float]:
    """Pass -> our timing and that of torch's dense attention; and MiB of our temporaries.

    Raises:
        ValueError: ours is not torch's under the mask.
    """
    plan = compile_plan(case.layout, case.topology)
    cells = plan.query_cells
    heads = draw_heads(cells)
    ours, theirs = OurAttention(plan, heads), TorchAttention(heads)
    mask = None if plan.is_free else plan.table.mask()
    wanted = in_our_order(TorchAttention(heads, mask).both())
    errors = [relative_error([a], [b]) for a, b in zip(ours.both(), wanted, strict=True)]
    if max(errors) > TOLERANCE:
        raise ValueError(f"{case.name}: relative L2 errors {errors}, expected {TOLERANCE:.0e}")
    print(
        f"  {case.name}, {cells:,} cells: {plan.pairs / cells**2:.1%} of pairs, "
        f"{plan.scores / cells**2:.1%} computed; relative L2 error {errors[0]:.1e}, "
        f"of gradients {max(errors[1:]):.1e}; temporaries {ours.temporaries():.0f} MiB"
    )
    taken = {}
    for name, runs in (
        (FORWARD, (ours.forward, theirs.forward)),
        (BOTH, (ours.both, theirs.both)),
    ):
        for run in runs:
            run()
        taken[name], _ = alternate(runs, repeats=repeats)
        a, b = taken[name]
        times = f"ours {milliseconds(a)}, torch dense {milliseconds(b)}"
        print(f"    {name:<17} {times}: {ratio(b, a):.2f} x faster", flush=True)
    return taken, ours.temporaries()


if __name__ == "__main__":
    main()
