"""From the config of a canvas model to everything that a run needs.

A scene is made as the run goes, so there is nothing to open: no files, no frozen weights.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import ml_collections

from roam_jax.contracts import Task
from roam_jax.data.scene_batches import SceneBatches
from roam_jax.data.scene_random import VALIDATION_SEED
from roam_jax.model import sizes
from roam_jax.tasks.canvas import SceneModel
from roam_jax.tasks.canvas_task import SHARDING_RULES, scene_model, scene_task
from roam_jax.tasks.experiment import check_run, code_provenance, run_rounds
from roam_jax.tasks.shares import process_share
from roam_jax.train import sharding
from roam_jax.train.curriculum import Curriculum

VALIDATION = "val"


@dataclasses.dataclass(frozen=True)
class SceneSplit:
    """A stream of examples.

    Args:
        scene: `data.scene`.
        seed: that names the stream.
    """

    scene: str
    seed: int

    def describe(self) -> dict[str, Any]:
        """What a report says of it."""
        return {"scene": self.scene, "seed": self.seed}


@dataclasses.dataclass(frozen=True, eq=False)
class SceneExperiment:
    """A canvas model's config with its model built; satisfies `experiment.Trainable`.

    Args:
        config: the whole config.
        model: the model and its scene.
        task: the trainer's view of it.
        rules: sharding rules of its parameters.
        fingerprints: of data and pretrained weights, of which there are none.
    """

    config: ml_collections.ConfigDict
    model: SceneModel
    task: Task
    rules: sharding.Rules = SHARDING_RULES
    fingerprints: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def rounds(self) -> Curriculum:
        """Rounds of every training step."""
        return run_rounds(self.config)

    @property
    def splits(self) -> dict[str, SceneSplit]:
        """What is evaluated: examples that no run trains on."""
        return {VALIDATION: SceneSplit(self.config.data.scene, VALIDATION_SEED)}

    def batches(self) -> SceneBatches:
        """The endless training batches; each process of a cluster draws its own rows of them."""
        return SceneBatches(
            batch_size=self.config.train.batch_size,
            seed=self.config.seed,
            process=process_share(self.config),
        )

    def provenance(self) -> dict[str, Any]:
        """What a later reader needs to know of where a run came from."""
        train = SceneSplit(self.config.data.scene, self.config.seed)
        data = {"train": train, **self.splits}
        return {
            **code_provenance(),
            "data": {split: source.describe() for split, source in data.items()},
            "fingerprints": dict(self.fingerprints),
        }

    @property
    def flops_per_step(self) -> Callable[[int], int] | None:
        """FLOPs of the model in a training step, by rounds, without what remat computes again.

        None where the topology has edges that no closed form counts.
        """
        module, batch_size = self.model.module, self.config.train.batch_size
        if not sizes.is_counted(module):
            return None
        return lambda rounds: batch_size * sizes.step_flops(module, rounds=rounds)


def scene_experiment(config: ml_collections.ConfigDict) -> SceneExperiment:
    """Builds the task of a canvas model.

    Raises:
        ValueError: a value of the config does not fit; the message names what.
    """
    check_run(config)
    model = scene_model(config)
    experiment = SceneExperiment(
        config, model, scene_task(model, batch_size=config.train.batch_size)
    )
    experiment.batches()  # refuses a seed that is not to be trained on
    return experiment
