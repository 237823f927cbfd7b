"""A canvas model's predictions on examples that no run trains on, compiled once a number of rounds.

Noise is a function of the example, the noise level and the region's place among those that are
diffused, so that figures for different rounds, checkpoints and batch sizes are paired.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, UInt32

from roam_jax.contracts import Batch, Params
from roam_jax.evaluate.windows import PURE_NOISE, SEED, window_noise
from roam_jax.model.stack import BLOCKS
from roam_jax.tasks.balance import region_gradients
from roam_jax.tasks.canvas import Noised, SceneModel
from roam_jax.tasks.canvas_errors import cross_entropy, row_errors
from roam_jax.tasks.cell_values import from_cells


class CanvasPredictor:
    """A `SceneModel` on batches of examples.

    Args:
        model: the model.
        levels: half-open ranges of timesteps; level 0 is pure noise, then one for each of them.
        extrapolate: "last" allows rounds above the trained number.
        threshold: stopped mass from which a cell stops for good; None = all rounds run.
    """

    def __init__(
        self,
        model: SceneModel,
        *,
        levels: Sequence[tuple[int, int]],
        extrapolate: str | None,
        threshold: float | None,
    ):
        self._model = model
        steps = model.schedule.steps
        self._levels = ((steps - 1, steps), *levels)
        self._options = {"extrapolate": extrapolate, "threshold": threshold}
        # Apart from what depends on rounds, so that they are compiled once.
        self._cells = jax.jit(model.examples)
        self._at_level = jax.jit(self._measure, static_argnames="rounds")
        self._predict = jax.jit(self._predict_values, static_argnames="rounds")
        self._at_blocks = jax.jit(self._gradients, static_argnames="rounds")

    def measure(self, params: Params, batch: Batch, *, rounds: int, level: int) -> dict[str, Any]:
        """Errors of a batch with all diffused regions at one noise level.

        Args:
            params: the whole tree.
            batch: numbers of examples.
            rounds: number of rounds.
            level: 0 for pure noise, 1 + b for range b.

        Returns:
            "errors": region -> (B,), or of classes cross-entropy (B, N) by cell; "zero": region ->
            (B,), the same of predicting zero, not of classes; "classes" and "targets": region ->
            (B, N); "info": what the loop measured.
        """
        cells, index = self._cells(batch), batch["scene_index"]
        return self._at_level(params, cells, index, level, *self._levels[level], rounds=rounds)

    def examples(self, params: Params, batch: Batch, *, rounds: int) -> dict[str, Any]:
        """{"true", "predicted"}: stream -> values (B, *shape), predicted in one step from noise."""
        cells, index = self._cells(batch), batch["scene_index"]
        predicted = self._predict(params, cells, index, rounds=rounds)
        streams = self._model.streams
        true = {name: from_cells(streams[name], values) for name, values in cells.items()}
        return {"true": true, "predicted": {**true, **predicted}}

    def gradients(self, params: Params, batch: Batch, *, rounds: int) -> dict[str, Params]:
        """Region -> gradient of its loss at the blocks, noised as in training."""
        return self._at_blocks(params, self._cells(batch), batch["scene_index"], rounds=rounds)

    def _measure(
        self,
        params: Params,
        cells: Mapping[str, Array],
        index: UInt32[Array, " B"],
        level: ArrayLike,
        low: ArrayLike,
        high: ArrayLike,
        *,
        rounds: int,
    ) -> dict[str, Any]:
        model, noised = self._model, self._noised(cells, index, level, low, high)
        outputs, info = model.predict(params, noised, rounds=rounds, **self._options)
        found: dict[str, Any] = {name: {} for name in ("errors", "zero", "classes", "targets")}
        for name in model.predicted:
            objective, target = model.regions[name].objective, noised.targets[name]
            if objective == "classification":
                found["errors"][name] = cross_entropy(outputs[name], target)
                found["classes"][name] = jnp.argmax(outputs[name], axis=-1)
                found["targets"][name] = target
            else:
                found["errors"][name] = row_errors(objective, outputs[name], target)
                found["zero"][name] = jnp.square(target).mean(axis=(1, 2))
        return {**found, "info": info}

    def _noised(
        self,
        cells: Mapping[str, Array],
        index: UInt32[Array, " B"],
        level: ArrayLike,
        low: ArrayLike,
        high: ArrayLike,
    ) -> Noised:
        """Every diffused region at a timestep of its own in low..high - 1."""
        timesteps, noise = {}, {}
        for number, name in enumerate(self._model.diffused):
            timesteps[name], noise[name] = window_noise(
                index.astype(jnp.int32),
                level + number * len(self._levels),
                low,
                high,
                shape=cells[name].shape[1:],
            )
        return self._model.noise(cells, timesteps, noise)

    def _predict_values(
        self, params: Params, cells: Mapping[str, Array], index: UInt32[Array, " B"], *, rounds: int
    ) -> dict[str, Array]:
        """Predicted stream -> values (B, *shape)."""
        model, (low, high) = self._model, self._levels[PURE_NOISE]
        noised = self._noised(cells, index, PURE_NOISE, low, high)
        outputs, _ = model.predict(params, noised, rounds=rounds, **self._options)
        predicted = {}
        for name, output in outputs.items():
            if model.regions[name].diffused:
                data = noised.data[name]
                velocity = output.reshape(data.shape)
                output = model.schedule.predict_x0(data, velocity, noised.timesteps[name])
            elif model.regions[name].objective == "classification":
                output = jnp.argmax(output, axis=-1)
            predicted[name] = from_cells(model.streams[name], output)
        return predicted

    def _gradients(
        self, params: Params, cells: Mapping[str, Array], index: UInt32[Array, " B"], *, rounds: int
    ) -> dict[str, Params]:
        model, key = self._model, jax.random.fold_in(jax.random.key(SEED), index[0])
        noised = model.draw(key, cells)

        def losses_of(blocks: Params) -> dict[str, Float[Array, ""]]:
            outputs, _ = model.predict({**params, BLOCKS: blocks}, noised, rounds=rounds)
            return model.mean_errors(outputs, noised)

        names, stacked = region_gradients(losses_of, params[BLOCKS])
        return {
            name: jax.tree.map(lambda leaf, i=i: leaf[i], stacked) for i, name in enumerate(names)
        }


@functools.partial(jax.jit, donate_argnums=0)
def add_trees(total: Any, more: Any) -> Any:
    """The sum of two trees; the memory of the first is used again."""
    return jax.tree.map(jnp.add, total, more)
