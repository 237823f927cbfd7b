"""Scenes by name, as a config gives them."""

from __future__ import annotations

from collections.abc import Callable

from roam_jax.data.contact_scene import ContactScene
from roam_jax.data.multimodal_scene import MultimodalScene
from roam_jax.data.scene import Scene
from roam_jax.spelling import check_choice

# What `data.questions` is where a scene asks none.
NO_QUESTIONS = "both"


def open_scene(name: str, *, objects: int, observed_frames: int, questions: str) -> Scene:
    """The scene that a config names.

    Args:
        name: data.scene, one of `SCENES`.
        objects: data.objects, shapes or discs beside what is commanded.
        observed_frames: data.observed_frames, first frames whose pixels are seen.
        questions: data.questions; the default where the scene asks none.

    Raises:
        ValueError: a value is unknown, out of range, or has no meaning in the scene.
    """
    check_choice("data.scene", name, SCENES)
    return SCENES[name](objects, observed_frames, questions)


def _multimodal(objects: int, observed_frames: int, questions: str) -> Scene:
    return MultimodalScene(objects=objects, observed_frames=observed_frames, questions=questions)


def _contact(objects: int, observed_frames: int, questions: str) -> Scene:
    if questions != NO_QUESTIONS:
        raise ValueError(
            f"data.questions = {questions!r}: scene contact asks none, expected the default "
            f"{NO_QUESTIONS!r}"
        )
    return ContactScene(objects=objects, observed_frames=observed_frames)


SCENES: dict[str, Callable[[int, int, str], Scene]] = {
    "multimodal": _multimodal,
    "contact": _contact,
}
