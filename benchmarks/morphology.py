"""Do loops and the kinematic tree help a cloned policy? Rounds x topology x bodies, paired seeds.

    python benchmarks/morphology.py --environment reach --steps 2000 --seeds 0:3 --out reach.json
    python benchmarks/morphology.py --table reach.json

Every arm trains configs/mujoco_bc.py with 1 to 4 rounds, with all cells reading all (dense) or
along the body's links (kinematic_tree), and on one body alone or on all of the environment; seeds
of an arm run as one program and see the same rows as those of another. What is measured is the
error of action chunks on the validation episodes of `--body`. Differences to the first arm are
paired by seed and step, their 95 % intervals are over episodes. Arms that --out already holds are
skipped, so a run may be continued.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import json
import pathlib
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from configs import mujoco_bc
from roam_jax.cli.arguments import seeds_list
from roam_jax.data.demonstration_batches import ACTION, MASK, Chunks, DemonstrationBatches
from roam_jax.evaluate.bootstrap import estimate_mean
from roam_jax.sim.worlds import WORLDS
from roam_jax.tasks.clone_build import TRAIN, VALIDATION, CloneExperiment, clone_experiment
from roam_jax.train import optim
from roam_jax.train.state import INIT_STEP, TrainState
from roam_jax.train.step import make_update

TOPOLOGIES = ("dense", "kinematic_tree")
RESAMPLES = 2000


@dataclasses.dataclass(frozen=True)
class Arm:
    """One config of the comparison.

    Args:
        rounds: `loop.rounds`.
        topology: `topology.kind`.
        bodies: that train together.
    """

    rounds: int
    topology: str
    bodies: tuple[str, ...]

    @property
    def name(self) -> str:
        """In tables and files."""
        trained = self.bodies[0] if len(self.bodies) == 1 else f"{len(self.bodies)} bodies"
        return f"{self.topology}, {self.rounds} rounds, {trained}"


def arms(options: argparse.Namespace) -> list[Arm]:
    """All of them, the reference first."""
    bodies = (options.body,), WORLDS[options.environment]
    return [
        Arm(rounds, topology, trained)
        for trained, topology, rounds in itertools.product(bodies, TOPOLOGIES, options.rounds)
    ]


def make_experiment(arm: Arm, options: argparse.Namespace) -> CloneExperiment:
    """The arm's config with its policy; a body has as many rows of a batch in every arm."""
    variant = "" if options.environment == "reach" else options.environment
    config: ml_collections.ConfigDict = mujoco_bc.get_config(variant)
    config.data.bodies = arm.bodies
    config.data.demonstrations = options.demonstrations
    config.loop.rounds = arm.rounds
    # One round of a sigmoid gate would open it half.
    config.loop.gate = "sigmoid" if arm.rounds > 1 else "off"
    config.topology.kind = arm.topology
    config.model.width, config.model.depth = options.width, options.depth
    config.train.steps, config.train.batch_size = options.steps, options.rows * len(arm.bodies)
    config.optim.warmup_steps = min(config.optim.warmup_steps, options.steps // 4)
    return clone_experiment(config)


def train(experiment: CloneExperiment, options: argparse.Namespace) -> tuple[Any, float, float]:
    """Parameters with a first axis over seeds, and seconds of the training and of compiling."""
    config, task = experiment.config, experiment.task
    steps, rounds = config.train.steps, config.loop.rounds
    tx, schedule = optim.make_optimizer(config.optim, steps=steps, no_decay=task.no_decay)
    update, seeds = make_update(task, tx, schedule), jnp.asarray(options.seeds, jnp.uint32)

    def create(seed):
        params = task.init(jax.random.fold_in(jax.random.key(seed), INIT_STEP))
        return TrainState(jnp.zeros((), jnp.int32), params, tx.init(params))

    def step(state, batch):
        one = lambda state, rows, seed: update(state, {}, rows, seed, rounds)  # noqa: E731
        return jax.vmap(one)(state, batch, seeds)

    run = jax.jit(functools.partial(jax.lax.scan, step), donate_argnums=0)
    batches = joined(experiment, options)
    state, first = jax.jit(jax.vmap(create))(seeds), next(batches)
    began = time.perf_counter()
    run = run.lower(state, first).compile()
    compiled = time.perf_counter() - began
    began = time.perf_counter()
    for chunk in itertools.chain([first], itertools.islice(batches, steps // options.chunk - 1)):
        state, _ = jax.block_until_ready(run(state, chunk))
    return state.trainable, time.perf_counter() - began, compiled


def joined(experiment: CloneExperiment, options: argparse.Namespace) -> Iterator[dict]:
    """Batches of several steps and all seeds: field -> (steps, seeds, rows, ...)."""
    config = experiment.config
    of_seeds = [
        DemonstrationBatches(
            experiment.splits[TRAIN].bodies,
            batch_size=config.train.batch_size,
            chunk=config.data.chunk,
            seed=seed,
        )
        for seed in options.seeds
    ]
    while True:
        drawn = [[next(batches) for batches in of_seeds] for _ in range(options.chunk)]
        yield {
            name: np.stack([np.stack([batch[name] for batch in step]) for step in drawn])
            for name in drawn[0][0]
        }


def episode_errors(experiment: CloneExperiment, params: Any) -> dict[str, list]:
    """Body -> (seeds, episodes) masked mean square of its action chunks on validation episodes."""
    rounds, found = experiment.config.loop.rounds, {}
    for body, recorded in experiment.splits[VALIDATION].bodies.items():
        chunks = Chunks(recorded, chunk=experiment.config.data.chunk)
        rows = chunks[np.arange(len(chunks))]
        mask, actions = rows.pop(MASK)[..., None], rows.pop(ACTION)

        def squares(params, rows, body=body, mask=mask, actions=actions):
            told, _ = experiment.model.predict(params, body, rows, rounds=rounds)
            return jnp.where(mask, jnp.square(told - actions), 0).sum(axis=(1, 2))

        run = jax.jit(
            lambda params, rows, squares=squares: jax.lax.map(
                lambda one: squares(one, rows), params
            )
        )
        sums, counts = np.asarray(run(params, rows)), mask.sum(axis=(1, 2)) * actions.shape[-1]
        _, episode = np.unique(recorded.episode, return_inverse=True)
        whole = np.bincount(episode, weights=counts)
        found[body] = [(np.bincount(episode, weights=s) / whole).tolist() for s in sums]
    return found


def run_arm(arm: Arm, options: argparse.Namespace) -> dict[str, Any]:
    """Trains and measures one arm; what it returns is JSON."""
    experiment = make_experiment(arm, options)
    params, seconds, compiled = train(experiment, options)
    print(
        f"{arm.name}: {options.steps} steps x {len(options.seeds)} seeds in {seconds:.0f} s "
        f"(compiled in {compiled:.0f} s)",
        flush=True,
    )
    return {
        **dataclasses.asdict(arm),
        "seconds": seconds,
        "compile_seconds": compiled,
        "errors": episode_errors(experiment, params),
    }


def table(result: dict[str, Any]) -> str:
    """Error of the body by arm, and what it differs from the first arm, as Markdown."""
    settings, found = result["settings"], result["arms"]
    body, reference = settings["body"], None
    lines = [
        f"{settings['environment']}, {body}, {settings['steps']} steps, "
        f"{len(settings['seeds'])} seeds, {result['device']}",
        "",
        "| arm | error x 1000 (seeds) | difference to the first, 95 % interval | better seeds |",
        "|---|---|---|---|",
    ]
    for name, arm in found.items():
        errors = 1000 * np.array(arm["errors"][body])
        by_seed = errors.mean(axis=1)
        spread = f"{errors.mean():.2f} ({by_seed.min():.2f} to {by_seed.max():.2f})"
        if reference is None:
            reference = errors
            lines.append(f"| {name} | {spread} | | |")
            continue
        change = (errors - reference).mean(axis=0)
        about = estimate_mean(change, np.arange(len(change)), resamples=RESAMPLES)
        low, high = about.interval or (float("nan"),) * 2
        better = int((by_seed < reference.mean(axis=1)).sum())
        lines.append(
            f"| {name} | {spread} | {about.mean:+.2f} ({low:+.2f} to {high:+.2f}) | "
            f"{better} of {len(by_seed)} |"
        )
    return "\n".join(lines)


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--environment", choices=tuple(WORLDS), default="reach")
    parser.add_argument("--body", help="that is measured (default: the environment's last)")
    parser.add_argument("--rounds", type=int, nargs="+", default=[1, 2, 3, 4])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seeds", type=lambda text: list(seeds_list(text)), default=[0, 1, 2])
    parser.add_argument("--rows", type=int, default=16, help="of each body in a batch")
    parser.add_argument("--demonstrations", type=int, default=200, help="of each body")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--depth", type=int, default=1, help="blocks, which run in rounds")
    parser.add_argument("--chunk", type=int, default=20, help="steps of one call to the device")
    parser.add_argument("--arms", nargs="+", help="only those whose name holds one of these")
    parser.add_argument("--minutes", type=float, default=1e9, help="start no arm after so many")
    parser.add_argument("--out", type=pathlib.Path, help="JSON; default ENVIRONMENT.json")
    parser.add_argument("--table", type=pathlib.Path, nargs="+", help="print these, and stop")
    options = parser.parse_args(argv)
    bodies = WORLDS[options.environment]
    options.body = options.body or bodies[-1]
    if options.body not in bodies:
        parser.error(f"--body {options.body}: {options.environment} has {', '.join(bodies)}")
    if options.steps % options.chunk:
        parser.error(f"--steps {options.steps}: expected a multiple of --chunk {options.chunk}")
    return options


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(argv)
    if options.table:
        for path in options.table:
            print(table(json.loads(path.read_text())), end="\n\n")
        return
    out = options.out or pathlib.Path(f"{options.environment}.json")
    keys = ("environment", "body", "steps", "seeds", "rows", "demonstrations", "width", "depth")
    settings = {key: getattr(options, key) for key in keys}
    device = f"{jax.devices()[0].device_kind}, jax {jax.__version__}"
    result = {"settings": settings, "device": device, "arms": {}}
    if out.exists():
        before = json.loads(out.read_text())
        if before["settings"] != settings:
            raise SystemExit(f"{out} holds a run with other settings: {before['settings']}")
        result["arms"] = before["arms"]
    began = time.perf_counter()
    for arm in arms(options):
        wanted = options.arms is None or any(part in arm.name for part in options.arms)
        if not wanted or arm.name in result["arms"]:
            continue
        if time.perf_counter() - began > 60 * options.minutes:
            print(f"{arm.name}: not started, {options.minutes} minutes are over", flush=True)
            continue
        result["arms"][arm.name] = run_arm(arm, options)
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(result) + "\n")
    print(table(result))


if __name__ == "__main__":
    main()
