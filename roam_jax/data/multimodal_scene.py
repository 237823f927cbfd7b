"""Moving shapes, a hand, rewards and a question: every kind of stream on a canvas of 120 cells.

Shapes move at constant speed and bounce off the walls; each has a core in the colour of another
shape. A hand moves as it is commanded, and its reward is how near it is to the shape that the
question names. A question has four answers, each of which needs one step more than the one before:
"chain" follows the cores from shape to shape, "future" the named shape from wall to wall.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt32

from roam_jax.canvas.layout import CanvasLayout
from roam_jax.data import multimodal_scene_questions as asked
from roam_jax.data import scene_drawing as drawing
from roam_jax.data.multimodal_scene_hand import COMMANDS_A_FRAME, HAND_RADIUS, move_hand
from roam_jax.data.scene import THOUGHT, Scene, Stream, lay_out
from roam_jax.data.scene_checks import check_number
from roam_jax.data.scene_random import either_way, example_numbers, order_of
from roam_jax.spelling import check_choice

FRAMES = 4
# Pixels of a side of the frame and of a patch; patches of a side.
SIZE, PATCH = 16, 4
SIDE = SIZE // PATCH
# Half the width of a shape, and of the core in it, in widths of the frame: about a patch in all.
RADIUS, CORE_RADIUS = 0.125, 0.065
# Speed along each axis, widths a frame.
SLOWEST, FASTEST = 0.05, 0.2
OBJECTS = range(3, len(drawing.COLOURS) + 1)
# Largest distance between two places that a hand and a shape may have.
FARTHEST = float(np.sqrt(2) * (1 - HAND_RADIUS - RADIUS))


@dataclasses.dataclass(frozen=True)
class MultimodalScene(Scene):
    """The scene `multimodal`; its canvas has 4 frames of 5 x 6 cells, and no cell is left over.

    Args:
        objects: shapes beside the hand, 3 to 6.
        observed_frames: first frames whose pixels and hand are seen, 1 to 3.
        questions: chain, future, or both, one of them in each example.

    Raises:
        ValueError: a value is out of range or unknown.
    """

    objects: int = 5
    observed_frames: int = 2
    questions: str = "both"

    def __post_init__(self):
        check_number("data.objects", self.objects, OBJECTS, of="scene multimodal")
        check_number(
            "data.observed_frames", self.observed_frames, range(1, FRAMES), of="scene multimodal"
        )
        check_choice("data.questions", self.questions, asked.CHOICES)

    @property
    def words(self) -> tuple[str, ...]:
        """What the tokens of questions and answers say."""
        return asked.WORDS

    @property
    def dimensions(self) -> dict[str, tuple[str, ...]]:
        """What the numbers of vectors are, y downwards."""
        state = ("x", "y", "speed x", "speed y")
        return {"proprio": state, "future_proprio": state, "actions": ("push x", "push y")}

    @property
    def streams(self) -> tuple[Stream, ...]:
        """Inputs and outputs, in the order of the layout's regions."""
        seen, later = self.observed_frames, FRAMES - self.observed_frames
        commands = COMMANDS_A_FRAME * (FRAMES - 1)
        vocabulary, answers = len(asked.WORDS), len(asked.ANSWERS)
        names = asked.step_names(self.questions)
        return (
            Stream("observed_video", "patches", (seen, SIZE, SIZE, 3), "input", patch=PATCH),
            Stream(
                "future_video", "patches", (later, SIZE, SIZE, 3), "output", "diffusion",
                patch=PATCH,
            ),
            Stream("question", "tokens", (asked.LENGTH,), "input", vocabulary=vocabulary),
            Stream("proprio", "vectors", (seen, 4), "input"),
            Stream("future_proprio", "vectors", (later, 4), "output", "diffusion"),
            Stream("actions", "vectors", (commands, 2), "input"),
            Stream("reward", "scalars", (FRAMES,), "output", "regression"),
            Stream(
                "answer", "tokens", (asked.STEPS,), "output", "classification",
                vocabulary=answers, cell_names=names,
            ),
        )  # fmt: skip

    def layout(self, width: int) -> CanvasLayout:
        """120 cells: video at the left; the question, then thought, beside it; the rest below.

        Commands lie in the frame from which they lead to the next, answers in the last frame.
        """
        now = self.observed_frames
        last = FRAMES - 1
        below = (SIDE, SIDE + 1)
        boxes = {
            "observed_video": (0, now, 0, SIDE, 0, SIDE),
            "question": (0, 1, 0, 4, SIDE, SIDE + 2),
            "proprio": (0, now, *below, 0, 1),
            "actions": (0, last, *below, 2, 2 + COMMANDS_A_FRAME),
            THOUGHT: (1, FRAMES, 0, 4, SIDE, SIDE + 2),
            "future_video": (now, FRAMES, 0, SIDE, 0, SIDE),
            "future_proprio": (now, FRAMES, *below, 0, 1),
            "reward": (0, FRAMES, *below, 1, 2),
            "answer": (last, FRAMES, *below, 2, 2 + asked.STEPS),
        }
        grid = (FRAMES, SIDE + 1, SIDE + 2)
        return lay_out(self.streams, boxes, grid=grid, width=width, t_current=now)

    def groups(self) -> tuple[tuple[str, ...], ...]:
        """Past and future belong together, and what is asked and answered."""
        return (
            ("observed_video", "future_video"),
            ("question", "answer"),
            ("proprio", "future_proprio"),
            ("actions",),
            ("reward",),
        )

    def examples(
        self, seed: UInt32[Array, " B"], index: UInt32[Array, " B"]
    ) -> Mapping[str, Array]:
        """Stream -> values (B, *shape).

        Pixels lie in [-1, 1]; a hand's state is its place in [-1, 1] and its speed in shares of
        the highest; commands lie in [-1, 1]; a reward is 1 on the named shape and -1 as far from it
        as can be.
        """
        return jax.vmap(self._example)(jnp.asarray(seed), jnp.asarray(index))

    def _example(self, seed: UInt32[Array, ""], index: UInt32[Array, ""]) -> dict[str, Array]:
        n, now = self.objects, self.observed_frames
        drawn = example_numbers(seed, index, _shapes(n))
        places = drawing.random_places(
            drawn["cells"], drawn["lines"], low=RADIUS, spacing=2 * RADIUS
        )
        velocity = either_way(SLOWEST, FASTEST, drawn["velocity"])
        times = np.array([*range(FRAMES), *asked.LATER], np.float32)
        path = drawing.reflect(places[:n], velocity, times, low=RADIUS)  # (times, n, 2)
        colours = order_of(drawn["colours"])[:n]
        question = asked.ask(
            path[FRAMES:], colours, drawn["order"], drawn["cores"], drawn["kind"],
            choice=self.questions,
        )  # fmt: skip
        path = path[:FRAMES]
        hand = move_hand(places[n], drawn["goal"], drawn["tremble"])
        video = _draw(path, colours, question.leads_to, drawn["squares"] < 0.5, hand.places)
        away = hand.places - jnp.take(path, question.named, axis=1)
        return {
            "observed_video": video[:now],
            "future_video": video[now:],
            "question": question.words,
            "proprio": hand.state[:now],
            "future_proprio": hand.state[now:],
            "actions": hand.commands,
            "reward": 1 - 2 * jnp.sqrt(jnp.square(away).sum(axis=-1)) / FARTHEST,
            "answer": question.answers,
        }


def _shapes(objects: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the random numbers of an example."""
    return {
        "cells": (9,),
        "lines": (3, 2),
        "velocity": (objects, 2),
        "colours": (len(drawing.COLOURS),),
        "squares": (objects,),
        "order": (objects,),
        "cores": (objects,),
        "kind": (),
        "goal": (2,),
        "tremble": (COMMANDS_A_FRAME * (FRAMES - 1), 2),
    }


def _draw(
    path: Float[Array, "T n 2"],
    colours: Int[Array, " n"],
    leads_to: Int[Array, " n"],
    squares: Bool[Array, " n"],
    hand: Float[Array, "T 2"],
) -> Float[Array, "T H W 3"]:
    """Frames: shapes with their cores, later ones over earlier ones, then the hand."""
    frames = drawing.blank(FRAMES, SIZE)
    rims = drawing.palette(colours)
    for i in range(path.shape[1]):
        away = drawing.round_or_square(drawing.offsets(path[:, i], SIZE), squares[i])
        frames = drawing.paint(frames, away, RADIUS, rims[i])
        frames = drawing.paint(frames, away, CORE_RADIUS, rims[leads_to[i]])
    away = drawing.diamond_distance(drawing.offsets(hand, SIZE))
    return drawing.paint(frames, away, HAND_RADIUS, jnp.asarray(drawing.HAND_COLOUR))
