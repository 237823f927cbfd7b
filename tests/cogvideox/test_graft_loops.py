"""Loops in full on a graft: still the backbone at the start, exits, cells that stop, regions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from roam_jax.cogvideox.block import Block
from roam_jax.cogvideox.embedding import condition
from roam_jax.cogvideox.graft_config import GraftConfig
from tests.cogvideox.diffusers_models import relative_error
from tests.cogvideox.graft_models import (
    ALL_REGIONS,
    CONFIG,
    backbone_output,
    make_graft,
    make_inputs,
    make_params,
    run,
)

# Logits of stopping that give each of so many rounds an equal share.
EQUAL_SHARES = {3: [-np.log(2), 0, 0], 4: [-np.log(3), -np.log(2), 0, 0]}


def moved(model, inputs):
    """Parameters with loops that do something, and shares of rounds about equal."""
    params = make_params(model, inputs)
    rng = np.random.default_rng(3)
    rows = params["blocks"]["loop"]
    params["blocks"]["loop"] = {
        name: jnp.asarray(0.2 * rng.standard_normal(x.shape), jnp.float32)
        for name, x in rows.items()
    }
    if "halt" in rows:
        halt = jnp.asarray(EQUAL_SHARES[model.graft_config.rounds], jnp.float32)
        params["blocks"]["loop"]["halt"] = jnp.tile(halt, (CONFIG.num_layers, 1))
    return params


def apply(model, **options):
    """A compiled call of the model; `options` are static."""
    return jax.jit(
        lambda params, inputs, **arrays: model.apply(
            {"params": params}, **inputs, **arrays, **options
        )
    )


@pytest.mark.parametrize("reinject, backprop", [("scalar", 0), ("channel", 2)])
def test_equals_the_backbone_at_the_start_whatever_the_loop_has(reinject, backprop):
    model = make_graft(
        regions=ALL_REGIONS, reinject=reinject, halting="learned", backprop_rounds=backprop
    )
    inputs = make_inputs(model)
    params = make_params(model, inputs)
    width = () if reinject == "scalar" else (CONFIG.width,)
    assert params["blocks"]["loop"]["reinject"].shape == (CONFIG.num_layers, 4, *width)
    outputs, _ = run(model, params, inputs, rounds=4)
    assert relative_error(outputs["velocity"], backbone_output(params, inputs)) <= 1e-6


def test_an_exit_is_a_smaller_number_of_rounds():
    model = make_graft(regions=ALL_REGIONS, rounds=3, reinject="scalar")
    inputs = make_inputs(model)
    params = moved(model, inputs)
    leave = apply(model, rounds=3, wanted=("velocity", "actions"))
    found = []
    for number in (1, 3):
        outputs, _ = leave(params, inputs, exit=jnp.int32(number))
        expected, _ = apply(model, rounds=number)(params, inputs)
        for name in ("velocity", "actions"):
            assert relative_error(outputs[name], expected[name]) < 1e-6
        found.append(outputs["velocity"])
    assert relative_error(*found) > 1e-3
    assert leave._cache_size() == 1


def test_cells_that_stop_at_a_threshold_are_those_of_fewer_rounds():
    """With equal shares half of every cell has stopped after two of four rounds."""
    model = make_graft(regions=ALL_REGIONS, halting="learned")
    inputs = make_inputs(model)
    params = moved(model, inputs)
    zeros = jnp.zeros_like(params["blocks"]["loop"]["halt_token"])
    params["blocks"]["loop"]["halt_token"] = zeros
    stopped, measures = apply(model, rounds=4, threshold=0.45)(params, inputs)
    expected, smooth = apply(model, rounds=2)(params, inputs)
    np.testing.assert_allclose(smooth["running"]["all"], np.tile([1, 0.75], (3, 1)), rtol=1e-6)
    assert relative_error(stopped["velocity"], expected["velocity"]) < 1e-6
    assert relative_error(stopped["actions"], expected["actions"]) < 1e-6
    for region in (*model.layout.regions, "all"):
        running = measures["running"][region]
        np.testing.assert_allclose(running, np.tile([1, 1, 0, 0], (3, 1)), rtol=1e-6)


def test_what_runs_of_all_cells_is_the_mean_over_them_also_where_some_are_left_out():
    model = make_graft(regions=ALL_REGIONS, rounds=3, halting="learned", reinject="channel")
    inputs = make_inputs(model)
    params = moved(model, inputs)
    whole, measures = apply(model, rounds=3)(params, inputs)
    sizes = {name: model.layout.region_numel(name) for name in model.layout.regions}
    assert set(measures["running"]) == {*sizes, "all"}
    assert set(measures["residual"]) == set(sizes)
    mean = sum(sizes[r] * np.asarray(measures["running"][r]) for r in sizes) / sum(sizes.values())
    np.testing.assert_allclose(measures["running"]["all"], mean, rtol=1e-6)
    assert np.ptp([measures["running"][r][0, 1] for r in sizes]) > 1e-4

    @functools.partial(jax.jit, static_argnames="wanted")
    def rounds_used(loop, wanted):
        blocks = {**params["blocks"], "loop": loop}
        outputs, measures = model.apply(
            {"params": {**params, "blocks": blocks}}, **inputs, rounds=3, wanted=wanted
        )
        running = measures["running"]
        return running["all"].sum(axis=1).mean(), (outputs, running)

    loop = params["blocks"]["loop"]
    value = jax.value_and_grad(rounds_used, has_aux=True)
    (_, (outputs, running)), grads = value(loop, ("proprio",))
    assert relative_error(outputs["proprio"], whole["proprio"]) < 1e-6
    # In the last round the cells of the future state alone are left.
    last = running["all"][-1, -1]
    np.testing.assert_allclose(last, measures["running"]["future_proprio"][-1, -1], rtol=1e-5)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(grads))
    # The last of the rounds stops all whatever its chance is; the others' chances count.
    assert (np.asarray(grads["halt"])[:, :2] < 0).all()
    np.testing.assert_array_equal(np.asarray(grads["halt"])[:, 2], 0)


def test_round_measures_are_of_each_region():
    """Residuals of the first block's first round, from the block itself."""
    model = make_graft(regions=ALL_REGIONS, rounds=2)
    inputs = make_inputs(model)
    params = make_params(model, inputs)
    _, measures = run(model, params, inputs, rounds=2)

    def first_cells(model, latents, text, timesteps, data):
        text, video = model.patch_embed(latents, text)
        cells = model.graft.cells(data, None, batch=2)
        temb, _ = condition(model.time_embedding, timesteps, np.zeros(0, np.int32))
        return text, jnp.concatenate([video, *cells], axis=1), temb

    @jax.jit
    def before_and_after(params, inputs):
        text, video, temb = model.apply({"params": params}, **inputs, method=first_cells)
        weights = {n: tree for n, tree in params["blocks"].items() if n != "loop"}
        weights = jax.tree.map(lambda stack: stack[0], weights)
        passes = {"rounds": 1, "kept": None, "shards": 1, "method": "_passes"}
        cells = model.apply({"params": params}, None, **passes).cells
        out = Block(CONFIG).apply({"params": weights}, text, video, temb, cells)
        return jnp.concatenate([text, video], axis=1), jnp.concatenate(out, axis=1)

    state, out = (np.asarray(x, np.float64) for x in before_and_after(params, inputs))
    begin = 0
    for region in model.layout.regions:
        place = slice(begin, begin := begin + model.layout.region_numel(region))
        h, b = state[:, place], out[:, place]
        residual = np.linalg.norm(b - h) / np.linalg.norm(h)
        cosine = np.sum(b * h) / np.linalg.norm(b) / np.linalg.norm(h)
        np.testing.assert_allclose(measures["residual"][region][0, 0], residual, rtol=1e-4)
        np.testing.assert_allclose(measures["cosine"][region][0, 0], cosine, rtol=1e-5)
        # Identity gates are closed at first.
        gated = measures["gated_step"][region]
        np.testing.assert_allclose(gated[0, 0], residual, rtol=1e-4)
        np.testing.assert_array_equal(gated[:, 1], 0)
    assert begin == state.shape[1]


def test_a_graft_does_not_loop_its_whole_stack():
    with pytest.raises(ValueError, match="loop.over = 'stack' with train.task = 'graft'"):
        GraftConfig(rounds=2, over="stack")
