"""`train.dtype`: what is computed in, beside masters that are float32 always."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from roam_jax.cli.arguments import load_config
from roam_jax.tasks.backbone import open_backbone
from roam_jax.tasks.canvas_task import scene_model
from roam_jax.tasks.sketch import sketch
from roam_jax.tasks.vae import vae_task
from roam_jax.train import names, sharding
from roam_jax.train.state import abstract_params, abstract_state, create_state, partition
from roam_jax.train.step import make_train_step
from tests.tasks.bodies import small_policy
from tests.tasks.models import make_params, random_batch
from tests.tasks.scenes import toy_config

RATE = 1e-4


def plan_of(weights, dtype):
    config = load_config("configs/bridge_3loop.py:tiny")
    config.backbone.path, config.train.batch_size = str(weights), 2
    config.data.image_size, config.data.encode_once = (16, 16), 0
    config.freeze, config.train.dtype = "unfrozen", dtype
    return sketch(config)


def test_updates_below_the_resolution_of_bfloat16_are_kept(weights):
    plan = plan_of(weights, "bfloat16")
    task, tx = plan.task, optax.sgd(RATE)
    assert plan.model.module.dtype == jnp.bfloat16
    mesh = sharding.make_mesh(1, 1, devices=jax.devices()[:1])
    shapes = abstract_params(task, mesh, rules=plan.rules)
    like = abstract_state(partition(shapes, task.trainable)[0], tx, mesh)
    trainable, frozen = partition(make_params(plan), task.trainable)
    before = names.flatten(jax.tree.map(np.array, trainable))
    state = create_state(trainable, tx, like=like)
    step = make_train_step(task, tx, lambda step: RATE, seed=0, like=like)
    state, metrics = step(state, frozen, random_batch(task), rounds=1)
    after = names.flatten(jax.tree.map(np.array, state.trainable))
    assert metrics["refused"] == 0
    assert {leaf.dtype for leaf in after.values()} == {np.dtype(np.float32)}
    name = "norm_out/norm/scale"  # near 1, where bfloat16 has steps of 1/256
    moved = np.abs(after[name] - before[name])
    assert 0 < moved.max() < 1 / 256
    rounded = [np.asarray(leaf[name], jnp.bfloat16) for leaf in (before, after)]
    assert (rounded[0] == rounded[1]).mean() > 0.9 and (moved > 0).mean() > 0.5


def test_what_is_computed_in_is_what_was_asked_for(weights):
    losses, batch = {}, None
    for dtype in ("auto", "float32", "bfloat16"):
        plan = plan_of(weights, dtype)
        batch = batch or random_batch(plan.task)
        loss = jax.jit(lambda params, batch, plan=plan: plan.task.loss(params, batch, KEY, 1)[0])
        losses[dtype] = float(loss(make_params(plan), batch))
    assert losses["auto"] == losses["float32"]  # on CPUs
    assert losses["bfloat16"] != losses["float32"]
    np.testing.assert_allclose(losses["bfloat16"], losses["float32"], rtol=2e-2)
    open_ = open_backbone(str(weights), image_size=(16, 16), dtype="bfloat16")
    assert open_.frozen_dtype == jnp.bfloat16 and open_.vae.dtype == jnp.bfloat16
    assert open_backbone(str(weights), image_size=(16, 16), dtype="float32").frozen_dtype is None


KEY = jax.random.key(0)


def test_what_a_task_cannot_do_is_refused(weights):
    with pytest.raises(ValueError, match="train.dtype = 'float16': expected one of auto, float32"):
        plan_of(weights, "float16")
    config = toy_config()
    config.train.dtype = "bfloat16"
    with pytest.raises(ValueError, match="train.dtype = 'bfloat16': train.task = canvas computes"):
        scene_model(config)
    with pytest.raises(ValueError, match="train.task = clone computes in float32"):
        small_policy(**{"train.dtype": "bfloat16"})
    config = load_config("configs/tiny_vae.py")
    config.train.dtype = "bfloat16"
    with pytest.raises(ValueError, match="train.task = vae computes in float32"):
        vae_task(config, batch_spec={})
    config.train.dtype, config.train.remat = "auto", "dots"
    with pytest.raises(ValueError, match="train.remat = 'dots': train.task = vae keeps all"):
        vae_task(config, batch_spec={})
