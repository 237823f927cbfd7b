"""How the mesh divides the arrays of one device's rows: parameters by their specs, cells, heads.

The analytic account is traced on one device, so that what tensor and sequence parallelism split is
told by sizes: an axis as long as the canvas (or one of its streams) is cells, one as long as the
heads or the hidden units is split over tensor. Axes that another size happens to equal are rare and
small; docs/scaling.md says how far the account is off.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from roam_jax.axes import SEQUENCE, TENSOR
from roam_jax.budget.abstract import AbstractStep
from roam_jax.budget.liveness import SizeOf
from roam_jax.tasks.canvas import SceneModel
from roam_jax.tasks.graft import GraftModel
from roam_jax.train import names


def device_size(step: AbstractStep) -> SizeOf:
    """Bytes on one device of an array of the traced step.

    Args:
        step: on its mesh.
    """
    sizes = dict(step.mesh.shape)
    parameters = {
        tuple(leaf.shape): leaf.size // math.prod(leaf.sharding.shard_shape(leaf.shape))
        for tree in (step.state.trainable, step.frozen)
        for leaf in names.flatten(tree).values()
        if leaf.size
    }
    cells, units = _cells(step), _units(step)

    def size_of(shape: tuple[int, ...], itemsize: int) -> float:
        size = math.prod(shape) * itemsize
        if shape in parameters:  # and their gradients
            return size / parameters[shape]
        if sizes[SEQUENCE] > 1 and any(n in cells for n in shape):
            size /= sizes[SEQUENCE]
        if sizes[TENSOR] > 1 and any(n in units for n in shape):
            size /= sizes[TENSOR]
        return size

    return size_of


def shared_work(mesh: Mapping[str, int]) -> int:
    """Devices that share the work on a row."""
    return mesh[SEQUENCE] * mesh[TENSOR]


def _cells(step: AbstractStep) -> frozenset[int]:
    """Lengths of the canvas and of the streams that it is made of."""
    model = step.sketch.model
    if not isinstance(model, GraftModel | SceneModel):
        return frozenset()
    layout = model.module.layout
    whole = sum(layout.region_numel(name) for name in layout.regions)
    text = layout.region_numel("text") if "text" in layout.regions else 0
    visual = layout.region_numel("visual") if "visual" in layout.regions else 0
    return frozenset({whole, whole - text, visual} - {0})


def _units(step: AbstractStep) -> frozenset[int]:
    """Numbers of heads and of hidden units."""
    model = step.sketch.model
    if isinstance(model, GraftModel):
        config = model.module.config
        return frozenset({config.num_attention_heads, 4 * config.width})
    if isinstance(model, SceneModel):
        return frozenset({model.module.heads, 4 * model.module.layout.d_model})
    return frozenset()
