"""Finds the walkers' gaits again, and measures those that `roam_jax/sim/walkers.py` holds.

    python benchmarks/gaits.py                      # measure: 200 unseen starts a walker, seconds
    python benchmarks/gaits.py --search biped,triped --generations 40      # minutes

SciPy's differential evolution over 12 numbers a walker: the strides a second, and for each of two
groups of legs the hips' and knees' offsets and amplitudes, how far knees are ahead of hips, and
the groups' phase. A candidate is scored by how far it walks from unlike starts, on floors of unlike
friction and with noise on its actions, less penalties for falling and for pitching. One line of
JSON a walker.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence

import mujoco
import numpy as np
from jaxtyping import Float
from mujoco import rollout
from scipy.optimize import differential_evolution

from roam_jax.sim.walkers import (
    CONTROL_PERIOD,
    TIMESTEP,
    WALKERS,
    Gait,
    Walker,
    alternating,
    walker_mjcf,
)

THREADS = 2
FRICTIONS = (1.0, 0.75, 1.0, 1.15, 0.75, 1.0, 1.15, 1.0)  # one a trial of a candidate
NOISE = (0.0, 0.1, 0.2, 0.2, 0.2, 0.2, 0.25, 0.25)  # standard deviation of actions, likewise
START = 0.06  # rad that start positions differ by, each way
SEARCH_SECONDS, EPISODE_SECONDS = 6.0, 10.0
POPULATION = 40
LOW_TO_HIGH = {
    "frequency": (0.8, 2.0),
    "hip offset": (-0.4, 0.4),
    "hip amplitude": (0.1, 1.0),
    "knee offset": (-0.4, 0.4),
    "knee amplitude": (0.0, 1.0),
    "knees ahead": (-0.5, 0.5),
}
PHASE = (0.0, 1.0)


def main(argv: Sequence[str] | None = None) -> None:
    """Searches for the gaits that are asked for, then measures every walker."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--search", default="", help="names of walkers, separated by commas")
    parser.add_argument("--generations", type=int, default=40, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    options = parser.parse_args(argv)
    asked = [name for name in options.search.split(",") if name]
    if unknown := set(asked) - WALKERS.keys():
        parser.error(f"--search {', '.join(unknown)}: expected some of {', '.join(WALKERS)}")
    for name in asked or WALKERS:
        body = WALKERS[name]
        if asked:
            gait = search(body, generations=options.generations, seed=options.seed)
            body = dataclasses.replace(body, gait=gait)
            print(json.dumps({"walker": name, "gait": dataclasses.asdict(gait)}))
        for noise in (0.0, 0.15):
            print(json.dumps({"walker": name, **measure(body, noise=noise)}), flush=True)


def gait_of(body: Walker, numbers: Float[np.ndarray, " 12"]) -> Gait:
    """The gait that 12 numbers stand for, to three decimals."""
    frequency, *groups, phase = (round(float(number), 3) for number in numbers)
    return alternating(len(body.hips), frequency, tuple(groups[:5]), tuple(groups[5:]), phase=phase)


def search(body: Walker, *, generations: int, seed: int) -> Gait:
    """The best gait that differential evolution finds."""
    own = list(LOW_TO_HIGH.values())
    bounds = [own[0], *own[1:], *own[1:], PHASE]
    rng = np.random.default_rng(seed)
    low, high = np.transpose(bounds)
    first = low + (high - low) * rng.uniform(size=(POPULATION, len(bounds)))
    # Half begin as a trot: knees bend while hips swing forwards, groups are half a stride apart.
    trot = np.array([1.5, *(0.0, 0.7, 0.0, 0.7, -0.25) * 2, 0.5])
    first[::2] = np.clip(trot + 0.15 * (high - low) * rng.normal(size=first[::2].shape), low, high)

    def cost(population: Float[np.ndarray, "12 S"]) -> Float[np.ndarray, " S"]:
        return -scores(body, [gait_of(body, numbers) for numbers in population.T], seed=seed)

    found = differential_evolution(
        cost,
        bounds,
        init=first,
        maxiter=generations,
        vectorized=True,
        updating="deferred",
        polish=False,
        rng=seed,
        tol=0.0,
    )
    return gait_of(body, found.x)


def scores(body: Walker, gaits: Sequence[Gait], *, seed: int) -> Float[np.ndarray, " S"]:
    """Metres forwards of each gait in `SEARCH_SECONDS`, mean of its trials, less penalties."""
    trials = len(FRICTIONS)
    repeated = [gait for gait in gaits for _ in range(trials)]
    states = simulate(
        body,
        repeated,
        frictions=FRICTIONS * len(gaits),
        noise=np.tile(NOISE, len(gaits)),
        seconds=SEARCH_SECONDS,
        rng=np.random.default_rng(seed),
    )
    x, height, pitch = states[:, -1, 0], states[..., 1] + body.height, states[..., 2]
    fell = body.fallen(height, pitch).mean(1)
    rocking = pitch.std(1) + np.abs(pitch.mean(1))
    each = np.nan_to_num(x - 20 * fell - 5 * rocking, nan=-100.0)
    return each.reshape(-1, trials).mean(1)


def measure(body: Walker, *, noise: float, count: int = 200) -> dict[str, float]:
    """How a walker's gait fares over unseen starts of 10 s, half of them on other floors."""
    rng = np.random.default_rng(1_000_003)
    states = simulate(
        body,
        [body.gait] * count,
        frictions=[FRICTIONS[i % len(FRICTIONS)] for i in range(count)],
        noise=np.full(count, noise),
        seconds=EPISODE_SECONDS,
        rng=rng,
    )
    x, height, pitch = states[:, -1, 0], states[..., 1] + body.height, states[..., 2]
    return {
        "noise": noise,
        "starts": count,
        "fell": int(body.fallen(height, pitch).any(1).sum()),
        "metres": round(float(x.mean()), 3),
        "least metres": round(float(x.min()), 3),
        "body lengths": round(float(x.mean()) / body.length, 2),
        "most pitch rad": round(float(np.abs(pitch).max()), 3),
    }


def simulate(
    body: Walker,
    gaits: Sequence[Gait],
    *,
    frictions: Sequence[float],
    noise: Float[np.ndarray, " B"],
    seconds: float,
    rng: np.random.Generator,
) -> Float[np.ndarray, "B T Q"]:
    """Positions of every trial after each physics step, by native MuJoCo on `THREADS` threads."""
    models = {f: mujoco.MjModel.from_xml_string(walker_mjcf(body, friction=f)) for f in frictions}
    model = next(iter(models.values()))
    times = np.arange(round(seconds / CONTROL_PERIOD)) * CONTROL_PERIOD
    actions = np.stack([gait(times) for gait in gaits])
    actions = actions + noise[:, None, None] * rng.normal(size=actions.shape)
    controls = body.positions(np.clip(actions, -1.0, 1.0))
    before = np.stack([gait(-CONTROL_PERIOD) for gait in gaits])
    joints = body.positions(before) + rng.uniform(-START, START, before.shape)
    state = np.zeros((len(gaits), 1 + model.nq + model.nv))
    state[:, 2] = body.standing_height(joints) - body.height
    state[:, 4 : 1 + model.nq] = joints
    states, _ = rollout.rollout(
        [models[friction] for friction in frictions],
        [mujoco.MjData(model) for _ in range(THREADS)],
        state,
        np.repeat(controls, round(CONTROL_PERIOD / TIMESTEP), axis=1),
    )
    return states[:, :, 1 : 1 + model.nq]


if __name__ == "__main__":
    main()
