"""How well demonstrations clone into a plain network, as a check of the data and not of a model.

    python benchmarks/demonstrations.py push/arm3 [--episodes 400] [--noise 0.1] [--updates 4000]
        [--differences]

A perceptron of three layers of 256 sees all streams, divided by their scales, and learns the next
`CHUNK` actions; it then plays 200 unseen starts. `--differences` gives it prop - tip and goal -
prop as well (push only). Three lines of JSON: errors, and success where every or every fourth
action is replanned.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from roam_jax.data.demonstrations import (
    Demonstrations,
    ensure_demonstrations,
    read_demonstrations,
)
from roam_jax.morphology import WorldSpec
from roam_jax.sim.native import NativeWorlds
from roam_jax.sim.worlds import WORLDS, make_world

CHUNK, WIDTH, BATCH, RATE = 8, 256, 256, 2e-3
STARTS, SEED = 200, 2_000_003
DIFFERENCE_SCALE = 0.1  # m


def main(argv: Sequence[str] | None = None) -> None:
    """Clones one world's expert and plays the clone."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("world", help="such as push/arm3")
    parser.add_argument("--episodes", type=int, default=400, help="default: %(default)s")
    parser.add_argument("--noise", type=float, help="default: the environment's")
    parser.add_argument("--updates", type=int, default=4000, help="default: %(default)s")
    parser.add_argument("--differences", action="store_true", help="see above")
    options = parser.parse_args(argv)
    environment, _, body = options.world.partition("/")
    if body not in WORLDS.get(environment, ()):
        parser.error(f"{options.world}: expected a world such as push/arm3, of {WORLDS}")
    if options.differences and environment != "push":
        parser.error(f"--differences: {options.world} has no prop, expected a world of push")
    root = ensure_demonstrations(environment, body, episodes=options.episodes, noise=options.noise)
    splits = {split: read_demonstrations(root, split) for split in ("train", "val")}
    spec = splits["train"].spec

    def features(observations: Mapping[str, np.ndarray]) -> np.ndarray:
        return flat(observations, spec, differences=options.differences)

    inputs = {split: features(found.observations) for split, found in splits.items()}
    mean, deviation = inputs["train"].mean(0), inputs["train"].std(0) + 1e-3
    rows = {split: ((inputs[split] - mean) / deviation, *chunks(splits[split])) for split in splits}
    parameters = train(*rows["train"], updates=options.updates)
    network = jax.jit(apply)
    errors = {s: float(loss(parameters, *(x[:8000] for x in rows[s]))) for s in rows}
    print(json.dumps({"world": spec.name, "squared errors": errors}))
    for replan in (1, 4):
        success, collected = play(
            environment,
            body,
            lambda seen: np.asarray(network(parameters, (features(seen) - mean) / deviation)),
            replan=replan,
        )
        print(json.dumps({"replan": replan, "success": success, "return": collected}), flush=True)


def flat(
    observations: Mapping[str, np.ndarray], spec: WorldSpec, *, differences: bool
) -> np.ndarray:
    """All streams of each row side by side, float32."""
    parts = [observations[s.name] / np.array(s.scales, np.float32) for s in spec.streams]
    if differences:
        tip, prop, goal = (observations[name][..., :2] for name in ("tip", "prop", "goal"))
        parts += [(prop - tip) / DIFFERENCE_SCALE, (goal - prop) / DIFFERENCE_SCALE]
    return np.concatenate([part.reshape(len(part), -1) for part in parts], -1).astype(np.float32)


def chunks(found: Demonstrations) -> tuple[np.ndarray, np.ndarray]:
    """The next `CHUNK` actions of each step (N, P, J), and which are within its episode (N, P)."""
    steps = found.spec.steps
    actions = found.actions.reshape(-1, steps, found.actions.shape[-1])
    places = np.arange(steps)[:, None] + np.arange(CHUNK)
    following = actions[:, np.minimum(places, steps - 1)]
    there = np.tile(places < steps, (len(actions), 1))
    return following.reshape(-1, *following.shape[2:]), there


def apply(parameters, inputs):
    """Chunks (B, P, J) of inputs (B, D)."""
    *hidden, (weights, bias) = parameters
    for layer_weights, layer_bias in hidden:
        inputs = jax.nn.gelu(inputs @ layer_weights + layer_bias)
    return (inputs @ weights + bias).reshape(len(inputs), CHUNK, -1)


def loss(parameters, inputs, targets, there):
    """Mean squared error of the actions that are there."""
    errors = jnp.square(apply(parameters, inputs) - targets).mean(-1)
    return (errors * there).sum() / there.sum()


def train(inputs: np.ndarray, targets: np.ndarray, there: np.ndarray, *, updates: int):
    """Weights and biases of the layers."""
    sizes = (inputs.shape[-1], WIDTH, WIDTH, WIDTH, CHUNK * targets.shape[-1])
    keys = jax.random.split(jax.random.key(0), len(sizes) - 1)
    parameters = [
        (jax.random.normal(key, (before, after)) * np.sqrt(2 / before), jnp.zeros(after))
        for key, before, after in zip(keys, sizes[:-1], sizes[1:], strict=True)
    ]
    parameters[-1] = (0.1 * parameters[-1][0], parameters[-1][1])
    schedule = optax.warmup_cosine_decay_schedule(0.0, RATE, min(100, updates // 2), updates)
    optimizer = optax.adamw(schedule, weight_decay=1e-3)

    @jax.jit
    def update(parameters, state, *rows):
        changes, state = optimizer.update(jax.grad(loss)(parameters, *rows), state, parameters)
        return optax.apply_updates(parameters, changes), state

    state, rng = optimizer.init(parameters), np.random.default_rng(0)
    for _ in range(updates):
        rows = rng.integers(len(inputs), size=BATCH)
        parameters, state = update(parameters, state, inputs[rows], targets[rows], there[rows])
    return parameters


def play(environment: str, body: str, policy, *, replan: int) -> tuple[float, float]:
    """Share of `STARTS` that succeed, and mean return."""
    world = make_world(environment, body)
    worlds = NativeWorlds(world, world.draw(np.random.default_rng(SEED), STARTS))
    returns = np.zeros(STARTS)
    while not worlds.done:
        if worlds.time % replan == 0:
            chunk = policy(worlds.observe())
        outcome = worlds.step(np.clip(chunk[:, worlds.time % replan], -1.0, 1.0))
        returns += outcome.reward
    return float(outcome.success.mean()), round(float(returns.mean()), 3)


if __name__ == "__main__":
    main()
