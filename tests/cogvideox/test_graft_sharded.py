"""A graft on eight devices, split in every way: outputs and gradients of one device."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding

from roam_jax.cogvideox.graft_canvas import graft_topology
from roam_jax.cogvideox.graft_topology import TopologyOptions, make_topology
from roam_jax.cogvideox.transformer import Transformer
from roam_jax.tasks.graft_task import SHARDING_RULES
from roam_jax.train import sharding
from tests.cogvideox.graft_models import CONFIG, make_graft, make_inputs, make_params

# (data, fsdp, sequence, tensor)
MESHES = {
    "sequence": (1, 1, 8, 1),
    "data, sequence": (2, 1, 4, 1),
    "tensor": (2, 1, 1, 4),
    "fsdp, sequence, tensor": (1, 2, 2, 2),
}
ROWS = 8


def topology_of(layout, kind):
    if kind == "default":
        return graft_topology(layout)
    return make_topology(layout, TopologyOptions(kind, backbone="declared"))


@functools.cache
def case(topology):
    """A graft, its parameters and inputs, and what one device makes of them."""
    model = make_graft(regions={"proprio": True, "proprio_weight": 1.0})
    model = dataclasses.replace(model, topology=topology_of(model.layout, topology))
    inputs = make_inputs(model, batch=2)
    params = make_params(model, inputs)
    inputs = jax.tree.map(lambda x: jnp.concatenate([x] * (ROWS // 2)), inputs)
    # Frames with timesteps of their own, so that cells are modulated each by its frame.
    inputs["timesteps"] = jnp.tile(inputs["timesteps"][:, None], (1, model.layout.T))
    return model, params, inputs, gradients(model, params, inputs)


def gradients(model, params, inputs):
    """A loss on all outputs, its gradients, and the round measures."""

    @jax.jit
    def run(params, inputs):
        def loss(params):
            outputs, info = model.apply({"params": params}, **inputs, rounds=2)
            return sum(jnp.mean(jnp.square(x)) for x in outputs.values()), info

        return jax.value_and_grad(loss, has_aux=True)(params)

    return run(params, inputs)


def placed(params, inputs, mesh):
    """Parameters and inputs on the mesh, as the trainer splits them."""
    specs = sharding.match_rules(SHARDING_RULES, params, axis_sizes=mesh.shape)
    put = jax.tree.map(lambda x, s: jax.device_put(x, NamedSharding(mesh, s)), params, specs)
    return put, jax.device_put(inputs, sharding.batch_sharding(mesh))


CASES = [("default", name) for name in MESHES if name != "data, sequence"]
CASES += [("causal", "data, sequence"), ("causal", "fsdp, sequence, tensor")]


@pytest.mark.parametrize(("topology", "name"), CASES)
def test_step_equals_that_of_one_device(topology, name):
    model, params, inputs, ((loss, info), grads) = case(topology)
    mesh = sharding.make_mesh(*MESHES[name])
    (found, measures), found_grads = gradients(model, *placed(params, inputs, mesh))
    np.testing.assert_allclose(found, loss, atol=1e-5, rtol=1e-5)
    norm = optax.global_norm(grads)
    for a, b in zip(jax.tree.leaves(found_grads), jax.tree.leaves(grads), strict=True):
        assert np.linalg.norm(np.asarray(a) - np.asarray(b)) < 1e-5 * norm
    for a, b in zip(jax.tree.leaves(measures), jax.tree.leaves(info), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5)


def test_the_backbone_alone():
    """As it is pretrained: text and video all to all, both with cells that divide by nothing."""
    model = Transformer(CONFIG)
    graft = make_graft()
    inputs = make_inputs(graft, batch=2)
    params = make_params(graft, inputs)
    own = {name: x for name, x in params.items() if name != "graft"}
    own["blocks"] = {name: x for name, x in own["blocks"].items() if name != "loop"}
    arrays = [jnp.concatenate([inputs[n]] * 2) for n in ("latents", "text", "timesteps")]
    # An odd number of video cells.
    arrays[0] = arrays[0][:, :1, :, :2]

    @jax.jit
    def run(params, *arrays):
        def loss(params):
            return jnp.mean(jnp.square(model.apply({"params": params}, *arrays)))

        return jax.value_and_grad(loss)(params)

    loss, grads = run(own, *arrays)
    mesh = sharding.make_mesh(1, 2, 2, 2)
    rules = [rule for rule in SHARDING_RULES if "graft" not in rule[0] and "loop" not in rule[0]]
    specs = sharding.match_rules(rules, own, axis_sizes=mesh.shape)
    on_mesh = jax.tree.map(lambda x, s: jax.device_put(x, NamedSharding(mesh, s)), own, specs)
    rows = jax.device_put(arrays, sharding.batch_sharding(mesh))
    found, found_grads = run(on_mesh, *rows)
    np.testing.assert_allclose(found, loss, rtol=1e-5)
    for a, b in zip(jax.tree.leaves(found_grads), jax.tree.leaves(grads), strict=True):
        assert np.linalg.norm(np.asarray(a) - np.asarray(b)) < 1e-5 * optax.global_norm(grads)
