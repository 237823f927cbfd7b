"""The graft: equal to its backbone at initialisation, gradients of its loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.cogvideox.diffusers_models import relative_error
from tests.cogvideox.graft_models import (
    ALL_REGIONS,
    CONFIG,
    LATENT,
    TIME,
    VIEWS,
    backbone_output,
    make_graft,
    make_inputs,
    make_params,
    run,
)


@pytest.mark.parametrize(
    "rounds, scope", [(1, "round"), (2, "round"), (3, "round"), (4, "round"), (2, "token")]
)
def test_equals_the_backbone_at_initialisation_with_all_regions(rounds, scope):
    model = make_graft(regions={**ALL_REGIONS, **VIEWS}, gate_scope=scope)
    inputs = make_inputs(model)
    params = make_params(model, inputs)
    outputs, _ = run(model, params, inputs, rounds=rounds)
    assert relative_error(outputs["velocity"], backbone_output(params, inputs)) <= 1e-6
    assert outputs["actions"].shape == (2, TIME.chunk, 7)
    assert outputs["proprio"].shape == (2, TIME.latents - TIME.t_current, 7)
    assert outputs["reward"].shape == (2, TIME.latents - TIME.t_current, 1)
    assert outputs["camera_velocity"].shape == (2, 2, TIME.latents - TIME.t_current, *LATENT)


@pytest.mark.exact
@pytest.mark.parametrize("rounds", [1, 3])
def test_equals_the_backbone_bitwise_without_new_cells(rounds):
    model = make_graft(decoder="pooled")
    inputs = make_inputs(model)
    params = make_params(model, inputs)
    outputs, _ = run(model, params, inputs, rounds=rounds)
    np.testing.assert_array_equal(outputs["velocity"], backbone_output(params, inputs))
    assert outputs["actions"].shape == (2, 1, 7)


def test_backbone_reading_new_cells_gives_the_equality_up_by_a_bounded_change():
    model = make_graft()
    inputs = make_inputs(model)
    params = make_params(model, inputs)
    base = backbone_output(params, inputs)
    changes = []
    for weight in (1e-4, 1e-2, 1.0):
        outputs, _ = run(make_graft(reads_new=weight), params, inputs)
        changes.append(relative_error(outputs["velocity"], base))
    assert 0 < changes[0] < changes[1] < changes[2]
    assert changes[0] < 1e-3


def loop_gradients(model, params, inputs, rounds):
    def loss(loop):
        blocks = {**params["blocks"], "loop": loop}
        outputs, _ = model.apply({"params": {**params, "blocks": blocks}}, **inputs, rounds=rounds)
        return jnp.sum(outputs["velocity"] ** 2)

    return jax.jit(jax.grad(loss))(params["blocks"]["loop"])


def test_gradients_of_the_loop_at_the_start_and_after_the_gates_moved():
    model = make_graft(rounds=3)
    inputs = make_inputs(model)
    params = make_params(model, inputs)
    start = loop_gradients(model, params, inputs, 3)
    assert (np.abs(start["gate"]) > 0).all()
    for stream in ("text", "video"):
        assert (np.linalg.norm(start[stream][:, 0], axis=-1) > 0).sum() >= CONFIG.num_layers - 1
        np.testing.assert_array_equal(start[stream][:, 1:], 0)
    params["blocks"]["loop"]["gate"] = params["blocks"]["loop"]["gate"] + 0.1
    moved = loop_gradients(model, params, inputs, 3)
    assert (np.linalg.norm(moved["video"], axis=-1) > 0).all()


def test_gradient_of_a_gate_equals_a_finite_difference():
    model = make_graft(rounds=2)
    inputs = make_inputs(model, batch=1)
    params = make_params(model, inputs)
    exact = loop_gradients(model, params, inputs, 2)["gate"][1, 1]

    @jax.jit
    def outputs(shift):
        gate = params["blocks"]["loop"]["gate"].at[1, 1].add(shift)
        loop = {**params["blocks"]["loop"], "gate": gate}
        moved = {**params, "blocks": {**params["blocks"], "loop": loop}}
        return model.apply({"params": moved}, **inputs, rounds=2)[0]["velocity"]

    def value(shift):
        return np.sum(np.asarray(outputs(shift), np.float64) ** 2)

    assert abs((value(1e-2) - value(-1e-2)) / 2e-2 / exact - 1) < 2e-2


def test_sigmoid_gate_is_the_published_rule():
    """One round, gates at zero: halfway between the state and the block's output."""
    model, closed = make_graft(gate="sigmoid"), make_graft(gate="identity")
    inputs = make_inputs(model)
    params = make_params(model, inputs)
    half = params["blocks"]["loop"]["gate"] - 0.5  # identity's first round then steps by 0.5
    same = {**params["blocks"], "loop": {**params["blocks"]["loop"], "gate": half}}
    ours, _ = run(model, params, inputs, rounds=1)
    expected, _ = run(closed, {**params, "blocks": same}, inputs)
    assert relative_error(ours["velocity"], expected["velocity"]) < 1e-6
