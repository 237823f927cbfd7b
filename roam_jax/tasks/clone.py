"""Behaviour cloning: chunks of an expert's actions from what a body observes, for several bodies.

One canvas a body, one set of parameters. From the present observation alone every joint's cell of
actions predicts its next P numbers, by MSE where the episode goes on (action chunks: Zhao et al.
2023, arXiv:2304.13705). Each body has a compiled model of its own size; nothing is padded.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from roam_jax.canvas.topologies import ACTION_REGION
from roam_jax.contracts import Batch, Params
from roam_jax.data.demonstration_batches import ACTION, MASK
from roam_jax.microbatch import Part, part_of
from roam_jax.model.loop_options import LoopOptions
from roam_jax.morphology import PIXELS, WorldSpec
from roam_jax.spelling import check_choice
from roam_jax.tasks.cell_model import CellModel, Noised
from roam_jax.tasks.clone_canvas import Observations, cell_values
from roam_jax.train import names


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class BodyModel(CellModel):
    """The canvas model of one body.

    Args:
        spec: the world.
    """

    spec: WorldSpec

    @functools.cached_property
    def actions(self) -> tuple[str, ...]:
        """Regions of the joints' actions, in the order of the joints."""
        return tuple(ACTION_REGION.format(name) for name in self.spec.morphology.joint_names)

    @property
    def chunk(self) -> int:
        """Actions P that are predicted."""
        return self.regions[self.actions[0]].features

    @property
    def sees_pixels(self) -> bool:
        """Whether frames are among what it observes."""
        return PIXELS in self.regions

    def observed(self, observations: Observations) -> dict[str, Array]:
        """Region -> values of its cells, of all that is observed.

        Args:
            observations: stream -> values, see `clone_canvas.cell_values`; others are not read.

        Raises:
            ValueError: streams are missing, or of other shapes than the world's.
        """
        return cell_values(self.spec, observations, pixels=self.sees_pixels)

    def targets(self, values: Array) -> dict[str, Array]:
        """Region of each joint's actions -> (B, 1, P), from (B, P, J), or masks (B, P)."""
        if values.ndim == 2:
            return dict.fromkeys(self.actions, values[:, None])
        return {name: values[:, None, :, place] for place, name in enumerate(self.actions)}

    def policy(
        self, params: Params, observations: Observations, *, rounds: int, **options: Any
    ) -> tuple[Float[Array, "B P J"], dict]:
        """The next P actions, and what the loop measured; options as of `CanvasModel.loop`."""
        seen = Noised(self.observed(observations), {}, {}, {})
        found, info = self.predict(params, seen, rounds=rounds, **options)
        return jnp.stack([found[name][:, 0] for name in self.actions], axis=-1), info

    def clone_loss(
        self,
        params: Params,
        observations: Observations,
        actions: Float[Array, "B P J"],
        mask: Bool[Array, "B P"],
        rng: jax.Array,
        *,
        rounds: int,
        step: Any,
        part: Part | None = None,
        whole_mask: Bool[Array, "_ P"] | None = None,
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """Mean over joints of their masked errors, with what self-distillation and halting add.

        Args:
            params: as `init` gives them.
            observations: stream -> (B, cells, numbers).
            actions: the expert's.
            mask: whether the episode has them.
            rng: of the step and body.
            rounds: static.
            step: finished updates; None where nobody counts them.
            part: of a larger batch that these rows are.
            whole_mask: then the mask of all rows of that batch.

        Returns:
            The loss, and its parts "loss", "distillation", "loss/ponder" and "rounds_used".
        """
        cells = self.observed(observations) | self.targets(actions)
        totals = {}
        if part is not None:
            totals = dict.fromkeys(self.actions, whole_mask.sum() / part.count)
        total, metrics = self.cell_loss(
            params,
            cells,
            rng,
            rounds=rounds,
            step=step,
            masks=self.targets(mask),
            part=part,
            totals=totals,
        )
        parts = {
            part: sum(found) / len(found)
            for part in ("loss", "distillation")
            if (found := [metrics[f"{part}/{n}"] for n in self.actions if f"{part}/{n}" in metrics])
        }
        kept = {name: metrics[name] for name in ("loss/ponder", "rounds_used") if name in metrics}
        return total, parts | kept


@dataclasses.dataclass(frozen=True, eq=False)
class CloneModel:
    """One set of parameters for several bodies.

    Args:
        bodies: body -> its model; at least one.

    Raises:
        ValueError: the parameters of two bodies differ in names or shapes.
    """

    bodies: Mapping[str, BodyModel]

    def __post_init__(self):
        if len(self.bodies) < 2:
            return
        shapes = {name: _shapes(model) for name, model in self.bodies.items()}
        first, expected = next(iter(shapes.items()))
        for body, found in shapes.items():
            differing = sorted(
                name
                for name in expected.keys() | found.keys()
                if expected.get(name) != found.get(name)
            )
            if differing:
                name = differing[0]
                raise ValueError(
                    f"bodies {first!r} and {body!r} cannot share parameters: {name} is "
                    f"{expected.get(name, 'missing')} for one, {found.get(name, 'missing')} for "
                    "the other; expected streams and edges whose parameters no body's size changes "
                    "(edges that learn something of their own, such as gated ones, are one an edge)"
                )

    @property
    def first(self) -> BodyModel:
        """The model of the first body."""
        return next(iter(self.bodies.values()))

    @property
    def options(self) -> LoopOptions:
        """Of the loop, the same for all bodies."""
        return self.first.options

    @property
    def chunk(self) -> int:
        """Actions P that are predicted."""
        return self.first.chunk

    @property
    def specs(self) -> dict[str, WorldSpec]:
        """Body -> its world."""
        return {body: model.spec for body, model in self.bodies.items()}

    def init(self, rng: jax.Array) -> Params:
        """Fresh parameters."""
        return self.first.init(rng)

    def body(self, name: str) -> BodyModel:
        """The model of a body.

        Raises:
            ValueError: it is none of those that the policy was made for; names the nearest.
        """
        check_choice("body", name, list(self.bodies))
        return self.bodies[name]

    def predict(
        self,
        params: Params,
        body: str,
        observations: Observations,
        *,
        rounds: int,
        extrapolate: str | None = None,
        threshold: float | None = None,
    ) -> tuple[Float[Array, "B P J"], dict]:
        """The next P actions of every row, as they are learned: in [-1, 1] but for errors.

        Args:
            params: as `init` gives them.
            body: one of the bodies.
            observations: stream -> (B, cells, numbers) in its units, as worlds show them.
            rounds, extrapolate, threshold: as for `CanvasModel.loop`.

        Returns:
            The actions, and measure -> region or group -> (depth or 1, rounds).

        Raises:
            ValueError: an unknown body, or observations that are not its world's.
        """
        return self.body(body).policy(
            params, observations, rounds=rounds, extrapolate=extrapolate, threshold=threshold
        )

    def loss(self, params: Params, batch: Batch, rng: jax.Array, rounds: int):
        """Mean over bodies of their losses; see `contracts.Task`.

        Metrics are "loss/BODY" (masked MSE of actions), with self-distillation
        "distillation/BODY", with halting "loss/ponder" and "rounds_used", means over bodies.
        """
        totals, metrics, shared, share = [], {}, {}, part_of(batch)
        for place, (body, model) in enumerate(self.bodies.items()):
            values = {name: jnp.asarray(x) for name, x in fields_of(batch, body).items()}
            total, parts = model.clone_loss(
                params,
                values,
                values[ACTION],
                values[MASK],
                jax.random.fold_in(rng, place),
                rounds=rounds,
                step=batch.get("step"),
                part=share,
                whole_mask=None if share is None else fields_of(share.whole, body)[MASK],
            )
            totals.append(total)
            for part, value in parts.items():
                if part in ("loss", "distillation"):
                    metrics[f"{part}/{body}"] = value
                else:
                    shared.setdefault(part, []).append(value)
        means = {name: sum(values) / len(values) for name, values in shared.items()}
        return sum(totals) / len(totals), metrics | means


def fields_of(batch: Observations, body: str) -> dict[str, Array | np.ndarray]:
    """Stream, `ACTION` or `MASK` -> values of a body's rows of a batch."""
    start = f"{body}/"
    return {name.removeprefix(start): v for name, v in batch.items() if name.startswith(start)}


def _shapes(model: BodyModel) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every parameter."""
    tree = names.flatten(jax.eval_shape(model.init, jax.random.key(0)))
    return {name: tuple(leaf.shape) for name, leaf in tree.items()}
