"""From the config of a cloned policy to everything that a run needs.

Worlds say what the policy sees and does, so it is built without any demonstration; these are made,
once, when batches or their fingerprints are first asked for.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import ml_collections

from roam_jax.contracts import Task
from roam_jax.data.demonstration_batches import DemonstrationBatches, body_rows
from roam_jax.data.demonstrations import (
    Demonstrations,
    ensure_demonstrations,
    read_demonstrations,
)
from roam_jax.data.loader import check_seed
from roam_jax.model import sizes
from roam_jax.morphology import WorldSpec
from roam_jax.sim.worlds import WORLDS, make_world
from roam_jax.spelling import check_choice
from roam_jax.tasks.canvas_task import SHARDING_RULES
from roam_jax.tasks.clone import CloneModel
from roam_jax.tasks.clone_task import clone_model, clone_task
from roam_jax.tasks.experiment import check_run, code_provenance, run_rounds
from roam_jax.tasks.shares import process_share
from roam_jax.train import sharding
from roam_jax.train.curriculum import Curriculum

SPLITS = TRAIN, VALIDATION = ("train", "val")
# Of a run's provenance: the worlds that it was built for, by body.
SPECS = "specs"


@dataclasses.dataclass(frozen=True)
class CloneSplit:
    """One split of all bodies' demonstrations, which is opened when it is first asked for.

    Args:
        experiment: whose they are.
        name: one of `SPLITS`.
    """

    experiment: CloneExperiment
    name: str

    @functools.cached_property
    def bodies(self) -> dict[str, Demonstrations]:
        """Body -> its demonstrations; makes them where they are not there.

        Raises:
            ValueError: they are damaged, or not of these worlds.
        """
        return {
            body: read_demonstrations(self.experiment.folder(body), self.name)
            for body in self.experiment.specs
        }

    def describe(self) -> dict[str, Any]:
        """What a report says of it."""
        return {
            body: {
                "environment": found.spec.environment,
                "episodes": len(set(found.episode.tolist())),
                "steps": len(found.episode),
                "dropped": dict(found.dropped),
            }
            for body, found in self.bodies.items()
        }


@dataclasses.dataclass(frozen=True)
class Fingerprints(Mapping):
    """Of each body's demonstrations, which are opened when the first of them is asked for.

    Args:
        split: of the demonstrations.
    """

    split: CloneSplit

    def __getitem__(self, name: str) -> str:
        return self._found[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)

    @functools.cached_property
    def _found(self) -> dict[str, str]:
        return {f"demonstrations/{body}": d.fingerprint for body, d in self.split.bodies.items()}


@dataclasses.dataclass(frozen=True, eq=False)
class CloneExperiment:
    """A cloned policy's config with its model built; satisfies `experiment.Trainable`.

    Args:
        config: the whole config.
        model: the policy.
        task: the trainer's view of it.
        rules: sharding rules of its parameters.
    """

    config: ml_collections.ConfigDict
    model: CloneModel
    task: Task
    rules: sharding.Rules = SHARDING_RULES

    @property
    def specs(self) -> dict[str, WorldSpec]:
        """Body -> its world."""
        return self.model.specs

    @property
    def rounds(self) -> Curriculum:
        """Rounds of every training step."""
        return run_rounds(self.config)

    @functools.cached_property
    def splits(self) -> dict[str, CloneSplit]:
        """Demonstrations by split."""
        return {name: CloneSplit(self, name) for name in SPLITS}

    @functools.cached_property
    def fingerprints(self) -> Fingerprints:
        """Of each body's demonstrations."""
        return Fingerprints(self.splits[TRAIN])

    def folder(self, body: str) -> pathlib.Path:
        """Where a body's demonstrations lie, which are made if need be."""
        data = self.config.data
        return ensure_demonstrations(
            data.environment, body, episodes=data.demonstrations, pixels=data.pixels
        )

    def batches(self) -> DemonstrationBatches:
        """The endless training batches; each process of a cluster draws its own rows of them."""
        return DemonstrationBatches(
            self.splits[TRAIN].bodies,
            batch_size=self.config.train.batch_size,
            chunk=self.config.data.chunk,
            seed=self.config.seed,
            process=process_share(self.config),
        )

    def provenance(self) -> dict[str, Any]:
        """What a later reader needs to know of where a run came from."""
        return {
            **code_provenance(),
            "data": {name: split.describe() for name, split in self.splits.items()},
            "fingerprints": dict(self.fingerprints),
            SPECS: {body: json.loads(spec.to_json()) for body, spec in self.specs.items()},
        }

    @property
    def flops_per_step(self) -> Callable[[int], int] | None:
        """FLOPs of the model in a training step, by rounds, without what remat computes again.

        None where the topology has edges that no closed form counts.
        """
        modules = [model.module for model in self.model.bodies.values()]
        rows = body_rows(self.config.train.batch_size, bodies=len(modules))
        if not all(map(sizes.is_counted, modules)):
            return None
        return lambda rounds: rows * sum(sizes.step_flops(m, rounds=rounds) for m in modules)


def clone_experiment(
    config: ml_collections.ConfigDict, specs: Mapping[str, WorldSpec] | None = None
) -> CloneExperiment:
    """Builds the task of a cloned policy; no demonstration is made or read.

    Args:
        config: the whole config.
        specs: body -> its world, such as a run's `saved_specs`; None = as `sim/` makes them now.

    Raises:
        ValueError: a value of the config does not fit; the message names what.
    """
    check_run(config)
    check_seed(config.seed)
    data = config.data
    if data.demonstrations < 1:
        raise ValueError(f"data.demonstrations = {data.demonstrations}: expected at least 1")
    found = dict(specs) if specs else world_specs(data.environment, tuple(data.bodies))
    model = clone_model(config, found)
    rows = body_rows(config.train.batch_size, bodies=len(found))
    return CloneExperiment(config, model, clone_task(model, rows=rows, pixels=data.pixels))


def world_specs(environment: str, bodies: tuple[str, ...] = ()) -> dict[str, WorldSpec]:
    """Body -> its world.

    Args:
        environment: `data.environment`.
        bodies: `data.bodies`; () = all that the environment has.

    Raises:
        ValueError: no such environment or body, or a body twice.
    """
    check_choice("data.environment", environment, tuple(WORLDS))
    for body in bodies:
        check_choice("data.bodies", body, WORLDS[environment])
    if len(set(bodies)) < len(bodies):
        raise ValueError(f"data.bodies = {bodies}: expected each body once")
    return {body: make_world(environment, body).spec for body in bodies or WORLDS[environment]}


def saved_specs(provenance: Mapping[str, Any]) -> dict[str, WorldSpec]:
    """Body -> the world that a run was built for, from its provenance; {} of another task's."""
    return {
        body: WorldSpec.from_json(json.dumps(spec))
        for body, spec in provenance.get(SPECS, {}).items()
    }
