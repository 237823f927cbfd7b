"""What every run has in common, whatever it trains: what `build` returns, and what it refuses."""

from __future__ import annotations

import importlib.metadata
import pathlib
import subprocess
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import ml_collections

from roam_jax.axes import MESH_AXES
from roam_jax.contracts import Task
from roam_jax.train import sharding
from roam_jax.train.curriculum import Curriculum
from roam_jax.train.workdir import LATER_LEAVES, LATER_SECTIONS

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "roam-jax")
# Tasks whose model runs in rounds.
LOOPED_TASKS = ("graft", "canvas", "clone")
# Leaves that a canvas model alone reads, beside its section `model`.
CANVAS_LEAVES = (
    "data.scene",
    "data.questions",
    "data.objects",
    "data.observed_frames",
    "canvas.predict",
    "loss.noised_fraction",
    "loss.weights",
    "loss.balance",
    "loss.gradnorm_alpha",
    "loss.decoder_only",
)
# Leaves that behaviour cloning alone reads.
CLONE_LEAVES = (
    "data.environment",
    "data.bodies",
    "data.demonstrations",
    "data.chunk",
    "data.pixels",
)


@runtime_checkable
class Trainable(Protocol):
    """A config with its data opened and its model built: what training and evaluation ask of it."""

    config: ml_collections.ConfigDict
    model: Any
    task: Task
    rules: sharding.Rules
    fingerprints: Mapping[str, str]

    @property
    def rounds(self) -> Curriculum:
        """Rounds of every training step."""

    @property
    def splits(self) -> Mapping[str, Any]:
        """What is evaluated, by name; each has `describe()`."""

    def batches(self) -> Any:
        """The endless training batches, with `get_state`, `set_state` and `close`."""

    def provenance(self) -> dict[str, Any]:
        """What a later reader needs to know of where a run came from."""


def check_run(config: ml_collections.ConfigDict) -> None:
    """Refuses what neither data nor weights nor devices could make right.

    Raises:
        ValueError: names the leaf.
    """
    run_rounds(config)
    if config.train.batch_size < 1:
        raise ValueError(f"train.batch_size = {config.train.batch_size}: expected at least 1")
    sizes = {axis: config.mesh[axis] for axis in MESH_AXES}
    for axis, size in sizes.items():
        if size < 1 and size != -1:
            raise ValueError(f"mesh.{axis} = {size}: expected at least 1, or -1 for the rest")
    rest = [f"mesh.{axis} = -1" for axis, size in sizes.items() if size == -1]
    if len(rest) > 1:
        raise ValueError(f"{', '.join(rest)}: expected at most one -1, for the rest")


def refuse_canvas_leaves(config: ml_collections.ConfigDict) -> None:
    """Refuses what a canvas model alone could heed, in a run that trains none.

    Raises:
        ValueError: names the leaf.
    """
    defaults = {key: LATER_LEAVES[key] for key in CANVAS_LEAVES}
    for section, leaves in LATER_SECTIONS.items():
        defaults |= {f"{section}.{leaf}": value for leaf, value in leaves.items()}
    refuse_leaves(config, defaults, "trains no canvas model, which alone reads it")
    refuse_clone_leaves(config)


def refuse_clone_leaves(config: ml_collections.ConfigDict) -> None:
    """Refuses what behaviour cloning alone could heed, in a run of another task.

    Raises:
        ValueError: names the leaf.
    """
    defaults = {key: LATER_LEAVES[key] for key in CLONE_LEAVES}
    refuse_leaves(config, defaults, "clones no expert; train.task = clone alone reads it")


def refuse_leaves(config: ml_collections.ConfigDict, defaults: Mapping[str, Any], why: str) -> None:
    """Refuses leaves that have no meaning for the task and yet were given a value.

    Args:
        config: the whole config.
        defaults: leaf -> the value that leaves it alone.
        why: what the task does not do, for the message.

    Raises:
        ValueError: names the leaf.
    """
    for key, default in defaults.items():
        value: Any = config
        for part in key.split("."):
            value = value[part]
        # A config that was read from JSON has lists.
        value = tuple(value) if isinstance(value, list) else value
        if value != default:
            raise ValueError(
                f"{key} = {value!r}: train.task = {config.train.task} {why}; expected {default!r}"
            )


def run_rounds(config: ml_collections.ConfigDict) -> Curriculum:
    """Rounds of every step; always one in a model without loops.

    Raises:
        ValueError: a curriculum that does not fit, or one of a model without loops.
    """
    loop, train = config.loop, config.train
    if train.task in LOOPED_TASKS:
        # A config that was read from JSON has a list.
        return Curriculum(loop.rounds, tuple(loop.curriculum), steps=train.steps)
    if loop.curriculum:
        raise ValueError(
            f"loop.curriculum = {loop.curriculum}: train.task = {train.task} has no loop, "
            "expected ()"
        )
    return Curriculum(1, (), steps=train.steps)


def code_provenance() -> dict[str, Any]:
    """Commit and versions of the code that runs."""
    return {
        "git_commit": _git_commit(),
        "packages": {name: _version(name) for name in PACKAGES},
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _git_commit() -> str | None:
    """Commit of the checkout that runs; None outside one."""
    root = pathlib.Path(__file__).resolve().parent
    done = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or None
