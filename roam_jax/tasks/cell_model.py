"""A canvas model that learns from the values of its cells, wherever they come from.

Diffused regions are noised, each to a timestep of its own in every row, and their velocity is
learned (v-prediction, plain MSE); any subset of them may stay clean and be an input instead.
Regressed and classified regions are learned queries, with MSE and cross-entropy.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from roam_jax.contracts import Params
from roam_jax.diffusion.schedule import NoiseSchedule
from roam_jax.microbatch import Part, draw_rows
from roam_jax.model.canvas_model import CanvasModel
from roam_jax.model.cells import CLEAN, QUERIES, CellRegion
from roam_jax.model.decoders import owner_parts
from roam_jax.model.loop_options import LoopOptions
from roam_jax.tasks.balance import SECTION, Balance, gradient_norms
from roam_jax.tasks.canvas_errors import distance, row_errors
from roam_jax.tasks.distillation import blend, mix, student_exit
from roam_jax.tasks.noised import Noised


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class CellModel:
    """A canvas model with everything that loss and evaluation share, given the values of cells.

    Args:
        module: the model.
        balance: of the region losses.
        schedule: the noise schedule.
        noised_fraction: share of the diffused regions that is noised, row by row; the others are
            inputs. At least one of a row is noised.
        ponder: weight of the mean number of rounds, with halting.
        steps: of the training, over which the student of a self-distillation leaves the data.

    Raises:
        ValueError: a fraction out of range.
    """

    module: CanvasModel
    balance: Balance
    schedule: NoiseSchedule = NoiseSchedule()
    noised_fraction: float = 1.0
    ponder: float = 0.0
    steps: int = 1

    def __post_init__(self):
        if not 0 <= self.noised_fraction <= 1:
            raise ValueError(f"loss.noised_fraction = {self.noised_fraction}: expected 0 to 1")

    @property
    def options(self) -> LoopOptions:
        """Of the model's loop."""
        return self.module.options

    @functools.cached_property
    def regions(self) -> dict[str, CellRegion]:
        """What the model knows of each region."""
        return {region.name: region for region in self.module.regions}

    @property
    def predicted(self) -> tuple[str, ...]:
        """Regions that are predicted, in layout order."""
        return tuple(name for name, region in self.regions.items() if region.objective)

    @property
    def diffused(self) -> tuple[str, ...]:
        """Those of `predicted` whose velocity is."""
        return tuple(name for name in self.predicted if self.regions[name].diffused)

    def init(self, rng: jax.Array) -> Params:
        """Fresh parameters of model and balance."""
        clean = {name: jnp.full(1, CLEAN) for name in self.diffused}
        noised = self.noise(self._blank(), clean, {})
        inputs = {"data": noised.data, "timesteps": noised.timesteps}
        params = self.module.init(rng, **inputs, batch=1, rounds=1)["params"]
        balance = self.balance.init()
        return {**params, SECTION: balance} if balance else params

    def _blank(self) -> dict[str, Array]:
        """Zeros as the values of one example's cells."""
        return {
            name: blank_cells(region, self.module.layout.region_numel(name))
            for name, region in self.regions.items()
            if region.kind != QUERIES
        }

    def noise(
        self,
        cells: Mapping[str, Array],
        timesteps: Mapping[str, Int[Array, " B"]],
        noise: Mapping[str, Float[Array, "B N ..."]],
    ) -> Noised:
        """Noises the diffused regions.

        Args:
            cells: from `examples`.
            timesteps: diffused region -> 0..999 by row, or `CLEAN`.
            noise: diffused region -> standard normal, of the shape of its cells; may lack regions
                that are clean in all rows.
        """
        data, targets, counts = {}, {}, {}
        for name, region in self.regions.items():
            if region.holds_data:
                data[name] = cells[name]
            if not region.objective:
                continue
            targets[name] = cells[name]
            counts[name] = jnp.ones(cells[name].shape[0], bool)
            if region.diffused and name in noise:
                counts[name] = timesteps[name] != CLEAN
                level = jnp.where(counts[name], timesteps[name], 0)
                rows = counts[name].reshape(-1, *[1] * (cells[name].ndim - 1))
                noisy = self.schedule.add_noise(cells[name], noise[name], level)
                data[name] = jnp.where(rows, noisy, cells[name])
                targets[name] = self.schedule.velocity(cells[name], noise[name], level)
            elif region.diffused:
                counts[name] = jnp.zeros_like(counts[name])
            if region.kind == "scalars":
                targets[name] = targets[name][..., None]
        return Noised(data, {name: timesteps[name] for name in self.diffused}, targets, counts)

    def draw(
        self, rng: jax.Array, cells: Mapping[str, Array], *, part: Part | None = None
    ) -> Noised:
        """Noises as training does: timesteps uniform in each row and region, some regions clean.

        Args:
            rng: of all draws.
            cells: from `examples`.
            part: of a larger batch that these are, whose draws they get.
        """
        subset_rng, time_rng, noise_rng = jax.random.split(rng, 3)
        size = next(iter(cells.values())).shape[0]
        totals = None if part is None else dict.fromkeys(self.predicted, jnp.float32(size))
        if not self.diffused:
            return self.noise(cells, {}, {})._replace(totals=totals)

        def levels(rows: int) -> Int[Array, "regions B"]:
            shape = (len(self.diffused), rows)
            chance = jax.random.uniform(subset_rng, shape)
            noised = (chance < self.noised_fraction) | (chance == chance.min(axis=0))
            return jnp.where(
                noised, jax.random.randint(time_rng, shape, 0, self.schedule.steps), CLEAN
            )

        timesteps = draw_rows(part, size, levels, axis=1)
        if part is not None:
            noised = (levels(size * part.count) != CLEAN).sum(axis=1) / part.count
            totals |= dict(zip(self.diffused, noised, strict=True))
        sizes = [math.prod(cells[name].shape[1:]) for name in self.diffused]
        drawn = draw_rows(part, size, lambda n: jax.random.normal(noise_rng, (n, sum(sizes))))
        parts = jnp.split(drawn, np.cumsum(sizes)[:-1].tolist(), axis=1)
        noise = {
            name: part.reshape(cells[name].shape)
            for name, part in zip(self.diffused, parts, strict=True)
        }
        noised = self.noise(cells, dict(zip(self.diffused, timesteps, strict=True)), noise)
        return noised._replace(totals=totals)

    def embed(self, params: Params, noised: Noised) -> Float[Array, "B N D"]:
        """Cells before the first block."""
        size = next(iter((noised.targets or noised.data).values())).shape[0]
        return self._apply(params, noised.data, noised.timesteps, batch=size, method="embed")

    def loop(
        self, params: Params, cells: Float[Array, "B N D"], *, rounds: int, **options: Any
    ) -> tuple[Float[Array, "B N D"], dict]:
        """Cells after the rounds, and what was measured; options as of `CanvasModel.loop`."""
        return self._apply(params, cells, rounds=rounds, method="loop", **options)

    def finish(self, params: Params, cells: Float[Array, "B N D"]) -> Float[Array, "B N D"]:
        """Cells after any round, normed as decoders read them."""
        return self._apply(params, cells, method="finish")

    def decode(
        self, params: Params, finished: Float[Array, "B N D"]
    ) -> dict[str, Float[Array, "B _ A"]]:
        """Predicted region -> velocity, values or logits, from `finish`'s cells.

        No gradient goes from the decoders of `balance.decoder_only` to the cells.
        """
        free = [name for name in self.predicted if name not in self.balance.decoder_only]
        found = self._apply(params, finished, tuple(free), method="decode")
        for name in self.balance.decoder_only:
            routed = self.balance.route(finished, name)
            found |= self._apply(params, routed, (name,), method="decode")
        return {name: found[name] for name in self.predicted}

    def predict(
        self, params: Params, noised: Noised, *, rounds: int, **options: Any
    ) -> tuple[dict[str, Float[Array, "B _ A"]], dict]:
        """Predictions by region, and what the loop measured; options as of `CanvasModel.loop`."""
        cells, info = self.loop(params, self.embed(params, noised), rounds=rounds, **options)
        return self.decode(params, self.finish(params, cells)), info

    def _apply(self, params: Params, *args: Any, **options: Any) -> Any:
        own = {name: value for name, value in params.items() if name != SECTION}
        return self.module.apply({"params": own}, *args, **options)

    def errors(self, outputs: Mapping[str, Array], noised: Noised) -> dict[str, Float[Array, " B"]]:
        """Predicted region -> error by row: mean square, or cross-entropy of tokens in nats."""
        return {
            name: row_errors(
                self.regions[name].objective,
                outputs[name],
                noised.targets[name],
                noised.mask(name),
            )
            for name in self.predicted
        }

    def mean_errors(
        self, outputs: Mapping[str, Array], noised: Noised
    ) -> dict[str, Float[Array, ""]]:
        """Predicted region -> mean error of the rows that count; 0 where none does."""
        errors = self.errors(outputs, noised)
        return {name: noised.mean(name, errors[name]) for name in self.predicted}

    def cell_loss(
        self,
        params: Params,
        cells: Mapping[str, Array],
        rng: jax.Array,
        *,
        rounds: int,
        step: Int[Array, ""] | None = None,
        masks: Mapping[str, Bool[Array, "B N A"]] = MappingProxyType({}),
        part: Part | None = None,
        totals: Mapping[str, Float[Array, ""]] = MappingProxyType({}),
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """The balanced sum of the region losses, and metrics.

        Args:
            params: of `init`.
            cells: region -> values of its cells, of all but queries.
            rng: of noise and of a student's exit.
            rounds: static.
            step: finished updates; None where nobody counts them.
            masks: region -> which of its numbers are to be predicted; rows then count by how many
                are.
            part: of a larger batch that these rows are.
            totals: then region of `masks` -> as `Noised.totals`.

        Metrics are "loss/REGION", of a learned balance "weight/REGION", with self-distillation
        "distillation/REGION" (what the student adds), with halting "loss/ponder" and
        "rounds_used".
        """
        draw_rng, exit_rng = jax.random.split(rng)
        noised = self.draw(draw_rng, cells, part=part)
        if masks:
            sizes = {name: mask.sum(axis=(1, 2)) for name, mask in masks.items()}
            noised = noised._replace(masks=masks, counts=noised.counts | sizes)
        counted = None
        if part is not None:
            noised = noised._replace(totals=noised.totals | totals)
            counted = {name: total > 0 for name, total in noised.totals.items()}
        embedded = self.embed(params, noised)
        taught = self.options.self_distillation and rounds > 1
        collect = taught and self.options.over == "stack"
        cells, info = self.loop(params, embedded, rounds=rounds, collect=collect)
        finished = self.finish(params, cells)
        outputs = self.decode(params, finished)
        losses = self.mean_errors(outputs, noised)
        metrics = {f"loss/{name}": value for name, value in losses.items()}
        norms = None
        if self.balance.needs_norms:
            norms = gradient_norms(
                lambda cells: self.mean_errors(self.decode(params, cells), noised), finished
            )
        if taught:
            exit = student_exit(exit_rng, rounds)
            if collect:
                student = jnp.take(info["states"], exit - 1, axis=0)
            else:
                student, _ = self.loop(params, embedded, rounds=rounds, exit=exit)
            added = self._student(params, student, outputs, noised, step=step)
            metrics |= {f"distillation/{name}": value for name, value in added.items()}
            losses = {name: losses[name] + added[name] for name in losses}
        total, weights = self.balance(params.get(SECTION, {}), losses, norms, counted=counted)
        if self.balance.kind != "fixed":
            metrics |= weights
        if self.options.halts:
            used = self.rounds_used(info)
            metrics |= {"loss/ponder": self.ponder * used, "rounds_used": used}
            total += metrics["loss/ponder"]
        return total, metrics

    def _student(
        self,
        params: Params,
        cells: Float[Array, "B N D"],
        teacher: Mapping[str, Array],
        noised: Noised,
        *,
        step: Int[Array, ""] | None,
    ) -> dict[str, Float[Array, ""]]:
        """What an earlier exit adds to each region's loss; see `tasks/distillation.py`."""
        outputs = self.decode(params, self.finish(params, cells))
        distances = {
            name: noised.mean(
                name,
                distance(
                    self.regions[name].objective,
                    outputs[name],
                    jax.lax.stop_gradient(teacher[name]),
                    noised.mask(name),
                ),
            )
            for name in self.predicted
        }
        share = mix(step, self.steps)
        return blend(self.mean_errors(outputs, noised), distances, share=share)

    def rounds_used(self, info: Mapping[str, Any]) -> Float[Array, ""]:
        """Mean over blocks and cells of the rounds that a cell runs, from the loop's "running"."""
        places = owner_parts(self.module.layout, self.module.regions)
        cells = np.arange(sum(map(self.module.layout.region_numel, self.regions)))
        counts = {name: len(cells[place]) for name, place in places.items()}
        used = [counts[name] * info["running"][name].sum(axis=-1).mean() for name in counts]
        return sum(used) / sum(counts.values())


def blank_cells(region: CellRegion, cells: int) -> Array:
    """Zeros as the values of a region's cells, of one example."""
    if region.kind == "tokens":
        return jnp.zeros((1, cells), jnp.int32)
    if region.kind == "scalars":
        return jnp.zeros((1, cells), jnp.float32)
    return jnp.zeros((1, cells, region.features), jnp.float32)
