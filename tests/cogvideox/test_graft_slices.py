"""Where only some outputs are wanted: the same numbers, fewer cells."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from roam_jax.cogvideox.graft_passes import plan_passes
from roam_jax.cogvideox.graft_topology import TopologyOptions, make_topology
from roam_jax.evaluate.flops import count_flops
from tests.cogvideox.diffusers_models import relative_error
from tests.cogvideox.graft_models import ALL_REGIONS, CONFIG, make_graft, make_inputs, make_params


def moved(model, inputs):
    """Parameters with loops that do something."""
    params = make_params(model, inputs)
    rng = np.random.default_rng(3)
    params["blocks"]["loop"] = jax.tree.map(
        lambda x: jnp.asarray(0.3 * rng.standard_normal(x.shape), jnp.float32),
        params["blocks"]["loop"],
    )
    return params


def outputs_and_gradients(model, params, inputs, output, **options):
    """An output, and the gradient of its squares by all parameters."""

    def loss(params):
        outputs, _ = model.apply({"params": params}, **inputs, rounds=2, **options)
        return jnp.sum(jnp.square(outputs[output])), outputs

    (_, outputs), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    return outputs, grads


@pytest.mark.parametrize(
    "kind, output, frame_times",
    [
        ("dense", "actions", False),
        ("central_thought", "actions", True),
        ("multi_agent", "velocity", False),
        ("isolated", "proprio", True),
    ],
)
def test_what_is_wanted_is_the_same(kind, output, frame_times):
    model = make_graft(
        regions=ALL_REGIONS, geometry="relative", sharpening="linear", final_inverse_temperature=2.0
    )
    topology = make_topology(model.layout, TopologyOptions(kind))
    model = dataclasses.replace(model, topology=topology)
    inputs = make_inputs(model)
    if frame_times:
        inputs["timesteps"] = jnp.array([[0, 0, 999, 999], [0, 0, 250, 250]])
    params = moved(model, inputs)
    whole, expected = outputs_and_gradients(model, params, inputs, output)
    sliced, found = outputs_and_gradients(model, params, inputs, output, wanted=(output,))
    assert set(sliced) == {output} and len(whole) > 1
    assert relative_error(sliced[output], whole[output]) < 2e-6
    # Of the largest gradient: that of a key's bias, say, is 0 but for rounding.
    size = max(np.linalg.norm(x) for x in jax.tree.leaves(expected))
    errors = jax.tree.map(lambda a, b: np.linalg.norm(a - b) / size, found, expected)
    assert max(jax.tree.leaves(errors)) < 2e-6


def test_fewer_cells_are_computed_and_fewer_products():
    model = make_graft(regions=ALL_REGIONS)
    inputs = make_inputs(model)
    params = jax.eval_shape(lambda: make_params(model, inputs))

    def flops(**options):
        def run(params, inputs):
            return model.apply({"params": params}, **inputs, rounds=2, **options)

        return count_flops(jax.make_jaxpr(run)(params, inputs)).total()

    assert flops(wanted=("actions",)) < flops(wanted=("actions", "velocity")) < flops()


def test_passes_shrink_at_the_end_alone():
    model = make_graft(regions=ALL_REGIONS)
    passes = plan_passes(
        model.layout, model.topology, blocks=CONFIG.num_layers, rounds=2, wanted=("future_action",)
    )
    # Actions read everything in the last application; before that everything is read.
    assert passes.scanned == CONFIG.num_layers - 1
    ((last,),) = passes.tails
    assert len(passes.start) == sum(map(model.layout.region_numel, model.layout.regions))
    assert len(passes.end) == len(last.kept) == model.layout.region_numel("future_action")
    assert last.plan is None  # each action reads every cell


def test_a_stream_that_nobody_wants_is_never_computed():
    model = make_graft(regions=ALL_REGIONS)
    passes = plan_passes(
        model.layout, model.topology, blocks=CONFIG.num_layers, rounds=2, wanted=("visual",)
    )
    own = model.layout.region_numel("text") + model.layout.region_numel("visual")
    np.testing.assert_array_equal(passes.start, np.arange(own))
    assert passes.cells.plan is None  # the backbone alone, all to all
    assert passes.scanned == CONFIG.num_layers - 1


def test_a_slice_of_nothing_or_of_the_unknown_is_refused():
    model = make_graft()
    inputs = make_inputs(model)
    params = jax.eval_shape(lambda: make_params(model, inputs))

    def refused(message, *wanted):
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(
                lambda p, x: model.apply({"params": p}, **x, rounds=1, wanted=wanted),
                params,
                inputs,
            )

    refused(r"wanted = \(\): expected at least one of velocity, actions")
    refused("wanted = 'action'.*did you mean 'actions'", "action")
