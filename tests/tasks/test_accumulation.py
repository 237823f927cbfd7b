"""A batch in parts has the loss and the gradients of the batch at once, for every task."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from roam_jax.cli.arguments import load_config
from roam_jax.contracts import Task
from roam_jax.data.demonstration_batches import Chunks
from roam_jax.microbatch import PART, split_batch
from roam_jax.tasks.canvas_task import scene_model
from roam_jax.tasks.latents import sampling
from roam_jax.tasks.sketch import sketch
from roam_jax.tasks.vae import VAEModel
from roam_jax.train import names, sharding
from roam_jax.train.state import partition
from roam_jax.train.step import make_gradients
from tests.tasks.bodies import noise, small_policy
from tests.tasks.models import fresh_params, make_params, random_batch
from tests.tasks.scenes import (
    FEW,
    random_like,
    small_batch,
    small_model,
    small_module,
    toy_config,
)
from tests.tasks.test_vae import SMALL, random_frames

ROWS = 4


def gradients(task, params, batch, *, parts, rounds=2, place=lambda batch: batch):
    """(loss, metrics, name -> gradient) on a batch in so many parts."""
    trainable, frozen = partition(params, task.trainable)
    run = jax.jit(functools.partial(make_gradients(task, parts), rounds=rounds))
    key = jax.random.key(5)
    loss, metrics, grads = run(trainable, frozen, place(batch), key, step=np.int32(3))
    return jax.device_get((loss, metrics, names.flatten(grads)))


def require_same(task, params, batch, *, parts, means=(), rtol=2e-6, **options):
    """Gradients of every parameter to float32 rounding, losses and metrics as well.

    Args:
        means: metrics that are not means over rows, and so differ in parts.
        rtol: of the norm of the difference of a parameter's gradient to its norm.
    """
    loss, metrics, whole = gradients(task, params, batch, parts=1, **options)
    largest = max(np.linalg.norm(grad) for grad in whole.values())
    assert largest > 1e-4
    found = gradients(task, params, batch, parts=parts, **options)
    np.testing.assert_allclose(found[0], loss, rtol=1e-6)
    for name in metrics.keys() - set(means):
        np.testing.assert_allclose(found[1][name], metrics[name], rtol=2e-6, err_msg=name)
    for name, grad in whole.items():
        error = np.linalg.norm(found[2][name] - grad)
        # What is nearly 0 beside the others is a sum of large terms that cancel.
        assert error <= rtol * max(np.linalg.norm(grad), 1e-2 * largest), (name, error)


def plan_of(weights, **leaves):
    config = load_config("configs/bridge_3loop.py:tiny")
    config.backbone.path, config.train.batch_size = str(weights), ROWS
    config.data.image_size, config.data.encode_once = (16, 16), 0
    config.freeze = "unfrozen"
    config.update_from_flattened_dict(leaves)
    return sketch(config)


VIEWS = {
    "data.cameras": ("image_0", "image_1"),
    "data.goal": "last",
    "canvas.camera_weight": 0.5,
    "canvas.proprio": True,
    "canvas.proprio_weight": 0.25,
    "decoder.kind": "tokens_diffused",
    "data.augment.crop_area": 0.7,
    "data.augment.hue": 0.1,
    "loss.deploy_fraction": 0.4,
    "loop.self_distillation": True,
}


def test_graft_with_all_that_it_draws(weights):
    plan = plan_of(weights, **VIEWS)
    task = dataclasses.replace(plan.task, loss=sampling(plan.task.loss))
    require_same(task, make_params(plan), random_batch(task), parts=2)


def test_video(weights):
    leaves = {"train.task": "video", "loss.observed_fraction": 0.6}
    plan = plan_of(weights, **leaves)
    require_same(plan.task, fresh_params(plan), random_batch(plan.task), parts=4, rounds=1)


def test_vae():
    model = VAEModel(SMALL.config, single_frames=False)
    task = Task(init=model.init, loss=model.loss, trainable=(".*",), batch_spec={})
    params = jax.jit(model.init)(jax.random.key(0))
    batch = {"frames": random_frames((8, 5, 40, 36, 3))}
    # Convolutions sum over all pixels, in another order where there are fewer clips.
    require_same(task, params, batch, parts=2, means=("latent_std",), rtol=5e-6)
    odd = {"frames": random_frames((6, 5, 8, 8, 3))}
    with pytest.raises(ValueError, match="train.accumulate = 2: parts of 3 clips a device"):
        gradients(task, params, odd, parts=2)


def scene_task_of(model):
    return Task(init=model.init, loss=model.loss, trainable=(".*",), batch_spec={})


@pytest.mark.parametrize(
    "balance, loop",
    [
        ("uncertainty", {"self_distillation": True, "over": "stack"}),
        ("fixed", {"halting": "learned"}),
    ],
)
def test_canvas(balance, loop):
    """Few regions of a row are noised, so that parts differ in what counts."""
    fields = {"noised_fraction": 0.3, "ponder": 0.1, "steps": 8}
    model = small_model(module=small_module(depth=1, **loop), balance=balance, **fields)
    params = random_like(jax.eval_shape(model.init, jax.random.key(0)))
    require_same(scene_task_of(model), params, small_batch(8), parts=4)


def test_clone():
    """Episodes that end within a chunk leave parts with masks of their own."""
    policy = small_policy()
    rows = np.array([0, 3, 4, 6, 11, 7, 2, 4])
    batch = {
        f"{body}/{name}": x
        for body, source in noise().items()
        for name, x in Chunks(source, chunk=policy.chunk)[rows].items()
    }
    masks = [batch[f"{body}/mask"] for body in policy.bodies]
    assert all(mask[:4].sum() != mask[4:].sum() for mask in masks)
    task = Task(init=policy.init, loss=policy.loss, trainable=(".*",), batch_spec={})
    params = random_like(jax.eval_shape(policy.init, jax.random.key(0)))
    require_same(task, params, batch, parts=2)


def test_gradnorm_is_refused():
    config = toy_config()
    config.loss.balance, config.train.accumulate = "gradnorm", 2
    with pytest.raises(ValueError, match="loss.balance = 'gradnorm' with train.accumulate = 2"):
        scene_model(config)


@pytest.mark.parametrize("data, fsdp", [(8, 1), (2, 2)])
def test_every_device_keeps_its_rows(data, fsdp):
    """On a mesh as well the gradients are those of one device, and no row moves."""
    mesh = sharding.make_mesh(data, fsdp, devices=jax.devices()[: data * fsdp])
    model = small_model(module=small_module(depth=1, streams=FEW), noised_fraction=0.5)
    task, batch = scene_task_of(model), small_batch(16)
    params = random_like(jax.eval_shape(model.init, jax.random.key(0)))
    split = functools.partial(jax.device_put, device=sharding.batch_sharding(mesh))
    whole = gradients(task, params, batch, parts=1)
    found = gradients(task, params, batch, parts=2, place=split)
    np.testing.assert_allclose(found[0], whole[0], rtol=1e-6)
    for name, grad in whole[2].items():
        np.testing.assert_allclose(found[2][name], grad, atol=1e-5, err_msg=name)

    def parts(batch):
        at = split_batch(batch, 2)
        return [{n: x for n, x in at(i).items() if n != PART} for i in range(2)]

    compiled = jax.jit(parts).lower(split(batch)).compile()
    assert not [line for line in compiled.as_text().split("\n") if "all-" in line]
    first, second = compiled(split(batch))
    devices = 16 // (data * fsdp)
    rows = np.arange(16).reshape(-1, 2, devices // 2)
    np.testing.assert_array_equal(first["scene_index"], rows[:, 0].reshape(-1))
    np.testing.assert_array_equal(second["scene_index"], rows[:, 1].reshape(-1))
    assert first["scene_index"].sharding.is_equivalent_to(sharding.batch_sharding(mesh), 1)
