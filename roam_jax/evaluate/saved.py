"""A trained run as it lies on disk: a workdir, or a model directory that was exported from one.

The config comes from the folder; frozen weights and data are looked up where it says (or where an
override says) and must be the ones that the run was trained with.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import ml_collections
from jax.sharding import Mesh

from roam_jax.contracts import Params, Task
from roam_jax.data.members import join_spaces
from roam_jax.data.options import Spaces
from roam_jax.data.statistics import RobotStatistics
from roam_jax.evaluate.as_trained import (
    DATA_KEYS,
    check_fingerprints,
    check_overrides,
    with_statistics,
)
from roam_jax.evaluate.model_directory import (
    ModelDirectory,
    is_model_directory,
    read_model_directory,
)
from roam_jax.evaluate.placement import evaluation_mesh
from roam_jax.tasks.build import build
from roam_jax.tasks.clone_build import CloneExperiment, clone_experiment, saved_specs
from roam_jax.tasks.datasets import saved_statistics
from roam_jax.tasks.experiment import Trainable
from roam_jax.tasks.sketch import Sketch, sketch
from roam_jax.train import sharding
from roam_jax.train.load import load_params, place_params
from roam_jax.train.workdir import (
    FINGERPRINTS,
    Workdir,
    differences,
    plain,
    with_later_leaves,
)


@dataclasses.dataclass(frozen=True)
class Saved:
    """What a folder says of its run; neither data nor weights are opened yet.

    Args:
        path: the folder.
        config: the run's, with overrides.
        provenance: where the run came from.
        changed: {"data.root": "embedded -> elsewhere"}: what differs from the run's config.
        directory: the trained parameters, where the folder is a model directory.
    """

    path: pathlib.Path
    config: ml_collections.ConfigDict
    provenance: Mapping[str, Any]
    changed: Mapping[str, str]
    directory: ModelDirectory | None

    @property
    def averaged(self) -> bool:
        """Whether the run keeps an average of what trains, and that is what `eval.ema` asks for."""
        return self.config.optim.ema_decay > 0 and self.config.eval.ema

    @property
    def statistics(self) -> dict[str, RobotStatistics]:
        """The scaling that the run began with, by member; {} of an earlier version's workdir."""
        return saved_statistics(self.provenance)

    def experiment(self) -> Trainable:
        """Opens the data and builds the model.

        Raises:
            FileNotFoundError: data or weights are not where the config says.
            ValueError: they are not those that the run was trained with.
        """
        if self.config.train.task == "clone":
            return self._demonstrated()
        experiment = build(self.config, self.statistics)
        check_fingerprints(
            self.config, experiment.fingerprints, self._fingerprints, changed=self.changed
        )
        if self.changed.keys() & set(DATA_KEYS) and self.config.train.task == "graft":
            return with_statistics(experiment, self.statistics, where=self.path)
        return experiment

    def bodies(self) -> CloneExperiment:
        """A cloned policy for the worlds that it was trained in; opens no demonstrations.

        Raises:
            ValueError: the run cloned nothing, or does not say in which worlds.
        """
        task, specs = self.config.train.task, saved_specs(self.provenance)
        if task != "clone" or not specs:
            raise ValueError(
                f"{self.path}: train.task = {task!r} and {len(specs)} worlds in its provenance; "
                "expected a run of 'clone' with at least one"
            )
        return clone_experiment(self.config, specs)

    def _demonstrated(self) -> CloneExperiment:
        """A cloned policy with the demonstrations that it learned from.

        Raises:
            ValueError: those that are there, or that are made now, are others.
        """
        experiment = self.bodies()
        for name, found in experiment.fingerprints.items():
            if found != (trained := self._fingerprints.get(name)):
                raise ValueError(
                    f"{name} have fingerprint {found}, the run was trained with {trained}: the "
                    "generator or the physics has changed since; only --metrics rollout, which "
                    "reads none, can measure this run"
                )
        return experiment

    def model(self) -> Sketch:
        """The model alone, for which no data has to be there; of a graft.

        Raises:
            FileNotFoundError: weights are not where the config says.
            ValueError: they are not those that the run was trained with, or the folder holds no
                statistics, by which the robot's dimensions are known.
        """
        plan = sketch(self.config, robot=self.robot_sizes())
        self.check(plan.model.backbone.fingerprints())
        return plan

    def check(self, found: Mapping[str, str]) -> None:
        """Refuses inputs that are others than the run was trained with.

        Args:
            found: fingerprints of some of its inputs, such as {"vae": ...}.

        Raises:
            ValueError: names what differs.
        """
        trained = {name: self._fingerprints.get(name) for name in found}
        check_fingerprints(self.config, found, trained, changed=self.changed)

    def robot_sizes(self) -> tuple[int, int, bool]:
        """Dimensions of actions and states, and whether robots of a mixture lack some.

        Raises:
            ValueError: the folder holds no statistics.
        """
        statistics = self.statistics
        if not statistics:
            raise ValueError(
                f"{self.path} holds no statistics of actions and proprio (a run of an earlier "
                "version), so nothing says what its actions mean; expected a run of this version"
            )
        specs = [Spaces(s.actions.spec, s.proprio.spec) for s in statistics.values()]
        spaces = join_spaces(specs)
        actions, proprio = spaces or specs[0]
        return len(actions), len(proprio), spaces is not None

    def params(
        self, task: Task, *, rules: sharding.Rules, mesh: Mesh, step: int | None = None
    ) -> tuple[Params, int]:
        """All parameters of one step, and the step; of what trained the average (`averaged`).

        Args:
            task: of `experiment` or `model`.
            rules, mesh: where parameters go.
            step: which; None = the latest.

        Raises:
            FileNotFoundError: that step is not there.
            ValueError: what is saved does not fit the task.
        """
        placed = {"mesh": mesh, "rules": rules, "seed": self.config.seed}
        if self.directory is None:
            folder, average = Workdir(self.path).checkpoints, self.averaged
            return load_params(task, folder, step=step, average=average, **placed)
        if step not in (None, self.directory.step):
            raise FileNotFoundError(
                f"no step {step} in {self.path}: a model directory holds one, {self.directory.step}"
            )
        params = place_params(task, self.directory.trainable, where=str(self.path), **placed)
        return params, self.directory.step

    @property
    def _fingerprints(self) -> Mapping[str, str]:
        return self.provenance.get(FINGERPRINTS, {})


@dataclasses.dataclass(frozen=True)
class SavedRun:
    """A trained run that was opened.

    Args:
        experiment: data and model.
        params: the whole tree.
        step: that they are of.
        provenance: where the run came from.
        changed: what differs from the run's config.
    """

    experiment: Trainable
    params: Params
    step: int
    provenance: Mapping[str, Any]
    changed: Mapping[str, str]


def read_saved(
    path: str | pathlib.Path,
    *,
    overrides: Callable[[ml_collections.ConfigDict], None] | None = None,
) -> Saved:
    """Reads what a workdir or a model directory says of its run.

    Args:
        path: the folder.
        overrides: changes the run's config in place. Only `eval.*`, `mesh.*` and `FREE_KEYS` may
            change.

    Raises:
        FileNotFoundError: neither of both.
        ValueError: the folder is damaged, or overrides that the run does not allow.
    """
    path, directory = pathlib.Path(path), None
    if is_model_directory(path):
        directory = read_model_directory(path)
        saved, provenance = directory.config, directory.provenance
    else:
        saved, provenance = Workdir(path).read()
    saved = with_later_leaves(saved)
    config = ml_collections.ConfigDict(_with_tuples(saved))
    if overrides is not None:
        overrides(config)
    changed = differences(saved, plain(config))
    check_overrides(changed, mixture=bool(config.data.mixture))
    return Saved(path, config, provenance, changed, directory)


def open_saved(
    path: str | pathlib.Path,
    *,
    step: int | None = None,
    overrides: Callable[[ml_collections.ConfigDict], None] | None = None,
) -> SavedRun:
    """Opens a trained run with its data and loads its parameters.

    Args:
        path: a workdir or a model directory.
        step: which checkpoint; None = the latest.
        overrides: as for `read_saved`.

    Raises:
        FileNotFoundError: no such folder or checkpoint, or data or weights are not where the
            config says.
        ValueError: overrides that the run does not allow; data or frozen weights that are not
            those it was trained with.
    """
    saved = read_saved(path, overrides=overrides)
    experiment = saved.experiment()
    mesh = evaluation_mesh(saved.config.mesh)
    params, step = saved.params(experiment.task, rules=experiment.rules, mesh=mesh, step=step)
    return SavedRun(experiment, params, step, saved.provenance, saved.changed)


def _with_tuples(saved: Any) -> Any:
    """What JSON gave back, with tuples for lists: an override must be of the type that it was."""
    if isinstance(saved, Mapping):
        return {name: _with_tuples(value) for name, value in saved.items()}
    return tuple(map(_with_tuples, saved)) if isinstance(saved, list) else saved
