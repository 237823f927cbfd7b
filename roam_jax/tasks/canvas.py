"""The task of a canvas model: the streams of one scene, learned at once.

Examples are made from their numbers within the loss; what is learned of them is in `cell_model.py`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping

import jax
from jaxtyping import Array

from roam_jax.contracts import Batch, Params
from roam_jax.data.scene import Scene, Stream
from roam_jax.microbatch import part_of
from roam_jax.tasks.cell_model import CellModel, Noised
from roam_jax.tasks.cell_values import to_cells

__all__ = ["Noised", "SceneModel"]


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class SceneModel(CellModel):
    """A canvas model and its scene.

    Args:
        scene: makes the examples.
    """

    scene: Scene

    @functools.cached_property
    def streams(self) -> dict[str, Stream]:
        """Region -> the stream that lies there; thought cells have none."""
        kept = self.module.layout.regions
        return {stream.name: stream for stream in self.scene.streams if stream.name in kept}

    def cells_of(self, values: Mapping[str, Array]) -> dict[str, Array]:
        """Stream -> values of its cells, from a scene's examples (B, *shape)."""
        return {name: to_cells(stream, values[name]) for name, stream in self.streams.items()}

    def examples(self, batch: Batch) -> dict[str, Array]:
        """Stream -> values of its cells, of the examples whose numbers a batch holds."""
        with jax.named_scope("scene"):
            return self.cells_of(self.scene.examples(batch["scene_seed"], batch["scene_index"]))

    def loss(self, params: Params, batch: Batch, rng: jax.Array, rounds: int):
        """The balanced sum of the region losses; see `contracts.Task` and `cell_loss`."""
        cells, step = self.examples(batch), batch.get("step")
        return self.cell_loss(params, cells, rng, rounds=rounds, step=step, part=part_of(batch))
