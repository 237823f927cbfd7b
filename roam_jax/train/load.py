"""Parameters of a trained run, for evaluation: what trained, merged with the frozen files."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping

import jax
import numpy as np
from jax.sharding import Mesh

from roam_jax.contracts import Params, Task
from roam_jax.train import names, sharding
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
    average: bool = False,
) -> tuple[Params, int]:
    """All parameters of one saved step; the optimizer's moments are not read.

    Args:
        task: what was trained.
        checkpoints: folder of the saved steps, `Workdir.checkpoints`.
        mesh: the device mesh.
        rules: sharding rules, see `sharding.match_rules`.
        seed: of the run; frozen parameters that no file provides are made from it again.
        step: which; None = the latest.
        average: take the average of what trained, of a run that keeps one (optim.ema_decay).

    Returns:
        The parameters and their step.

    Raises:
        FileNotFoundError: that step is not there; names those that are.
        ValueError: the checkpoint or the pretrained parameters do not fit the task, or the run
            kept no average.
    """
    with Checkpoints(checkpoints) as saved:
        step = saved.pick(step)
        params = abstract_params(task, mesh, rules=rules)
        trainable, _ = partition(params, task.trainable)
        trainable = saved.restore_part("ema" if average else "trainable", trainable, step=step)
    return _with_frozen(task, params, trainable, seed=seed), step


def place_params(
    task: Task,
    arrays: Mapping[str, np.ndarray],
    *,
    mesh: Mesh,
    rules: sharding.Rules,
    seed: int,
    where: str,
) -> Params:
    """All parameters, what trained from arrays by name.

    Args:
        task, mesh, rules, seed: as for `load_params`.
        arrays: "/"-joined name -> value of everything that trained.
        where: they come from, for the message.

    Raises:
        ValueError: names that are missing, unexpected or of another shape, all in one message; or
            the pretrained parameters do not fit the task.
    """
    params = abstract_params(task, mesh, rules=rules)
    expected = names.flatten(partition(params, task.trainable)[0])
    problems = [f"{name} is missing" for name in expected if name not in arrays]
    problems += [f"{name} is unexpected" for name in arrays if name not in expected]
    problems += [
        f"{name} has shape {arrays[name].shape}, expected {leaf.shape}"
        for name, leaf in expected.items()
        if name in arrays and arrays[name].shape != leaf.shape
    ]
    if problems:
        raise ValueError(f"{where}: trained parameters: {'; '.join(problems)}")
    placed = {
        name: jax.device_put(np.asarray(arrays[name], np.float32), leaf.sharding)
        for name, leaf in expected.items()
    }
    return _with_frozen(task, params, names.unflatten(placed), seed=seed)


def _with_frozen(task: Task, params: Params, trainable: Params, *, seed: int) -> Params:
    """What trained, and what is frozen from its files; `params` has the shapes of both."""
    _, frozen = partition(params, task.trainable)
    pretrained = load_pretrained(task, params)
    return merge(trainable, create_params(task, frozen, pretrained=pretrained, seed=seed))
