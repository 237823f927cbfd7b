"""How often the worlds' experts succeed from unseen starts, and what they collect.

    python benchmarks/experts.py [--starts 400] [--noise 0,0.1]

A line of JSON a world and noise: the share of successes with its Wilson interval at 95 %, the mean
return, how many walkers fell and simulations diverged, and the seconds that it took. Noise is what
demonstrations add to each action in the first three quarters of an episode.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence

import numpy as np

from roam_jax.data.demonstrations import NOISY_PART
from roam_jax.evaluate.wilson import estimate_rate
from roam_jax.sim.native import NativeWorlds
from roam_jax.sim.world_experts import make_expert
from roam_jax.sim.worlds import WORLDS, make_world

SEED = 2_000_003  # of no demonstrations


def main(argv: Sequence[str] | None = None) -> None:
    """Measures every world."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--starts", type=int, default=400, help="default: %(default)s")
    parser.add_argument("--noise", default="0", help="by commas; default: %(default)s")
    options = parser.parse_args(argv)
    for environment, bodies in WORLDS.items():
        for body in bodies:
            for noise in map(float, options.noise.split(",")):
                measured = measure(environment, body, starts=options.starts, noise=noise)
                print(json.dumps({"world": f"{environment}/{body}", **measured}), flush=True)


def measure(environment: str, body: str, *, starts: int, noise: float) -> dict:
    """Plays one expert from so many starts."""
    began = time.perf_counter()
    world, rng = make_world(environment, body), np.random.default_rng(SEED)
    worlds, expert = NativeWorlds(world, world.draw(rng, starts)), make_expert(world)
    expert.reset(worlds, rng)
    returns = np.zeros(starts)
    while not worlds.done:
        size = noise if worlds.time < NOISY_PART * world.spec.steps else 0.0
        actions = expert.act(worlds)
        actions = np.clip(actions + size * rng.normal(size=actions.shape), -1.0, 1.0)
        outcome = worlds.step(actions)
        returns += outcome.reward
    rate = estimate_rate(int(outcome.success.sum()), starts)
    return {
        "noise": noise,
        "starts": starts,
        "success": round(rate.mean, 4),
        "interval": [round(end, 4) for end in rate.interval],
        "return": round(float(returns.mean()), 3),
        "fallen": int(worlds.fallen.sum()),
        "diverged": int(outcome.diverged.sum()),
        "seconds": round(time.perf_counter() - began, 1),
    }


if __name__ == "__main__":
    main()
