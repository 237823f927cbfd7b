"""What every scene promises: streams and canvas agree, examples are the same in any batch."""

import functools

import jax
import numpy as np
import pytest

from roam_jax.data.contact_scene import ContactScene
from roam_jax.data.multimodal_scene import MultimodalScene
from roam_jax.data.scene import KINDS, OBJECTIVES, ROLES, THOUGHT
from roam_jax.data.scenes import SCENES, open_scene

CELLS = {"multimodal": 120, "contact": 200}


def opened(name, **changes):
    values = {"objects": 4, "observed_frames": 2, "questions": "both", **changes}
    return open_scene(name, **values)


@functools.cache
def program(scene):
    return jax.jit(scene.examples)


def made(scene, *, seed, numbers):
    numbers = np.asarray(numbers, np.uint32)
    return jax.device_get(program(scene)(np.full(len(numbers), seed, np.uint32), numbers))


def cells_of(stream):
    if stream.kind == "patches":
        frames, height, width, _ = stream.shape
        return frames * (height // stream.patch) * (width // stream.patch)
    return stream.shape[0]


@pytest.mark.parametrize("observed", [1, 2, 3])
@pytest.mark.parametrize("name", SCENES)
def test_streams_fill_the_canvas(name, observed):
    scene = opened(name, observed_frames=observed)
    layout = scene.layout(32)
    assert layout.num_positions == CELLS[name]
    assert sum(layout.region_numel(region) for region in layout.regions) == CELLS[name]
    assert (layout.d_model, layout.t_current) == (32, observed)
    assert [*layout.regions] == [*(stream.name for stream in scene.streams), THOUGHT]
    for stream in scene.streams:
        assert layout.region_numel(stream.name) == cells_of(stream)
        assert layout.regions[stream.name].is_output == (stream.role == "output")
        assert stream.kind in KINDS and stream.role in ROLES
        assert (stream.objective in OBJECTIVES) == (stream.role == "output")
        assert len(stream.cell_names) in (0, stream.shape[0])
    grouped = [name for group in scene.groups() for name in group]
    assert sorted(grouped) == sorted(stream.name for stream in scene.streams)
    assert set(scene.dimensions) <= set(grouped)


@pytest.mark.exact
@pytest.mark.parametrize("name", SCENES)
def test_an_example_is_the_same_in_any_batch(name):
    scene = opened(name)
    numbers = np.array([5, 0, 2**32 - 1], np.uint32)
    together = made(scene, seed=4, numbers=numbers)
    alone = made(scene, seed=4, numbers=numbers[2:3])
    turned = made(scene, seed=4, numbers=numbers[::-1])
    other = made(scene, seed=5, numbers=numbers)
    for stream in scene.streams:
        values = together[stream.name]
        assert values.shape == (3, *stream.shape)
        assert values.dtype == (np.int32 if stream.kind == "tokens" else np.float32)
        np.testing.assert_array_equal(alone[stream.name][0], values[2])
        np.testing.assert_array_equal(turned[stream.name][::-1], values)
        if stream.kind != "tokens":
            assert (values[1:] != values[:1]).any() and (other[stream.name] != values).any()
        if stream.kind == "patches":
            assert values.min() >= -1 and values.max() <= 1
        if stream.kind == "tokens":
            assert values.min() >= 0 and values.max() < stream.vocabulary <= len(scene.words)


@pytest.mark.exact
@pytest.mark.parametrize("name", SCENES)
def test_seeds_may_be_a_batch_axis(name):
    scene = opened(name)
    seeds = np.repeat(np.arange(2, dtype=np.uint32)[:, None], 3, axis=1)
    numbers = np.tile(np.arange(3, dtype=np.uint32), (2, 1))
    both = jax.device_get(jax.jit(jax.vmap(scene.examples))(seeds, numbers))
    for seed in range(2):
        one = made(scene, seed=seed, numbers=range(3))
        for stream in scene.streams:
            np.testing.assert_array_equal(both[stream.name][seed], one[stream.name])


@pytest.mark.parametrize("name", SCENES)
def test_what_is_observed_does_not_change_what_happens(name):
    few, more = (made(opened(name, observed_frames=n), seed=0, numbers=range(3)) for n in (2, 3))
    for past, future in (("observed_video", "future_video"), ("proprio", "future_proprio")):
        assert few[past].shape[1] == 2 and more[past].shape[1] == 3
        np.testing.assert_array_equal(
            *(np.concatenate([v[past], v[future]], axis=1) for v in (few, more))
        )


def test_scenes_by_name():
    scene = open_scene("multimodal", objects=6, observed_frames=1, questions="chain")
    assert scene == MultimodalScene(objects=6, observed_frames=1, questions="chain")
    scene = open_scene("contact", objects=1, observed_frames=7, questions="both")
    assert scene == ContactScene(objects=1, observed_frames=7)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("multimodl", {}, "data.scene = 'multimodl': .* did you mean 'multimodal'"),
        ("multimodal", {"objects": 2}, "data.objects = 2: scene multimodal has 3 to 6"),
        ("multimodal", {"objects": 7}, "data.objects = 7: scene multimodal has 3 to 6"),
        ("multimodal", {"observed_frames": 0}, "data.observed_frames = 0: .* has 1 to 3"),
        ("multimodal", {"observed_frames": 4}, "data.observed_frames = 4: .* has 1 to 3"),
        ("multimodal", {"questions": "chian"}, "data.questions = 'chian': .* mean 'chain'"),
        ("contact", {"objects": 0}, "data.objects = 0: scene contact has 1 to 6"),
        ("contact", {"observed_frames": 8}, "data.observed_frames = 8: scene contact has 1 to 7"),
        ("contact", {"questions": "chain"}, "data.questions = 'chain': scene contact asks none"),
    ],
)
def test_bad_input(name, changes, message):
    with pytest.raises(ValueError, match=message):
        opened(name, **changes)


def test_whole_numbers_alone():
    with pytest.raises(ValueError, match="data.objects True: expected a whole number"):
        ContactScene(objects=True)
