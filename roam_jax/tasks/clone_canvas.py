"""The canvas of one body: what is observed of each joint and of the world, and actions to predict.

Frame 0 is seen, frame 1 is what is done. A joint lies at its depth in the tree, in the column of
its first leaf, and its action at the same place of the next frame; below the tree come the vectors
of the world, a row each, then pixels and thought cells. Joints of all bodies share their encoder,
actions their query and decoder, so that the parameters fit every body.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from roam_jax.canvas.layout import CanvasLayout, RegionSpec
from roam_jax.canvas.topologies import ACTION_REGION, JOINT_REGION
from roam_jax.canvas.topology_kinds import StreamedLayout
from roam_jax.data.scene import THOUGHT
from roam_jax.model.cells import QUERIES, CellRegion
from roam_jax.morphology import JOINTS, PIXELS, ROOT, Morphology, VectorStream, WorldSpec

# Stream -> values, of NumPy or JAX.
Observations = Mapping[str, Array | np.ndarray]
# Groups of regions that share parameters.
JOINT_GROUP, ACTION_GROUP = "joint", "action"
# Side of a patch in pixels.
PATCH = 8
# What divides a link's length in m and a joint's depth before a model sees them.
LENGTH, DEPTH = 0.25, 4.0
# Metres that divide differences of places: what decides near a contact is small beside the world.
DIFFERENCE = 0.1
PLACES = ("x", "y", "z")
# Streams that frames show: a policy that sees frames is not given their vectors.
SHOWN = ("prop", "goal")


def tree_columns(morphology: Morphology) -> tuple[int, ...]:
    """Column of each joint: that of its first leaf, leaves being counted from 0."""
    children: dict[int, list[int]] = {}
    for place, joint in enumerate(morphology.joints):
        children.setdefault(joint.parent, []).append(place)
    columns, leaves = [0] * len(morphology), 0

    def visit(place: int) -> None:
        nonlocal leaves
        columns[place] = leaves
        for child in children.get(place, ()):
            visit(child)
        leaves += place not in children

    for root in children[ROOT]:
        visit(root)
    return tuple(columns)


def observed_streams(spec: WorldSpec, *, pixels: bool) -> tuple[VectorStream, ...]:
    """Vectors that a policy sees and that belong to no joint; with `pixels` not those `SHOWN`."""
    hidden = (JOINTS, *SHOWN) if pixels else (JOINTS,)
    return tuple(stream for stream in spec.streams if stream.name not in hidden)


def differences(
    streams: Sequence[VectorStream],
) -> dict[str, list[tuple[str, np.ndarray, np.ndarray]]]:
    """Stream -> those before it that also have a place: (stream, its dimensions, the other's).

    A cell holds where it is from there as well, so that no block has to subtract places to within
    millimetres.
    """
    found = {}
    for i, stream in enumerate(streams):
        found[stream.name] = []
        for other in streams[:i]:
            names = [n for n in PLACES if n in stream.dimensions and n in other.dimensions]
            if names and other.cells in (1, stream.cells):
                places = [np.array([s.dimensions.index(n) for n in names]) for s in (stream, other)]
                found[stream.name].append((other.name, *places))
    return found


def body_layout(
    spec: WorldSpec, *, width: int, pixels: int = 0, thought_cells: int = 0
) -> CanvasLayout:
    """The canvas of a body; see above.

    Args:
        spec: the world.
        width: of a cell.
        pixels: side of the square frames that are seen; 0 = none.
        thought_cells: learned cells without data or target.

    Raises:
        ValueError: frames are no whole number of patches, or thought cells below 0.
    """
    if pixels < 0 or pixels % PATCH:
        raise ValueError(f"data.pixels = {pixels}: expected 0, or a multiple of {PATCH}")
    if thought_cells < 0:
        raise ValueError(f"canvas.thought_cells = {thought_cells}: expected at least 0")
    body = spec.morphology
    places = list(zip(body.joint_names, body.depths, tree_columns(body), strict=True))
    regions: dict[str, RegionSpec] = {}
    for form, frame in ((JOINT_REGION, 0), (ACTION_REGION, 1)):
        for name, row, column in places:
            bounds = (frame, frame + 1, row, row + 1, column, column + 1)
            regions[form.format(name)] = RegionSpec(bounds, is_output=bool(frame))
    row = max(body.depths) + 1
    streams = observed_streams(spec, pixels=bool(pixels))
    boxes = {stream.name: (1, stream.cells) for stream in streams}
    if pixels:
        boxes[PIXELS] = (pixels // PATCH, pixels // PATCH)
    if thought_cells:
        boxes[THOUGHT] = (1, thought_cells)
    for name, (rows, columns) in boxes.items():
        regions[name] = RegionSpec((0, 1, row, row + rows, 0, columns), is_output=False)
        row += rows
    columns = max(spec.bounds[5] for spec in regions.values())
    return CanvasLayout(T=2, H=row, W=columns, d_model=width, regions=regions, t_current=1)


def body_regions(
    spec: WorldSpec, layout: CanvasLayout, *, chunk: int, decoder: str
) -> tuple[CellRegion, ...]:
    """What the model must know of each region, in layout order.

    Args:
        spec: the world.
        layout: its canvas.
        chunk: actions P that are predicted of each joint.
        decoder: of an action.

    Raises:
        ValueError: a chunk below 1, or no such decoder.
    """
    if chunk < 1:
        raise ValueError(f"data.chunk = {chunk}: expected at least 1")
    streams = observed_streams(spec, pixels=PIXELS in layout.regions)
    apart = differences(streams)
    numbers = {
        stream.name: len(stream.dimensions) + sum(len(own) for _, own, _ in apart[stream.name])
        for stream in streams
    }
    joint = joint_constants(spec.morphology).shape[1] + DYNAMIC
    found = {
        THOUGHT: CellRegion(THOUGHT, QUERIES, 0),
        PIXELS: CellRegion(PIXELS, "patches", 3 * PATCH**2),
    } | {name: CellRegion(name, "vectors", count) for name, count in numbers.items()}
    for name in spec.morphology.joint_names:
        seen, done = JOINT_REGION.format(name), ACTION_REGION.format(name)
        found[seen] = CellRegion(seen, "vectors", joint, group=JOINT_GROUP)
        found[done] = CellRegion(done, "vectors", chunk, "regression", decoder, ACTION_GROUP)
    return tuple(found[name] for name in layout.regions)


def body_streams(spec: WorldSpec, layout: CanvasLayout) -> StreamedLayout:
    """The canvas for kinds of topology: the body is one stream, what else is seen one each."""
    body = [
        form.format(name)
        for form in (JOINT_REGION, ACTION_REGION)
        for name in spec.morphology.joint_names
    ]
    others = [name for name in layout.regions if name not in body and name != THOUGHT]
    return StreamedLayout(
        layout,
        streams=(tuple(body), *((name,) for name in others)),
        body=frozenset(body),
        thought=THOUGHT,
        more_thought="canvas.thought_cells above 0",
        morphology=spec.morphology,
    )


# Numbers of a joint that change: position, velocity and lag by their scales, the position in its
# range, and its sine and cosine.
DYNAMIC = 6


def joint_constants(morphology: Morphology) -> Float[np.ndarray, "J A"]:
    """Hinge or slide, range, length and depth of each joint, float32, of the order of 1."""
    return np.array(
        [
            (joint.kind == "hinge", joint.low, joint.high, joint.length / LENGTH, depth / DEPTH)
            for joint, depth in zip(morphology.joints, morphology.depths, strict=True)
        ],
        np.float32,
    )


def joint_numbers(spec: WorldSpec, joints: Float[Array, "B J 3"]) -> Float[Array, "B J A"]:
    """What a joint's cell holds.

    Args:
        spec: the world.
        joints: position, velocity and lag of each, in rad or m and per second.
    """
    scales = np.array(next(s.scales for s in spec.streams if s.name == JOINTS), np.float32)
    low, high = (
        np.array([getattr(joint, end) for joint in spec.morphology.joints], np.float32)
        for end in ("low", "high")
    )
    position = joints[..., 0]
    constants = joint_constants(spec.morphology)
    moving = [(position - (low + high) / 2) * 2 / (high - low), jnp.sin(position)]
    moving = jnp.stack([*moving, jnp.cos(position)], axis=-1)
    fixed = jnp.broadcast_to(constants, (*position.shape, constants.shape[1]))
    return jnp.concatenate([joints / scales, moving, fixed], axis=-1)


def cell_values(spec: WorldSpec, observations: Observations, *, pixels: bool) -> dict[str, Array]:
    """Region -> values of its cells, of all that is observed.

    Args:
        spec: the world.
        observations: stream -> (B, cells, numbers) in its units; with `pixels` also (B, S, S, 3)
            uint8.

    Raises:
        ValueError: streams are missing, or of other shapes than the spec's.
    """
    check_observations(spec, observations, pixels=pixels)
    observations = {name: jnp.asarray(values) for name, values in observations.items()}
    joints = joint_numbers(spec, observations[JOINTS])
    found = {
        JOINT_REGION.format(name): joints[:, place, None]
        for place, name in enumerate(spec.morphology.joint_names)
    }
    streams = observed_streams(spec, pixels=pixels)
    apart = differences(streams)
    for stream in streams:
        values = observations[stream.name]
        away = [values[..., own] - observations[o][..., its] for o, own, its in apart[stream.name]]
        scaled = [values / np.array(stream.scales, np.float32), *(x / DIFFERENCE for x in away)]
        found[stream.name] = jnp.concatenate(scaled, axis=-1)
    if pixels:
        found[PIXELS] = patches(observations[PIXELS])
    return found


def patches(frames: UInt8[Array, "B S S 3"]) -> Float[Array, "B N A"]:
    """Frames in [-1, 1], a cell a patch of `PATCH` x `PATCH`."""
    batch, side = frames.shape[0], frames.shape[1] // PATCH
    cut = frames.reshape(batch, side, PATCH, side, PATCH, 3).transpose(0, 1, 3, 2, 4, 5)
    return cut.reshape(batch, side * side, 3 * PATCH**2).astype(jnp.float32) / 127.5 - 1


def check_observations(spec: WorldSpec, observations: Observations, *, pixels: bool) -> None:
    """Refuses observations that are not a world's.

    Raises:
        ValueError: names world and streams.
    """
    wanted = dict(_shapes(spec))
    found = {name: tuple(values.shape[1:]) for name, values in observations.items()}
    wrong = [
        f"{name} is {found.get(name, 'missing')}, expected (B, {', '.join(map(str, shape))})"
        for name, shape in wanted.items()
        if found.get(name) != shape
    ]
    if pixels and len(found.get(PIXELS, ())) != 3:
        wrong.append(f"{PIXELS} is {found.get(PIXELS, 'missing')}, expected (B, S, S, 3)")
    if wrong:
        raise ValueError(f"observations of {spec.name}: {'; '.join(wrong)}")


def _shapes(spec: WorldSpec) -> Iterator[tuple[str, tuple[int, int]]]:
    """(stream, cells and numbers) of a world."""
    for stream in spec.streams:
        yield stream.name, stream.shape
