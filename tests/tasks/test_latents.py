"""Latents made before training equal those made within a step, bit for bit."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from roam_jax.cogvideox.vae import VAE
from roam_jax.tasks.augment import Augmentation
from roam_jax.tasks.backbone import to_video
from roam_jax.tasks.build import build
from roam_jax.tasks.latents import layout_encoder, plan_encodings
from roam_jax.train import optim, sharding
from roam_jax.train.state import abstract_params, abstract_state, create_state, partition
from roam_jax.train.step import make_train_step
from tests.evaluate.conftest import make_config, write_toy
from tests.tasks.models import make_params

STEPS = 3


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return write_toy(tmp_path_factory.mktemp("toy") / "1.0.0", seed=0)


def configure(weights, toy, **leaves):
    config = make_config(weights, toy)
    config.train.batch_size, config.optim.warmup_steps = 2, 1
    config.update_from_flattened_dict(leaves)
    return config


def changed(config, **leaves):
    """A copy with other values in its data section; an experiment keeps its config."""
    config = config.copy_and_resolve_references()
    config.data.update(leaves)
    return config


def encode_to(out, config, *, copies=0):
    """What `encode` does, of every member."""
    experiment = build(config)
    plan = {"copies": copies, "dtype": "float32", "shard_windows": 4}
    encodings = plan_encodings(experiment, out, **plan)
    encoder = layout_encoder(experiment, encodings[0].layout)
    for encoding in encodings:
        assert encoding.run(encoder, batch_size=3)
    return experiment


def train(experiment):
    """Parameters that train and metrics after each of a few steps, by the trainer's own step."""
    config, task = experiment.config, experiment.task
    mesh = sharding.make_mesh(1, 1, devices=jax.devices()[:1])
    trainable, frozen = partition(make_params(experiment), task.trainable)
    tx, schedule = optim.make_optimizer(config.optim, steps=100, no_decay=task.no_decay)
    shapes = abstract_params(task, mesh, rules=experiment.rules)
    like = abstract_state(partition(shapes, task.trainable)[0], tx, mesh)
    step = make_train_step(task, tx, schedule, seed=0, like=like)
    state, batches, metrics = create_state(trainable, tx, like=like), experiment.batches(), []
    for _ in range(STEPS):
        state, found = step(state, frozen, next(batches), rounds=2)
        metrics.append(jax.device_get(found))
    return jax.device_get(state.trainable), metrics, batches


@pytest.fixture(scope="module")
def views(weights, toy, tmp_path_factory):
    """Two cameras that are predicted and a goal: the config, and all of it encoded."""
    out = tmp_path_factory.mktemp("latents")
    config = configure(
        weights,
        toy,
        **{
            "data.cameras": ("image_0", "image_1"),
            "data.goal": "last",
            "canvas.camera_weight": 0.5,
        },
    )
    return config, encode_to(out, config), out


@pytest.mark.exact
def test_training_from_the_cache_is_training_on_frames(views):
    """With samples of the posterior; tests/cli/test_encode.py trains on its mean."""
    config, _, out = views
    frames = build(changed(config, posterior="sample"))
    cached = build(changed(config, posterior="sample", latents=str(out), encode_once=10_000))
    one, two = train(frames), train(cached)
    assert "frames" in frames.task.batch_spec and "frames" not in cached.task.batch_spec
    for a, b in zip(one[1], two[1], strict=True):
        assert {"loss/diffusion", "loss/camera", "loss/action", "grad_norm"} <= set(a)
        assert a == b
    jax.tree.map(np.testing.assert_array_equal, one[0], two[0])
    # The loader's batches are those that the step was compiled for.
    batch = next(two[2])
    assert {n: (x.shape, x.dtype) for n, x in batch.items()} == {
        n: (spec.shape, spec.dtype) for n, spec in cached.task.batch_spec.items()
    }


def test_the_moments_are_those_of_the_vae(views):
    """Scaled mean and log-variance, against the VAE on each video alone."""
    _, experiment, _ = views
    config = dataclasses.replace(experiment.model.backbone.vae_config, scaling_factor=0.7)
    backbone = dataclasses.replace(experiment.model.backbone, vae_config=config)
    batch = next(experiment.batches())
    fields = [f"target_camera_latents{moment}" for moment in ("", "_logvar")]
    params = jax.device_put(backbone.pretrained_vae())
    found = jax.jit(
        lambda params, batch: backbone.encode_batch(params, batch, experiment.time, fields=fields)
    )(params, batch)
    assert set(found) == set(fields)
    encode = jax.jit(functools.partial(backbone.vae.apply, method=VAE.encode))
    for row in range(2):
        video = to_video(jnp.asarray(batch["camera_frames"][row]))
        mean, logvar = encode({"params": params}, video)
        mean, logvar = np.moveaxis(mean, 1, 2), np.moveaxis(logvar, 1, 2)
        np.testing.assert_allclose(found[fields[0]][row], 0.7 * mean, atol=1e-5)
        # The variance of 0.7 z is 0.49 times that of z.
        expected = np.log(0.49) + logvar
        np.testing.assert_allclose(found[fields[1]][row], expected, atol=1e-4)


def test_samples_have_the_moments_that_they_are_drawn_from(views):
    """Targets are drawn, anew with every key; what is observed is the mean."""
    _, experiment, _ = views
    backbone, batch = experiment.model.backbone, next(experiment.batches())
    shape = (400, 3, 16, 2, 2)
    latents = {
        "observed_latents": jnp.ones((400, 2, 16, 2, 2)),
        "target_latents": jnp.full(shape, 3.0),
        "target_latents_logvar": jnp.full(shape, np.log(0.25)),
    }
    drawn = [
        backbone.latents({}, {**latents, "posterior_key": jax.random.key(i)}, experiment.time)
        for i in (0, 1, 0)
    ]
    assert not np.array_equal(drawn[0]["target_latents"], drawn[1]["target_latents"])
    np.testing.assert_array_equal(drawn[0]["target_latents"], drawn[2]["target_latents"])
    np.testing.assert_allclose(np.mean(drawn[0]["target_latents"]), 3.0, atol=0.01)
    np.testing.assert_allclose(np.std(drawn[0]["target_latents"]), 0.5, atol=0.01)
    for found in drawn:
        np.testing.assert_array_equal(found["observed_latents"], latents["observed_latents"])
    assert "frames" in batch


def test_a_row_does_not_depend_on_its_batch_or_its_device(views):
    """XLA rounds a convolution of eight rows otherwise than one of a single row."""
    _, experiment, _ = views
    backbone, source = experiment.model.backbone, experiment.members[0].train
    frames = np.stack([source[i % len(source)]["frames"] for i in range(8)])
    params = backbone.pretrained_vae()

    @jax.jit
    def encode(params, frames):
        return backbone.encode_batch(params, {"frames": frames}, experiment.time)

    whole = encode(params, frames)
    alone = [encode(params, frames[i : i + 1]) for i in range(8)]
    mesh = sharding.make_mesh(2, 4)
    split = jax.device_put(frames, sharding.batch_sharding(mesh))
    copied = jax.device_put(params, sharding.replicated(mesh))
    compiled = encode.lower(copied, split).compile()
    spread = compiled(copied, split)
    for name, rows in whole.items():
        np.testing.assert_array_equal(np.concatenate([one[name] for one in alone]), rows)
        np.testing.assert_array_equal(spread[name], rows)
        assert spread[name].sharding.is_equivalent_to(split.sharding, ndim=5)
    # Every device encodes the rows that it holds, and asks no other for anything.
    text = compiled.as_text()
    assert "convolution" in text
    for name in ("all-gather", "all-reduce", "collective-permute", "all-to-all"):
        assert name not in text


def test_copies_are_the_augmentation_by_their_stored_seeds(weights, toy, tmp_path):
    """Copy c of window i is augmented by the key of (seed, i, c), and its goal drawn with it."""
    augment = {"data.augment.crop_area": 0.5, "data.augment.brightness": 0.2}
    config = configure(weights, toy, **augment, **{"data.goal": "uniform", "seed": 4})
    experiment = encode_to(tmp_path, config, copies=2)
    config = changed(config, latents=str(tmp_path))
    cached = build(config)
    (cache,), backbone = cached.latents, cached.model.backbone
    source, params = experiment.members[0].train, backbone.pretrained_vae()

    @jax.jit
    def expected(params, window, copy):
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(4), 5), copy)
        augmented = Augmentation.from_config(config)(window, key)
        return backbone.encode_batch(params, augmented, cached.time)

    seen = set()
    for copy in range(2):
        window = source.draw(5, np.random.default_rng([4, 5, copy]))
        videos = {name: window[name][None] for name in ("frames", "goal_frame")}
        wanted = jax.device_get(expected(params, videos, jnp.uint32(copy)))
        draws = [cache.draw(5, np.random.default_rng(i)) for i in range(8)]
        match = [np.allclose(w["target_latents"], wanted["target_latents"][0]) for w in draws]
        seen.add(tuple(match))
        found = draws[match.index(True)]
        for name in ("observed_latents", "target_latents", "goal_latent"):
            np.testing.assert_allclose(found[name], wanted[name][0], atol=1e-5)
    assert len(seen) == 2  # the copies differ
    # What the step trains on is what the cache holds, augmented once.
    assert set(cached.model.augmentation.changed) == {"crop_area", "brightness"}
    still = dataclasses.replace(cached.model, augmentation=Augmentation())
    given = make_params(cached), next(cached.batches()), jax.random.key(0)
    found, wanted = (
        jax.jit(functools.partial(loss, rounds=1))(*given)
        for loss in (cached.task.loss, still.loss)
    )
    jax.tree.map(np.testing.assert_array_equal, found, wanted)
    config.data.augment.brightness = 0.3
    with pytest.raises(ValueError, match="data.augment: .*0.2.* there, .*0.3.* here"):
        build(config).batches()


def test_members_of_a_mixture_have_draws_of_their_own(weights, toy, tmp_path):
    """The first is augmented as a dataset alone; the second by a seed folded with its number."""
    mixture = (("one", 0.5, str(toy)), ("two", 0.5, str(toy)))
    leaves = {"data.mixture": mixture, "data.augment.brightness": 0.2, "seed": 4}
    config = configure(weights, toy, **leaves)
    experiment = encode_to(tmp_path, config, copies=1)
    cached = build(changed(config, latents=str(tmp_path)))
    backbone = experiment.model.backbone
    params = jax.device_put(backbone.pretrained_vae())
    frames = jnp.asarray(experiment.members[0].train[5]["frames"][None])

    @jax.jit
    def expected(seed):
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), 5), 0)
        augmented = Augmentation.from_config(config)({"frames": frames}, key)
        return backbone.encode_batch(params, augmented, experiment.time)["target_latents"][0]

    seeds = 4, np.random.SeedSequence([4, 1]).generate_state(1)[0]
    wanted = [np.asarray(expected(jnp.uint32(seed))) for seed in seeds]
    assert np.abs(wanted[0] - wanted[1]).max() > 1e-2
    for cache, latents in zip(cached.latents, wanted, strict=True):
        np.testing.assert_allclose(cache[5]["target_latents"], latents, atol=1e-5)


def test_a_mixture_has_a_folder_for_each_member(weights, toy, tmp_path):
    other = write_toy(tmp_path / "other", seed=50)
    mixture = (("one", 0.25, str(toy)), ("two", 0.75, str(other)))
    config = configure(weights, toy, **{"data.mixture": mixture})
    frames = encode_to(tmp_path / "latents", config)
    config = changed(config, latents=str(tmp_path / "latents"))
    cached = build(config)
    assert set(cached.provenance()["latents"]) == {"one", "two"}
    params = jax.device_put(frames.model.backbone.pretrained_vae())
    encode = jax.jit(functools.partial(frames.model.backbone.encode_batch, time=frames.time))
    pixels, latents = frames.batches(), cached.batches()
    for _ in range(3):
        one, two = next(pixels), next(latents)
        wanted = {**one, **encode(params, one)}
        assert set(two) == set(wanted) - {"frames"}
        for name, array in two.items():
            np.testing.assert_array_equal(array, wanted[name], err_msg=name)
    config.data.mixture = (*mixture[:1], ("three", 0.75, str(other)))
    with pytest.raises(FileNotFoundError, match="latents/three: no latents.json there"):
        build(config).batches()


def test_a_cache_of_other_weights_is_refused(views, weights, tmp_path_factory):
    from tests.tiny_weights import write_weights

    config, _, out = views
    config = changed(config, latents=str(out), goal="none", cameras=("image_1", "image_0"))
    config.backbone.path = str(write_weights(tmp_path_factory.mktemp("other"), seed=1))
    with pytest.raises(ValueError) as error:
        build(config).batches()
    for part in ("weights of the VAE: ", "data.goal: last there, none here", "data.cameras: "):
        assert part in str(error.value)
    assert "data.image_size" not in str(error.value)


@pytest.mark.parametrize(
    "leaf, value, message",
    [
        ("latents", "folder", "data.latents = 'folder': train.task = vae trains the VAE"),
        ("posterior", "sample", "data.posterior = 'sample': train.task = vae trains the VAE"),
    ],
)
def test_the_vae_trains_on_frames(weights, toy, leaf, value, message):
    config = configure(weights, toy, **{"train.task": "vae", f"data.{leaf}": value})
    with pytest.raises(ValueError, match=message):
        build(config)


def test_an_unknown_posterior_is_refused(weights, toy):
    config = configure(weights, toy, **{"data.posterior": "samples"})
    with pytest.raises(ValueError, match="data.posterior = 'samples': .*did you mean 'sample'"):
        build(config)
