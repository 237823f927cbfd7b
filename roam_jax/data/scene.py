"""What a scene is: examples that are made where they are needed, and the canvas that they lie on.

A scene has no files. An example is a function of two numbers, the seed of its stream and its place
in it, and is made within the training step; so a batch that travels is a few bytes, a run of any
length sees no example twice, and a resumed run sees what it would have seen.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Collection, Mapping
from types import MappingProxyType

from jaxtyping import Array, UInt32

from roam_jax.canvas.layout import CanvasLayout, RegionSpec

KINDS = ("patches", "vectors", "tokens", "scalars")
ROLES = ("input", "output")
# How an output is learned.
OBJECTIVES = ("diffusion", "regression", "classification")
# Half-open (t0, t1, h0, h1, w0, w1).
Bounds = tuple[int, int, int, int, int, int]
# Cells that hold no stream: learned queries to compute with.
THOUGHT = "thought"


@dataclasses.dataclass(frozen=True)
class Stream:
    """One stream of a scene: what fills one region of its canvas.

    Args:
        name: of stream and region.
        kind: of its values, float32 but for tokens. patches: video (T, H, W, C) in [-1, 1], a cell
            a patch; vectors: (N, A), one cell a vector; tokens: (N,) int32 in 0..vocabulary - 1;
            scalars: (N,).
        shape: of one example's values.
        role: input or output.
        objective: of an output, one of `OBJECTIVES`; "" of an input. Tokens are classified, the
            others diffused or regressed.
        vocabulary: of tokens; 0 of others.
        patch: side of a patch in pixels; 0 of others.
        cell_names: what reports call the cells, such as ("1 hop", "2 hops"); () = by number.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    role: str
    objective: str = ""
    vocabulary: int = 0
    patch: int = 0
    cell_names: tuple[str, ...] = ()


def lay_out(
    streams: Collection[Stream],
    boxes: Mapping[str, Bounds],
    *,
    grid: tuple[int, int, int],
    width: int,
    t_current: int,
) -> CanvasLayout:
    """A region for every stream, in their order, then `THOUGHT`; outputs are those of the streams.

    Args:
        streams: of the scene.
        boxes: name -> bounds, of every stream and of `THOUGHT`.
        grid: frames, rows and columns of the canvas.
        width: of a cell.
        t_current: first frame that is predicted.
    """
    outputs = {stream.name: stream.role == "output" for stream in streams} | {THOUGHT: False}
    frames, rows, columns = grid
    return CanvasLayout(
        T=frames,
        H=rows,
        W=columns,
        d_model=width,
        regions={name: RegionSpec(boxes[name], is_output=out) for name, out in outputs.items()},
        t_current=t_current,
    )


class Scene(abc.ABC):
    """A family of examples and its canvas.

    `words` are what tokens say, `dimensions` what the numbers of a stream of vectors are, for
    pictures; a scene without either leaves them empty.
    """

    streams: tuple[Stream, ...]
    words: tuple[str, ...] = ()
    dimensions: Mapping[str, tuple[str, ...]] = MappingProxyType({})

    @abc.abstractmethod
    def layout(self, width: int) -> CanvasLayout:
        """A region for every stream, named as it is, and `THOUGHT` if there is room for it."""

    @abc.abstractmethod
    def groups(self) -> tuple[tuple[str, ...], ...]:
        """Streams that belong together, such as past and future video; each in one group."""

    @abc.abstractmethod
    def examples(
        self, seed: UInt32[Array, " B"], index: UInt32[Array, " B"]
    ) -> Mapping[str, Array]:
        """Stream -> values (B, *shape); traceable, and row by row the same in any batch."""
