"""The multimodal scene, against what can be read off its own frames, and numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from roam_jax.data import multimodal_scene as scenes
from roam_jax.data.multimodal_scene import MultimodalScene
from roam_jax.data.multimodal_scene_hand import DRAG, HAND_RADIUS, PUSH
from roam_jax.data.multimodal_scene_questions import ANSWERS, LATER, QUARTERS, WORDS, ask
from roam_jax.data.scene_drawing import COLOURS, HAND_COLOUR
from tests.data.test_scene_drawing import bounced

COUNT = 3000
OBJECTS = 5


@pytest.fixture(scope="module")
def examples():
    scene = MultimodalScene(objects=OBJECTS, observed_frames=2, questions="both")
    numbers = np.arange(COUNT, dtype=np.uint32)
    made = jax.device_get(jax.jit(scene.examples)(np.zeros(COUNT, np.uint32), numbers))
    return {
        **made,
        "chain": np.array([WORDS[first] == "start" for first in made["question"][:, 0]]),
    }


@pytest.fixture(scope="module")
def motion():
    """Places in frame 0 (shapes, then the hand) and velocities, of each example."""

    def of(index):
        drawn = scenes.example_numbers(index * 0, index, scenes._shapes(OBJECTS))
        places = scenes.drawing.random_places(
            drawn["cells"], drawn["lines"], low=scenes.RADIUS, spacing=2 * scenes.RADIUS
        )
        velocity = scenes.either_way(scenes.SLOWEST, scenes.FASTEST, drawn["velocity"])
        return places[:OBJECTS], velocity

    return jax.device_get(jax.jit(jax.vmap(of))(np.arange(COUNT, dtype=np.uint32)))


def nearest_colour(pixel):
    apart = np.linalg.norm(np.array(list(COLOURS.values())) - pixel, axis=-1)
    return int(apart.argmin())


def pixel_at(frame, place):
    column, row = np.clip((np.asarray(place) * scenes.SIZE).astype(int), 0, scenes.SIZE - 1)
    return frame[row, column]


def seen_chain(frame, places):
    """Colour -> colour of the core, and colour -> place, as the first frame shows them.

    Every pair of colours is painted as a disc and as a square where a shape is; what comes nearest
    to the frame within the shape is what is there.
    """
    middles = (np.arange(scenes.SIZE) + 0.5) / scenes.SIZE
    colours = np.array(list(COLOURS.values()))
    leads_to, where = {}, {}
    for place in places:
        x, y = abs(middles - place[0])[None, :], abs(middles - place[1])[:, None]
        away = np.stack([np.hypot(x, y), np.maximum(x, y)])
        rim, core = (
            np.clip(0.5 + (radius - away) * scenes.SIZE, 0, 1)[:, None, None, ..., None]
            for radius in (scenes.RADIUS, scenes.CORE_RADIUS)
        )
        painted = colours[:, None, None, None] * (1 - core) + colours[:, None, None] * core
        inside = rim == 1
        error = ((painted - frame) ** 2 * inside).sum(axis=(3, 4, 5)) / inside.sum(axis=(3, 4, 5))
        error[:, np.arange(6), np.arange(6)] = np.inf  # no shape leads to itself
        _, outer, inner = np.unravel_index(error.argmin(), error.shape)
        leads_to[int(outer)], where[int(outer)] = int(inner), place
    return leads_to, where


def test_a_question_is_a_sentence(examples):
    chain, future = (examples["question"][examples["chain"] == kind][0] for kind in (True, False))
    colour = [WORDS[question[3]] for question in (chain, future)]
    assert set(colour) <= set(COLOURS)
    said = [" ".join(WORDS[token] for token in question) for question in (chain, future)]
    assert said[0] == f"start at the {colour[0]} shape follow its cores"
    assert said[1] == f"where will the {colour[1]} shape be later on"
    assert WORDS[: len(ANSWERS)] == ANSWERS == (*COLOURS, *QUARTERS)
    assert 0.45 < examples["chain"].mean() < 0.55


def test_the_chain_is_what_the_first_frame_shows(examples, motion):
    for i in np.flatnonzero(examples["chain"])[:200]:
        leads_to, _ = seen_chain(examples["observed_video"][i, 0], motion[0][i])
        assert len(leads_to) == OBJECTS
        at, hops = int(examples["question"][i, 3]), []
        for _ in range(4):
            at = leads_to[at]
            hops.append(at)
        assert examples["answer"][i].tolist() == hops


def test_the_future_is_where_small_steps_lead(examples, motion):
    checked = 0
    for i in np.flatnonzero(~examples["chain"])[:60]:
        places, velocity = motion[0][i], motion[1][i]
        _, where = seen_chain(examples["observed_video"][i, 0], places)
        named = where[int(examples["question"][i, 3])]
        speed = velocity[np.flatnonzero((places == named).all(axis=1))[0]]
        for cell, frame in enumerate(LATER):
            x, y = bounced(named, speed, frame, low=scenes.RADIUS, steps=200)
            if min(abs(x - 0.5), abs(y - 0.5)) < 1e-3:
                continue  # on the border of two quarters, within rounding
            column, row = ("left", "right")[int(x > 0.5)], ("top", "bottom")[int(y > 0.5)]
            assert ANSWERS[examples["answer"][i, cell]] == f"{row}-{column}"
            checked += 1
    assert checked > 200


def test_shapes_and_hand_are_where_they_should_be(examples, motion):
    video = np.concatenate([examples["observed_video"], examples["future_video"]], axis=1)
    state = np.concatenate([examples["proprio"], examples["future_proprio"]], axis=1)
    for i in range(20):
        for t in range(scenes.FRAMES):
            hand = (state[i, t, :2] + 1) / 2
            np.testing.assert_allclose(pixel_at(video[i, t], hand), HAND_COLOUR, atol=1e-6)
            # The shape that is drawn last lies over all but the hand.
            top = bounced(motion[0][i, -1], motion[1][i, -1], t, low=scenes.RADIUS, steps=100)
            if np.abs(top - hand).sum() > HAND_RADIUS + 0.1:
                rgb = pixel_at(video[i, t], top)
                first = pixel_at(video[i, 0], motion[0][i, -1])
                assert nearest_colour(rgb) == nearest_colour(first)


def test_the_hand_does_as_it_is_told(examples):
    state = np.concatenate([examples["proprio"], examples["future_proprio"]], axis=1)
    place, speed = (state[:, 0, :2].astype(np.float64) + 1) / 2, np.zeros((COUNT, 2))
    for t in range(scenes.FRAMES):
        np.testing.assert_allclose(state[:, t, :2], 2 * place - 1, atol=1e-5)
        np.testing.assert_allclose(state[:, t, 2:], speed * (1 - DRAG) / PUSH, atol=1e-4)
        for command in examples["actions"][:, 4 * t : 4 * t + 4].swapaxes(0, 1):
            speed = DRAG * speed + PUSH * command
            place = place + speed
            stopped = (place < HAND_RADIUS) | (place > 1 - HAND_RADIUS)
            place = np.clip(place, HAND_RADIUS, 1 - HAND_RADIUS)
            speed = np.where(stopped, 0, speed)
    assert np.abs(examples["actions"]).max() <= 1
    assert np.abs(state[:, 1:, :2] - state[:, :-1, :2]).max() > 0.2


def test_the_reward_is_the_nearness_of_the_named_shape(examples, motion):
    for i in range(100):
        state = np.concatenate([examples["proprio"][i], examples["future_proprio"][i]])
        places, velocity = motion[0][i], motion[1][i]
        _, where = seen_chain(examples["observed_video"][i, 0], places)
        named = where[int(examples["question"][i, 3])]
        speed = velocity[np.flatnonzero((places == named).all(axis=1))[0]]
        for t, reward in enumerate(examples["reward"][i]):
            shape = bounced(named, speed, t, low=scenes.RADIUS, steps=100)
            away = np.linalg.norm((state[t, :2] + 1) / 2 - shape)
            farthest = np.sqrt(2) * (1 - scenes.RADIUS - HAND_RADIUS)
            np.testing.assert_allclose(reward, 1 - 2 * away / farthest, atol=2e-3)
    assert examples["reward"].min() >= -1 and examples["reward"].max() <= 1


def test_no_answer_is_more_likely_than_another(examples):
    """A hop leads to each other shape as often; each quarter is as likely at any time."""
    chain = examples["chain"]
    path = np.c_[examples["question"][:, 3], examples["answer"]][chain]
    # The first five shapes of the walk are different ones, so no hop can be told from another.
    assert all(len(set(row)) == 5 for row in path.tolist())
    for cell in range(4):
        of_colour = np.bincount(examples["answer"][chain, cell], minlength=6) / chain.sum()
        np.testing.assert_allclose(of_colour[:6], 1 / 6, atol=0.04)
        quarter = np.bincount(examples["answer"][~chain, cell], minlength=10)[6:]
        np.testing.assert_allclose(quarter / (~chain).sum(), 1 / 4, atol=0.04)


@pytest.mark.parametrize(("objects", "back"), [(3, (0, 1)), (4, (0, 1, 2)), (6, ())])
def test_a_walk_of_few_shapes_comes_back(objects, back):
    """After as many different shapes as there are, to any but the last."""
    rng = np.random.default_rng(objects)
    colours = np.array([rng.permutation(6)[:objects] for _ in range(600)], np.int32)
    order, cores = rng.random((2, 600, objects), np.float32)
    asked = jax.vmap(lambda *numbers: ask(jnp.zeros((4, objects, 2)), *numbers, choice="chain"))(
        *map(jnp.asarray, (colours, order, cores, rng.random(600, np.float32)))
    )
    path = np.c_[asked.words[:, 3], asked.answers]
    different = min(objects, 5)
    assert all(len(set(row[:different])) == different for row in path.tolist())
    if back:
        same = [(path[:, different] == path[:, earlier]).mean() for earlier in back]
        np.testing.assert_allclose(same, 1 / len(back), atol=0.08)
    # Every core leads to another shape, also where the walk does not pass.
    leads_to = np.asarray(asked.leads_to)
    assert (leads_to != np.arange(objects)).all()
    np.testing.assert_array_equal(asked.named, order.argsort(axis=1).argsort(axis=1)[:, 0])


def test_the_same_world_whatever_is_asked(examples):
    numbers = np.arange(9, dtype=np.uint32)
    scene = MultimodalScene(objects=OBJECTS, questions="future")
    future = jax.device_get(jax.jit(scene.examples)(np.zeros(9, np.uint32), numbers))
    for name in future:
        if name not in ("question", "answer"):
            np.testing.assert_array_equal(future[name], examples[name][:9])
    np.testing.assert_array_equal(future["question"][:, 3], examples["question"][:9, 3])
    asked_alike = (future["question"] == examples["question"][:9]).all(axis=1)
    np.testing.assert_array_equal(asked_alike, ~examples["chain"][:9])
    assert (future["answer"] >= len(COLOURS)).all()


def test_steps_are_named():
    named = {kind: MultimodalScene(questions=kind).streams[-1].cell_names for kind in
             ("chain", "future", "both")}  # fmt: skip
    assert named["chain"] == ("1 hop", "2 hops", "3 hops", "4 hops")
    assert named["future"] == ("frame 2", "frame 3", "frame 4", "frame 5")
    assert named["both"][1] == "2 hops / frame 3"
