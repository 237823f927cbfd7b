"""What a policy is made of besides its model: how it reads, whose robot it moves, and its seeds."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping, Sequence

import ml_collections
import numpy as np
from jaxtyping import Float32, Int

from roam_jax.cogvideox.graft_cells import DATA_FIELDS
from roam_jax.cogvideox.importing import hash_file
from roam_jax.data.embedded import language_embedding
from roam_jax.data.members import join_spaces
from roam_jax.data.options import LANGUAGE_EMBEDDING, Spaces
from roam_jax.data.statistics import RobotStatistics
from roam_jax.data.text import TextEmbeddings
from roam_jax.evaluate.observation import ObservationReader, per_world
from roam_jax.tasks.datasets import EMBEDDED, dataset_choices
from roam_jax.tasks.graft import GraftModel


def check_action_steps(model: GraftModel, steps: int) -> None:
    """Refuses steps that a decoder does not take.

    Raises:
        ValueError: more than one without diffusion, or a number out of range.
    """
    if not model.diffuses_actions and steps != 1:
        raise ValueError(
            f"action_steps = {steps}: the decoder {model.module.graft_config.decoder!r} predicts "
            "its actions at once; expected 1, or a run with decoder.kind = 'tokens_diffused'"
        )
    if not 1 <= steps <= model.schedule.steps:
        raise ValueError(f"action_steps = {steps}: expected 1..{model.schedule.steps}")


def require_actions(config: ml_collections.ConfigDict, *, where: str | pathlib.Path) -> None:
    """Refuses runs without a policy.

    Raises:
        ValueError: of another task, or one that never learned actions.
    """
    if config.train.task == "graft" and config.canvas.action_weight:
        return
    if config.train.task == "clone":
        raise ValueError(
            f"{where} is a run of train.task = 'clone', expected 'graft'; "
            "roam_jax.evaluate.play.load_policy loads policies of both"
        )
    why = f"train.task = {config.train.task!r}"
    if config.train.task == "graft":
        why = f"canvas.action_weight = {config.canvas.action_weight}"
    raise ValueError(
        f"{where} has no policy: {why}; expected a run of train.task = 'graft' that learned actions"
    )


def pick_robot(statistics: Mapping[str, RobotStatistics], robot: str | None) -> str:
    """The member of the run whose actions are predicted.

    Raises:
        ValueError: no such member, or none was named and there are several.
    """
    if robot is None and len(statistics) == 1:
        return next(iter(statistics))
    if robot not in statistics:
        named = ", ".join(statistics)
        given = f"{robot!r} is none of the run's" if robot else "the run has several robots"
        raise ValueError(f"robot: {given}; expected one of {named or 'none: it has one dataset'}")
    return robot


def make_reader(
    config: ml_collections.ConfigDict,
    statistics: Mapping[str, RobotStatistics],
    model: GraftModel,
    member: str,
) -> ObservationReader:
    """Reads observations as a run was trained.

    Args:
        config: of the run.
        statistics: scaling of all its robots, by member.
        model: the model.
        member: whose robot acts.
    """
    specs = [Spaces(s.actions.spec, s.proprio.spec) for s in statistics.values()]
    regions = model.module.layout.regions
    return ObservationReader(
        time=model.time,
        image_size=tuple(config.data.image_size),
        statistics=statistics[member],
        spaces=join_spaces(specs),
        cameras=tuple(config.data.cameras)[1:],
        reads=tuple(field for region, field in DATA_FIELDS.items() if region in regions),
        has_goal="goal_latent" in model.observed_fields,
    )


def make_embedder(
    data: ml_collections.ConfigDict, member: str, check: Callable[[Mapping[str, str]], None]
) -> Callable[[str], Float32[np.ndarray, "S D"]]:
    """From an instruction to its embedding, as the run was trained.

    Args:
        data: section of the config.
        member: whose robot acts.
        check: refuses fingerprints of other inputs than the run's.

    Raises:
        FileNotFoundError: the run's file of embeddings is not there.
        ValueError: it is another one.
    """
    if data.text != LANGUAGE_EMBEDDING:
        embeddings = TextEmbeddings(data.text)
        check({"text": hash_file(embeddings.path)})
        return embeddings.__getitem__
    roots = {choice.name: str(choice.root) for choice in dataset_choices(data)}
    if roots[member].partition(":")[0] == EMBEDDED:
        return lambda text: language_embedding(text)[None]

    def refuse(text: str) -> Float32[np.ndarray, "S D"]:
        raise ValueError(
            f"instruction {text!r}: the run reads the sentence embeddings that its dataset stores "
            "(data.text = 'language_embedding') and nothing makes them of a text; expected the "
            "embedding, an array of numbers"
        )

    return refuse


def world_seeds(seed: int | Sequence[int], size: int) -> Int[np.ndarray, " B"]:
    """One for each world.

    Raises:
        ValueError: another number of them, or one that is no integer of 32 bits.
    """
    seeds = np.asarray(seed)
    seeds = seeds + np.arange(size) if seeds.ndim == 0 else seeds
    per_world(seeds, size, name="seeds")
    limits = np.iinfo(np.int32)
    if seeds.dtype.kind not in "iu" or ((seeds < limits.min) | (seeds > limits.max)).any():
        raise ValueError(f"seed = {seed}: expected integers of 32 bits")
    return seeds.astype(np.int32)
