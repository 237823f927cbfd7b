"""Several seeds of a canvas config as one program of many steps, and what they have learned.

A call to the device runs many steps of all seeds, so that a small model is not held up by launches.
Every seed sees the examples, keys and first parameters that `train.py` with this seed would see.
"""

from __future__ import annotations

import dataclasses
import functools
import time
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from roam_jax.data.scene_random import VALIDATION_SEED
from roam_jax.model.sizes import forward_flops, step_flops
from roam_jax.tasks.balance import gradient_cosines
from roam_jax.tasks.canvas import SceneModel
from roam_jax.tasks.canvas_errors import cross_entropy, row_errors
from roam_jax.tasks.canvas_task import scene_model, scene_task
from roam_jax.train import optim
from roam_jax.train.state import INIT_STEP, TrainState
from roam_jax.train.step import make_update

QUESTION = "question"
# Examples of a batch of the evaluation.
EVALUATED_AT_ONCE = 64
# Moments of the training at which the cosines of region gradients are taken, evenly spread.
COSINES = 8


@dataclasses.dataclass(frozen=True)
class Trained:
    """What a config's seeds have become.

    Args:
        model: the model of them all.
        params: with a first axis over seeds.
        curves: {"step": [...], metric: (seeds, points)}, means over the steps of a call.
        cosines: {"step": [...], "a|b": (seeds, points)} of region gradients at the blocks.
        seconds: of the training without its compilation.
        compiled: seconds of the compilation.
    """

    model: SceneModel
    params: Any
    curves: dict[str, Any]
    cosines: dict[str, Any]
    seconds: float
    compiled: float


def train(
    config: ml_collections.ConfigDict,
    *,
    seeds: Sequence[int],
    chunk: int,
    cosines: bool,
    unroll: bool | None = None,
) -> Trained:
    """Trains all seeds side by side.

    Args:
        config: of train.task = canvas, without a curriculum; its own seed is not read.
        seeds: of the runs.
        chunk: steps of a call; divides train.steps.
        cosines: whether region gradients are compared during the training.
        unroll: whether blocks and rounds are written out; None = where the model finds it faster.
            Not written out they compile in a fraction of the time.
    """
    steps, batch = config.train.steps, config.train.batch_size
    if steps % chunk or config.loop.curriculum:
        raise ValueError(f"{steps} steps in calls of {chunk}: expected a divisor, no curriculum")
    model = scene_model(config)
    if unroll is not None:
        module = model.module.clone(unroll=unroll, remat=False)
        model = dataclasses.replace(model, module=module)
    task = scene_task(model, batch_size=batch)
    tx, schedule = optim.make_optimizer(config.optim, steps=steps, no_decay=task.no_decay)
    update = make_update(task, tx, schedule)
    numbers = jnp.asarray(seeds, jnp.uint32)

    def create(seed):
        params = task.init(jax.random.fold_in(jax.random.key(seed), INIT_STEP))
        return TrainState(jnp.zeros((), jnp.int32), params, tx.init(params))

    def step(state, seed):
        first = state.step.astype(jnp.uint32) * batch
        examples = {
            "scene_seed": jnp.full(batch, seed),
            "scene_index": first + jnp.arange(batch, dtype=jnp.uint32),
        }
        return update(state, {}, examples, seed, config.loop.rounds)

    @functools.partial(jax.jit, donate_argnums=0)
    def run(state):
        state, metrics = jax.lax.scan(
            lambda state, _: jax.vmap(step)(state, numbers), state, length=chunk
        )
        return state, jax.tree.map(lambda values: values.mean(axis=0), metrics)

    state = jax.jit(jax.vmap(create))(numbers)
    began = time.perf_counter()
    run = run.lower(state).compile()
    compiled = time.perf_counter() - began
    compare = make_comparison(model, config.loop.rounds) if cosines else None
    due = {round(steps * (i + 1) / COSINES / chunk) * chunk for i in range(COSINES)}
    logged, compared, seconds = [], [], 0.0
    for done in range(chunk, steps + 1, chunk):
        began = time.perf_counter()
        state, metrics = jax.block_until_ready(run(state))
        seconds += time.perf_counter() - began
        logged.append((done, jax.device_get(metrics)))
        if compare and done in due:
            compared.append((done, jax.device_get(compare(state.trainable))))
    return Trained(model, state.trainable, _by_name(logged), _by_name(compared), seconds, compiled)


def make_comparison(model: SceneModel, rounds: int) -> Any:
    """From parameters of all seeds to "a|b" -> cosine (S,) on the same examples of the scene."""

    def one(params):
        cells = model.examples(validation_examples(0, EVALUATED_AT_ONCE))
        noised = model.draw(jax.random.key(0), cells)

        def losses_of(blocks):
            outputs, _ = model.predict({**params, "blocks": blocks}, noised, rounds=rounds)
            return model.mean_errors(outputs, noised)

        return gradient_cosines(losses_of, params["blocks"])[1]

    return jax.jit(jax.vmap(one))


def validation_examples(first: Any, count: int) -> dict[str, Any]:
    """A batch of examples that no seed trains on; traceable."""
    return {
        "scene_seed": jnp.full(count, VALIDATION_SEED, jnp.uint32),
        "scene_index": jnp.asarray(first, jnp.uint32) + jnp.arange(count, dtype=jnp.uint32),
    }


class Measurement:
    """Errors of a model's seeds, by number of rounds and noise, compiled once.

    Noise is a function of example and region alone, so that figures of different configs are paired
    as long as they have the region.

    Args:
        model: of all seeds.
        rounds: the most rounds that are asked for; beyond the trained number its last row counts.
        examples: how many, a multiple of `EVALUATED_AT_ONCE`.
        threshold: of cells that stop; None = all rounds run.
    """

    def __init__(
        self, model: SceneModel, *, rounds: int, examples: int, threshold: float | None = None
    ):
        if examples % EVALUATED_AT_ONCE:
            raise ValueError(f"{examples} examples: expected a multiple of {EVALUATED_AT_ONCE}")
        self._model, self._rounds = model, rounds
        self._batches = examples // EVALUATED_AT_ONCE
        self._options = {"extrapolate": "last", "threshold": threshold}
        self._run = jax.jit(self._all)

    def __call__(self, params: Any, *, rounds: int, noise: str) -> dict[str, Any]:
        """Region -> "error" and, of classes, "accuracy", "cells", and "f1": (S,) each.

        Args:
            params: of all seeds.
            rounds: after which the state is read.
            noise: trained: every diffused region at a timestep of its own, as in training; pure:
                all are pure noise; or a region, which is noised as in training, the others are pure
                noise: all that a model of this region alone is given.
        """
        last = self._model.schedule.steps - 1
        free = [noise in ("trained", name) for name in self._model.diffused]
        low = jnp.asarray([0 if one else last for one in free], jnp.int32)
        found = jax.device_get(self._run(params, jnp.int32(rounds), low))
        figures = {name: {"error": errors.mean(axis=1)} for name, errors in found["errors"].items()}
        for name, classes in found["classes"].items():
            figures[name] |= _answers(
                classes, found["targets"][name], found["kinds"], self._model, name
            )
        if "used" in found:
            figures["rounds_used"] = {"error": found["used"].mean(axis=1)}
        return figures

    def _all(self, params: Any, exit: Any, low: Any) -> dict[str, Any]:
        """By seed and example: "errors" (S, E), "classes" (S, E, N); of the examples "targets"."""

        def batch(number):
            examples = validation_examples(number * EVALUATED_AT_ONCE, EVALUATED_AT_ONCE)
            cells = self._model.examples(examples)
            noised = self._noised(cells, examples["scene_index"], low)
            found = jax.vmap(lambda one: self._one(one, noised, exit))(params)
            kinds = cells[QUESTION][:, 0] if QUESTION in cells else jnp.zeros(0, jnp.int32)
            targets = {name: noised.targets[name] for name in found["classes"]}
            return found, {"targets": targets, "kinds": kinds}

        found, about = jax.lax.map(batch, jnp.arange(self._batches, dtype=jnp.uint32))
        used = found.pop("used", None)
        by_seed = jax.tree.map(lambda x: _join(jnp.moveaxis(x, 1, 0), 1), found)
        if used is not None:
            by_seed["used"] = used.T
        return by_seed | jax.tree.map(lambda x: _join(x, 0), about)

    def _noised(self, cells: Mapping[str, Any], index: Any, low: Any) -> Any:
        timesteps, noise = {}, {}
        for number, name in enumerate(self._model.diffused):

            def draw(index, name=name, number=number):
                key = jax.random.fold_in(jax.random.key(0), index)
                ours = jax.random.fold_in(key, zlib.crc32(name.encode()))
                time_key, noise_key = jax.random.split(ours)
                steps = self._model.schedule.steps
                timestep = jax.random.randint(time_key, (), low[number], steps)
                return timestep, jax.random.normal(noise_key, cells[name].shape[1:])

            timesteps[name], noise[name] = jax.vmap(draw)(index)
        return self._model.noise(cells, timesteps, noise)

    def _one(self, params: Any, noised: Any, exit: Any) -> dict[str, Any]:
        model = self._model
        outputs, info = model.predict(
            params, noised, rounds=self._rounds, exit=exit, **self._options
        )
        found: dict[str, Any] = {"errors": {}, "classes": {}}
        for name in model.predicted:
            objective, target = model.regions[name].objective, noised.targets[name]
            if objective == "classification":
                found["errors"][name] = cross_entropy(outputs[name], target).mean(axis=1)
                found["classes"][name] = jnp.argmax(outputs[name], axis=-1)
            else:
                found["errors"][name] = row_errors(objective, outputs[name], target)
        if model.options.halts:
            found["used"] = model.rounds_used(info)
        return found


def sizes(model: SceneModel, *, rounds: int) -> dict[str, int]:
    """Parameters, those of the blocks, and FLOPs an example: forward, and of a training step."""
    shapes = jax.eval_shape(model.init, jax.random.key(0))

    def count(tree):
        return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))

    blocks = {name: value for name, value in shapes["blocks"].items() if name != "loop"}
    return {
        "parameters": count(shapes),
        "block_parameters": count(blocks),
        "forward_flops": sum(forward_flops(model.module, rounds=rounds).values()),
        "step_flops": step_flops(model.module, rounds=rounds),
    }


def _answers(
    classes: np.ndarray, targets: np.ndarray, kinds: np.ndarray, model: SceneModel, name: str
) -> dict[str, Any]:
    """Accuracy over all cells and by cell, of each kind of question; F1 of two classes."""
    right, stream = classes == targets, model.streams[name]
    figures: dict[str, Any] = {"accuracy": right.mean(axis=(1, 2))}
    names = stream.cell_names or tuple(map(str, range(targets.shape[1])))
    words = getattr(model.scene, "words", ())
    for kind in np.unique(kinds) if len(kinds) else (None,):
        rows = np.ones(len(targets), bool) if kind is None else kinds == kind
        about = "" if kind is None else f"{words[kind]}: "
        for i, cell in enumerate(names):
            figures.setdefault("cells", {})[about + cell] = right[:, rows, i].mean(axis=1)
    if stream.vocabulary == 2:
        said, true = classes == 1, targets == 1
        hits = (said & true).sum(axis=(1, 2))
        figures["f1"] = 2 * hits / np.maximum(said.sum(axis=(1, 2)) + true.sum(), 1)
    return figures


def _join(values: Any, axis: int) -> Any:
    """Batches and their rows as one axis."""
    shape = values.shape
    return values.reshape(*shape[:axis], shape[axis] * shape[axis + 1], *shape[axis + 2 :])


def _by_name(logged: Sequence[tuple[int, Mapping[str, Any]]]) -> dict[str, Any]:
    if not logged:
        return {}
    steps, values = zip(*logged, strict=True)
    stacked = jax.tree.map(lambda *points: np.stack(points, axis=1), *values)
    return {"step": np.array(steps), **stacked}
