"""Parameters of a trained run, for evaluation: what trained, merged with the frozen files."""

from __future__ import annotations

import pathlib

from jax.sharding import Mesh

from roam_jax.contracts import Params, Task
from roam_jax.train import sharding
from roam_jax.train.checkpoint import Checkpoints
from roam_jax.train.state import abstract_params, create_params, load_pretrained, merge, partition


def load_params(
    task: Task,
    checkpoints: pathlib.Path,
    *,
    mesh: Mesh,
    rules: sharding.Rules,
    seed: int,
    step: int | None = None,
) -> tuple[Params, int]:
    """All parameters of one saved step; the optimizer's moments are not read.

    Args:
        task: what was trained.
        checkpoints: folder of the saved steps, `Workdir.checkpoints`.
        mesh: the device mesh.
        rules: sharding rules, see `sharding.match_rules`.
        seed: of the run; frozen parameters that no file provides are made from it again.
        step: which; None = the latest.

    Returns:
        The parameters and their step.

    Raises:
        FileNotFoundError: that step is not there; names those that are.
        ValueError: the checkpoint or the pretrained parameters do not fit the task.
    """
    with Checkpoints(checkpoints) as saved:
        step = saved.pick(step)
        params = abstract_params(task, mesh, rules=rules)
        trainable, frozen = partition(params, task.trainable)
        trainable = saved.restore_trainable(trainable, step=step)
    pretrained = load_pretrained(task, params)
    frozen = create_params(task, frozen, pretrained=pretrained, seed=seed)
    return merge(trainable, frozen), step
