"""What a sequence mesh sends and computes: `python benchmarks/sequence_traffic.py`.

For the graft on CogVideoX-2B, counted from its plans; nothing is run. Sent: key cells that reach
the other devices for one attention, as a share of what a gather of all keys sends. Busiest: scores
of the device that computes most, times the devices, over the scores of one device that has all.
"""

from __future__ import annotations

import argparse

from roam_jax.canvas.plan import AttentionPlan, compile_plan
from roam_jax.canvas.shards import CellSplit, key_exchange
from roam_jax.cogvideox.graft_canvas import NewRegions, graft_layout, graft_topology
from roam_jax.cogvideox.graft_topology import TopologyOptions, make_topology
from roam_jax.contracts import TimeSpec

# Environment frames, rows and columns of patches.
SIZES = {"17x256x256": (17, 16, 16), "49x480x720": (49, 30, 45)}
# The graft's own, whose backbone reads all of text and video, and kinds that govern it as well.
TOPOLOGIES = ("own", "causal", "local_window")
TEXT_CELLS, WIDTH = 226, 1920


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sequence", type=int, nargs="+", default=[2, 4, 8])
    args = parser.parse_args()
    print(f"{'frames':<12}{'topology':<14}{'cells':>7}{'devices':>9}{'sent':>7}{'busiest':>9}")
    for size in SIZES:
        for kind in TOPOLOGIES:
            plan = graft_plan(size, kind)
            for devices in args.sequence:
                sent, busiest = measures(plan, devices)
                print(
                    f"{size:<12}{kind:<14}{plan.key_cells:>7}{devices:>9}{sent:>7.2f}{busiest:>9.2f}"
                )


def graft_plan(size: str, kind: str) -> AttentionPlan:
    """Of text, video, actions and the robot's state."""
    frames, rows, columns = SIZES[size]
    layout = graft_layout(
        time=TimeSpec(frames=frames, t_current=2),
        rows=rows,
        columns=columns,
        width=WIDTH,
        text_length=TEXT_CELLS,
        new=NewRegions(actions=True, proprio=True, proprio_weight=1.0),
    )
    if kind == "own":
        return compile_plan(layout, graft_topology(layout))
    return compile_plan(layout, make_topology(layout, TopologyOptions(kind, backbone="declared")))


def measures(plan: AttentionPlan, devices: int) -> tuple[float, float]:
    """Share of all keys that is sent, and of the scores that the busiest device computes."""
    split = CellSplit((TEXT_CELLS, plan.key_cells - TEXT_CELLS), devices)
    exchange = key_exchange(plan, split)
    gathered = devices * (devices - 1) * split.places.shape[1]
    busiest = max(own.scores for own in exchange.plans)
    return exchange.traffic.sum() / gathered, devices * busiest / plan.scores


if __name__ == "__main__":
    main()
