"""A canvas model on eight devices, split in every way: loss and gradients of one device."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from roam_jax.tasks.canvas_task import SHARDING_RULES
from roam_jax.train import names, sharding
from tests.tasks.scenes import FEW, random_like, small_batch, small_model, small_module

# (data, fsdp, sequence, tensor)
MESHES = {
    "data": (8, 1, 1, 1),
    "fsdp": (1, 8, 1, 1),
    "sequence": (1, 1, 8, 1),
    "data, fsdp, tensor": (2, 2, 1, 2),
    "fsdp, sequence, tensor": (1, 2, 2, 2),
}


def gradients(model, params, batch):
    def loss(params):
        return model.loss(params, {**batch, "step": jnp.int32(0)}, jax.random.key(3), 2)

    return jax.jit(jax.value_and_grad(loss, has_aux=True))(params)


LOOPS = {
    "block": {"topology": "causal", "over": "block", "geometry": "rotary"},
    "stack": {"topology": "central_thought", "over": "stack", "halting": "learned"},
}


@pytest.fixture(scope="module", params=LOOPS)
def case(request):
    """A model, its parameters and batch, and what one device makes of them."""
    options = dict(LOOPS[request.param])
    geometry = options.pop("geometry", "none")
    module = small_module(streams=FEW, depth=1, **options)
    model = small_model(module=dataclasses.replace(module, geometry=geometry))
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    params = random_like(shapes)
    batch = small_batch(8)
    return model, params, batch, gradients(model, params, batch)


@pytest.mark.parametrize("name", MESHES)
def test_step_equals_that_of_one_device(case, name):
    model, params, batch, ((loss, metrics), grads) = case
    mesh = sharding.make_mesh(*MESHES[name])
    specs = sharding.match_rules(SHARDING_RULES, params, axis_sizes=mesh.shape)
    on_mesh = jax.tree.map(lambda x, s: jax.device_put(x, NamedSharding(mesh, s)), params, specs)
    rows = jax.device_put(batch, sharding.batch_sharding(mesh))
    (found, measured), found_grads = gradients(model, on_mesh, rows)
    np.testing.assert_allclose(found, loss, atol=1e-5, rtol=1e-5)
    flat, expected = names.flatten(found_grads), names.flatten(grads)
    norm = np.sqrt(sum(np.sum(np.square(g)) for g in expected.values()))
    for key, grad in expected.items():
        assert np.linalg.norm(np.asarray(flat[key]) - np.asarray(grad)) < 1e-5 * norm, key
    for key, value in metrics.items():
        np.testing.assert_allclose(measured[key], value, atol=1e-5, rtol=1e-4, err_msg=key)
