"""Augmentation against plain numpy and colorsys; one draw for a window and camera."""

import colorsys
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from roam_jax.cli.arguments import load_config
from roam_jax.evaluate.predictor import GraftPredictor
from roam_jax.tasks.augment import Augmentation, resized_crop
from roam_jax.tasks.sketch import sketch
from tests.tasks.models import make_params, random_batch

ALL = {
    "crop_area": 0.5,
    "crop_aspect": 1.3,
    "brightness": 0.2,
    "contrast": 0.3,
    "saturation": 0.4,
    "hue": 0.1,
}
ROWS = 3


def frames(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)


def bilinear(image, box):
    """`image` (H, W, 3) sampled at the centres of a grid over the box, pixel by pixel."""
    height, width, _ = image.shape
    top, left, tall, wide = map(float, box)
    result = np.zeros_like(image, np.float64)
    for i in range(height):
        for j in range(width):
            y = np.clip(top + (i + 0.5) * tall / height - 0.5, 0, height - 1)
            x = np.clip(left + (j + 0.5) * wide / width - 0.5, 0, width - 1)
            y0, x0 = min(int(y), height - 2), min(int(x), width - 2)
            for dy, wy in ((0, 1 - (y - y0)), (1, y - y0)):
                for dx, wx in ((0, 1 - (x - x0)), (1, x - x0)):
                    result[i, j] += wy * wx * image[y0 + dy, x0 + dx]
    return result


def recolour(image, setting, number):
    """One step on an image (H, W, 3) in 0..1 by its definition."""
    if setting == "brightness":
        changed = image + number
    elif setting == "contrast":
        mean = image.mean(axis=(0, 1))
        changed = number * (image - mean) + mean
    else:
        changed = np.zeros_like(image)
        for place in np.ndindex(image.shape[:2]):
            hue, saturation, value = colorsys.rgb_to_hsv(*image[place])
            if setting == "saturation":
                saturation = min(saturation * number, 1)
            else:
                hue = (hue + number) % 1
            changed[place] = colorsys.hsv_to_rgb(hue, saturation, value)
    return np.clip(changed, 0, 1)


def test_a_crop_is_bilinear():
    images = frames(2, 6, 9) / 255.0
    box = np.array([1.3, 0.25, 3.7, 6.5], np.float32)
    found = resized_crop(jnp.asarray(images, jnp.float32), jnp.asarray(box))
    expected = [bilinear(image, box) for image in images]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    whole = resized_crop(jnp.asarray(images, jnp.float32), jnp.array([0.0, 0, 6, 9]))
    np.testing.assert_allclose(whole, images, atol=1e-6)


@pytest.mark.parametrize("setting", ["brightness", "contrast", "saturation", "hue"])
def test_each_colour_step_is_its_definition(setting):
    """The number that was drawn is found by trying; it must then explain the whole window."""
    augment = Augmentation(**{setting: 0.3})
    clip = frames(ROWS, 2, 5, 4)
    out = np.asarray(augment.window(jnp.asarray(clip), jax.random.key(1)), np.float64)
    centre = 1 if setting in ("contrast", "saturation") else 0
    numbers = []
    for before, after in zip(clip / 255.0, out, strict=True):
        tried = np.linspace(centre - 0.3, centre + 0.3, 1201)
        errors = [np.abs(255 * recolour(before[0], setting, n) - after[0]).max() for n in tried]
        best = tried[np.argmin(errors)]
        assert min(errors) < 0.75  # half of it rounding
        numbers.append(best)
        np.testing.assert_allclose(255 * recolour(before[1], setting, best), after[1], atol=0.85)
    assert len(set(np.round(numbers, 3))) == ROWS


def test_steps_run_in_order_with_the_draws_of_each():
    augment, clip = Augmentation(**ALL), frames(2, 1, 6, 8)
    rng = jax.random.key(3)
    out = np.asarray(augment.window(jnp.asarray(clip), rng))
    crop_rng, *rngs = jax.random.split(rng, 5)
    boxes = np.asarray(augment.crop_boxes(crop_rng, 2, size=(6, 8)))
    for row in range(2):
        image = np.clip(bilinear(clip[row, 0] / 255.0, boxes[row]), 0, 1)
        settings = ("brightness", "contrast", "saturation", "hue")
        for setting, colour_rng in zip(settings, rngs, strict=True):
            centre = 1 if setting in ("contrast", "saturation") else 0
            span = {"minval": centre - ALL[setting], "maxval": centre + ALL[setting]}
            image = recolour(
                image, setting, float(jax.random.uniform(colour_rng, (2,), **span)[row])
            )
        np.testing.assert_allclose(out[row, 0], 255 * image, atol=0.52)


def test_crops_lie_within_the_frame_and_have_the_stated_shares():
    augment = Augmentation(crop_area=0.3, crop_aspect=1.5)
    boxes = np.asarray(augment.crop_boxes(jax.random.key(0), 4000, size=(48, 64)), np.float64)
    top, left, tall, wide = boxes.T
    assert top.min() >= 0 and left.min() >= 0
    assert (top + tall).max() <= 48.001 and (left + wide).max() <= 64.001
    area, aspect = tall * wide / (48 * 64), (wide / 64) / (tall / 48)
    free = (tall < 47.9) & (wide < 63.9)
    assert 0.3 <= area[free].min() < 0.31 and area[free].max() < 1
    assert 1 / 1.501 < aspect.min() < 0.68 and 1.48 < aspect.max() < 1.501
    assert abs(np.log(aspect[area < 0.5]).mean()) < 0.03  # as often wide as tall
    # Uniform in area where the aspect clips nothing, and in place.
    small = area[area < 0.6]
    assert abs(small.mean() - 0.45) < 0.01
    assert abs((top[free] / (48 - tall[free])).mean() - 0.5) < 0.02


def test_frames_of_a_window_share_their_draws_and_windows_and_cameras_do_not():
    still = np.repeat(frames(1, 1, 8, 8), 4, axis=1)
    same = np.repeat(still, ROWS, axis=0)
    batch = {
        "frames": same,
        "camera_frames": np.stack([same, same], axis=1),
        "goal_frame": same[:, :1],
        "text": np.zeros(ROWS),
    }
    augment = jax.jit(Augmentation(**ALL))
    found = augment(batch, jax.random.key(0))
    assert {n: (x.shape, x.dtype) for n, x in found.items()} == {
        n: (x.shape, jnp.asarray(x).dtype) for n, x in batch.items()
    }
    clips = np.concatenate([found["frames"][:, None], found["camera_frames"]], axis=1)
    np.testing.assert_array_equal(clips, clips[:, :, :1].repeat(4, axis=2))
    np.testing.assert_array_equal(found["goal_frame"], found["frames"][:, :1])
    flat = clips[:, :, 0].reshape(3 * ROWS, -1).astype(int)
    distance = np.abs(flat[:, None] - flat[None]).mean(axis=-1)
    assert distance[~np.eye(3 * ROWS, dtype=bool)].min() > 2
    again, other = augment(batch, jax.random.key(0)), augment(batch, jax.random.key(1))
    np.testing.assert_array_equal(again["camera_frames"], found["camera_frames"])
    assert (np.asarray(other["frames"]) != np.asarray(found["frames"])).any()
    # What is drawn for the first camera does not depend on the others.
    alone = augment({"frames": same}, jax.random.key(0))
    np.testing.assert_array_equal(alone["frames"], found["frames"])


def test_without_settings_nothing_is_traced():
    batch = {"frames": frames(2, 2, 4, 4)}
    augment = Augmentation()
    assert augment(batch, jax.random.key(0)) is batch and augment.changed == {}
    assert not jax.make_jaxpr(augment)(batch, jax.random.key(0)).eqns


@pytest.mark.parametrize(
    "setting, value",
    [
        ("crop_area", 0.0), ("crop_area", 1.1), ("crop_aspect", 0.9), ("crop_aspect", np.inf),
        ("brightness", -0.1), ("contrast", 1.5), ("saturation", np.nan), ("hue", 0.6),
    ],
)  # fmt: skip
def test_values_out_of_range_are_refused(setting, value):
    with pytest.raises(ValueError, match=f"data.augment.{setting} = {value}: expected"):
        Augmentation(**{setting: value})


@pytest.fixture
def config(weights):
    config = load_config("configs/bridge_3loop.py:tiny")
    config.backbone.path = str(weights)
    config.train.batch_size, config.data.image_size = 2, (16, 32)
    config.data.cameras, config.data.goal = ("image_0", "image_1"), "last"
    for name, value in ALL.items():
        config.data.augment[name] = value
    return config


@pytest.mark.exact
def test_the_loss_is_that_of_the_augmented_batch(config):
    config.data.cameras, config.data.goal = ("image_0",), "none"
    plan = sketch(config)
    params, batch, rng = make_params(plan), random_batch(plan.task), jax.random.key(5)
    augmented = jax.jit(Augmentation(**ALL))(batch, jax.random.split(rng, 6)[5])
    plain = dataclasses.replace(plan.model, augmentation=Augmentation())
    loss, plain_loss = (jax.jit(m.loss, static_argnums=3) for m in (plan.model, plain))
    expected, _ = plain_loss(params, augmented, rng, 1)
    np.testing.assert_allclose(loss(params, batch, rng, 1)[0], expected, rtol=1e-5)
    assert abs(float(plain_loss(params, batch, rng, 1)[0] / expected) - 1) > 1e-4


def test_evaluation_sees_the_frames_as_they_are(config):
    config.data.cameras, config.loop.rounds = ("image_0",), 1
    augmented = sketch(config)
    config.data.augment = load_config("configs/bridge_3loop.py:tiny").data.augment
    plain = sketch(config)
    assert augmented.model.augmentation != plain.model.augmentation == Augmentation()
    params, batch = make_params(plain), random_batch(plain.task)
    windows, figures = zip(
        *(evaluated(plan.model, params, batch) for plan in (augmented, plain)), strict=True
    )
    assert {"observed_latents", "target_latents", "goal_latent"} <= windows[0].keys()
    jax.tree.map(np.testing.assert_array_equal, *windows)
    jax.tree.map(np.testing.assert_array_equal, *figures)


def evaluated(model, params, batch):
    """Windows and figures of an evaluation."""
    predictor = GraftPredictor(model)
    windows = predictor.encode(params, batch)
    return windows, predictor.deploy(params, windows, np.arange(2, dtype=np.int32), rounds=1)


def test_the_video_task_augments_as_well(config):
    config.train.task, config.data.cameras, config.data.goal = "video", ("image_0",), "none"
    plan = sketch(config)
    assert plan.model.augmentation == Augmentation(**ALL)
    shapes = jax.eval_shape(plan.task.init, jax.random.key(0))
    batch = {n: jnp.zeros(s.shape, s.dtype) for n, s in plan.task.batch_spec.items()}
    call = lambda model: jax.make_jaxpr(model.loss, static_argnums=3)(  # noqa: E731
        shapes, batch, jax.random.key(0), 1
    )
    plain = dataclasses.replace(plan.model, augmentation=Augmentation())
    assert len(call(plan.model).eqns) > len(call(plain).eqns)


def test_latents_cannot_be_augmented_and_the_vae_has_its_own(config):
    plan = sketch(config)
    batch = random_batch(plan.encoded_task)
    with pytest.raises(ValueError, match=r"(?s)data.augment.crop_area = 0.5.*data.encode_once"):
        plan.model.augmentation(batch, jax.random.key(0))
    config.train.task, config.data.cameras, config.data.goal = "vae", ("image_0",), "none"
    with pytest.raises(ValueError, match="data.augment.crop_area = 0.5.*train.task = vae"):
        sketch(config)
