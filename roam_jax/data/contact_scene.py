"""Will the driven disc touch another one? Contact detection on simulated trajectories.

A disc is pulled about a box by commands, among free discs that it knocks away. The model sees the
first frames and all commands; in every frame it says whether there is a contact until the next.
Free discs are given by pixels alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt32

from roam_jax.canvas.layout import CanvasLayout
from roam_jax.data import contact_scene_physics as physics
from roam_jax.data import scene_drawing as drawing
from roam_jax.data.contact_scene_physics import RADIUS, SUBSTEPS
from roam_jax.data.scene import THOUGHT, Scene, Stream, lay_out
from roam_jax.data.scene_checks import check_number
from roam_jax.data.scene_random import between, either_way, example_numbers, order_of

FRAMES = 8
# Pixels of a side of the frame and of a patch; patches of a side.
SIZE, PATCH = 16, 4
SIDE = SIZE // PATCH
COMMANDS_A_FRAME = 2
# Commands until the next goal, and how far around it they lie, widths of the frame.
COMMANDS_A_GOAL, TREMBLE = 8, 0.05
# Of free discs at the start along each axis, widths a frame.
SLOWEST, FASTEST = 0.02, 0.12
# Speeds are given in units of it.
SPEED = 0.2
OBJECTS = range(1, len(drawing.COLOURS) + 1)
WORDS = ("apart", "touching")


class Start(NamedTuple):
    """Of n discs, the driven one first and at rest, in widths of the frame and frames.

    `places` and `speeds` (n, 2); `commands` (C, 2), places; `colours` (n - 1,) of the free discs.
    """

    places: Array
    speeds: Array
    commands: Array
    colours: Array


@dataclasses.dataclass(frozen=True)
class ContactScene(Scene):
    """The scene `contact`; its canvas has 8 frames of 5 x 5 cells, and no cell is left over.

    Args:
        objects: free discs, 1 to 6.
        observed_frames: first frames whose pixels and driven disc are seen, 1 to 7.

    Raises:
        ValueError: a value is out of range.
    """

    objects: int = 3
    observed_frames: int = 2

    def __post_init__(self):
        check_number("data.objects", self.objects, OBJECTS, of="scene contact")
        check_number(
            "data.observed_frames", self.observed_frames, range(1, FRAMES), of="scene contact"
        )

    @property
    def words(self) -> tuple[str, ...]:
        """What the tokens of `contact` say."""
        return WORDS

    @property
    def dimensions(self) -> dict[str, tuple[str, ...]]:
        """What the numbers of vectors are, y downwards."""
        state = ("x", "y", "speed x", "speed y")
        return {"proprio": state, "future_proprio": state, "actions": ("to x", "to y")}

    @property
    def streams(self) -> tuple[Stream, ...]:
        """Inputs and outputs, in the order of the layout's regions."""
        seen, later = self.observed_frames, FRAMES - self.observed_frames
        names = tuple(f"frame {frame}" for frame in range(FRAMES))
        return (
            Stream("observed_video", "patches", (seen, SIZE, SIZE, 3), "input", patch=PATCH),
            Stream(
                "future_video", "patches", (later, SIZE, SIZE, 3), "output", "diffusion",
                patch=PATCH,
            ),
            Stream("proprio", "vectors", (seen, 4), "input"),
            Stream("future_proprio", "vectors", (later, 4), "output", "diffusion"),
            Stream("actions", "vectors", (FRAMES * COMMANDS_A_FRAME, 2), "input"),
            Stream(
                "contact", "tokens", (FRAMES,), "output", "classification",
                vocabulary=len(WORDS), cell_names=names,
            ),
        )  # fmt: skip

    def layout(self, width: int) -> CanvasLayout:
        """200 cells: video at the left, thought at the right, the rest in a row below."""
        now = self.observed_frames
        below = (SIDE, SIDE + 1)
        boxes = {
            "observed_video": (0, now, 0, SIDE, 0, SIDE),
            "proprio": (0, now, *below, 0, 1),
            "actions": (0, FRAMES, *below, 1, 1 + COMMANDS_A_FRAME),
            THOUGHT: (0, FRAMES, 0, SIDE + 1, SIDE, SIDE + 1),
            "future_video": (now, FRAMES, 0, SIDE, 0, SIDE),
            "future_proprio": (now, FRAMES, *below, 0, 1),
            "contact": (0, FRAMES, *below, SIDE - 1, SIDE),
        }
        grid = (FRAMES, SIDE + 1, SIDE + 1)
        return lay_out(self.streams, boxes, grid=grid, width=width, t_current=now)

    def groups(self) -> tuple[tuple[str, ...], ...]:
        """Past and future belong together."""
        return (
            ("observed_video", "future_video"),
            ("proprio", "future_proprio"),
            ("actions",),
            ("contact",),
        )

    def examples(
        self, seed: UInt32[Array, " B"], index: UInt32[Array, " B"]
    ) -> Mapping[str, Array]:
        """Stream -> values (B, *shape).

        Pixels lie in [-1, 1]. The driven disc's state is its place in [-1, 1] and its speed in
        units of `SPEED`; a command is the place in [-1, 1] that it is pulled to for half a frame.
        """
        return jax.vmap(self._example)(jnp.asarray(seed), jnp.asarray(index))

    def _example(self, seed: UInt32[Array, ""], index: UInt32[Array, ""]) -> dict[str, Array]:
        places, speeds, commands, colours = self.start(seed, index)
        motion = physics.simulate(places, speeds, targets(commands))
        # A frame shows what is there when it begins.
        shown = jnp.concatenate([places[None], motion.places[SUBSTEPS - 1 :: SUBSTEPS][:-1]])
        going = jnp.concatenate([speeds[None], motion.speeds[SUBSTEPS - 1 :: SUBSTEPS][:-1]])
        state = jnp.concatenate([2 * shown[:, 0] - 1, going[:, 0] / SPEED], axis=-1)
        video = _draw(shown, colours)
        now = self.observed_frames
        return {
            "observed_video": video[:now],
            "future_video": video[now:],
            "proprio": state[:now],
            "future_proprio": state[now:],
            "actions": 2 * commands - 1,
            "contact": motion.touching.reshape(FRAMES, SUBSTEPS).any(axis=1).astype(jnp.int32),
        }

    def start(self, seed: UInt32[Array, ""], index: UInt32[Array, ""]) -> Start:
        """How example `index` of a stream begins, and what is commanded; traceable."""
        n, count = self.objects, FRAMES * COMMANDS_A_FRAME
        shapes = {"cells": (9,), "lines": (3, 2), "speeds": (n, 2)}
        shapes |= {"goals": (count // COMMANDS_A_GOAL, 2), "tremble": (count, 2)}
        drawn = example_numbers(seed, index, shapes | {"colours": (len(drawing.COLOURS),)})
        places = drawing.random_places(
            drawn["cells"], drawn["lines"], low=RADIUS, spacing=3 * RADIUS
        )
        speeds = jnp.zeros((n + 1, 2)).at[1:].set(either_way(SLOWEST, FASTEST, drawn["speeds"]))
        goals = jnp.repeat(between(RADIUS, 1 - RADIUS, drawn["goals"]), COMMANDS_A_GOAL, axis=0)
        commands = jnp.clip(goals + between(-TREMBLE, TREMBLE, drawn["tremble"]), 0, 1)
        return Start(places[: n + 1], speeds, commands, order_of(drawn["colours"])[:n])


def targets(commands: Float[Array, "C 2"]) -> Float[Array, "S 2"]:
    """What the driven disc is pulled to in every substep."""
    return jnp.repeat(commands, SUBSTEPS // COMMANDS_A_FRAME, axis=0)


def _draw(shown: Float[Array, "T n 2"], colours: Int[Array, " objects"]) -> Array:
    """(T, H, W, 3) frames: the free discs, then the driven one in the colour of what is moved."""
    frames = drawing.blank(len(shown), SIZE)
    hand = jnp.asarray(drawing.HAND_COLOUR)
    colour = [*drawing.palette(colours), hand]
    for i, disc in enumerate([*range(1, shown.shape[1]), 0]):
        away = drawing.round_distance(drawing.offsets(shown[:, disc], SIZE))
        frames = drawing.paint(frames, away, RADIUS, colour[i])
    return frames
