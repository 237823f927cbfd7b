"""Parameters and FLOPs in closed form are those of real trees and traced steps."""

import jax
import pytest

from roam_jax.evaluate.parameters import stored_parameters
from roam_jax.evaluate.step_cost import trace_step
from roam_jax.model.sizes import (
    block_parameters,
    check_sizes,
    forward_flops,
    is_counted,
    model_parameters,
    narrowed_width,
    step_flops,
)
from roam_jax.tasks.canvas_task import scene_task
from roam_jax.tasks.scene_build import scene_experiment
from roam_jax.train import names
from tests.tasks.scenes import small_model, small_module, toy_config

PARTS = {"cells": "encoders", "norm_out": "norm", "decoders": "decoders"}


def counted(model) -> dict[str, int]:
    """Parameters of the real tree, by part."""
    found = dict.fromkeys(("encoders", "blocks", "loop", "norm", "decoders"), 0)
    tree = names.flatten(jax.eval_shape(model.init, jax.random.key(0)))
    for name, leaf in tree.items():
        first, *rest = name.split("/")
        found["loop" if rest[0] == "loop" else PARTS.get(first, "blocks")] += leaf.size
    return found


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"over": "stack", "gate_scope": "token", "reinject": "scalar"},
        {"gate": "off", "reinject": "channel", "halting": "learned", "rounds": 3},
    ],
)
def test_parameters_are_those_of_the_tree(options):
    model = small_model(module=small_module(**options))
    assert model_parameters(model.module) == counted(model)


@pytest.mark.parametrize(
    "topology, geometry", [("thalamic_relay", "none"), ("dense", "rotary"), ("dense", "relative")]
)
def test_edges_and_positions_that_learn_are_counted(topology, geometry):
    model = small_model(module=small_module(topology=topology).clone(geometry=geometry))
    assert model_parameters(model.module) == counted(model)


@pytest.mark.parametrize("variant", ["", "distinct", "narrow"])
def test_the_variants_of_the_toy(variant):
    model = scene_experiment(toy_config(variant)).model
    assert model_parameters(model.module) == counted(model)


def traced(model, rounds):
    task = scene_task(model, batch_size=2)
    return trace_step(task, stored_parameters(task), rounds=rounds)


@pytest.mark.parametrize(
    "rounds, geometry, options",
    [
        (2, "relative", {"topology": "dense"}),
        (3, "none", {"over": "stack", "rounds": 3, "self_distillation": True}),
        (3, "rotary", {"topology": "dense", "rounds": 3, "backprop_rounds": 2}),
    ],
)
def test_flops_of_a_step_are_those_of_its_trace(rounds, geometry, options):
    module = small_module(**options).clone(remat=False, geometry=geometry)
    model = small_model(module=module)
    trace = traced(model, rounds)
    assert 2 * step_flops(module, rounds=rounds) == trace.flops
    if not module.options.self_distillation:
        assert 2 * sum(forward_flops(module, rounds=rounds).values()) == trace.passes["forward"]


def test_a_second_pass_of_a_student_costs_half_the_rounds_on_average():
    plain = small_module(topology="dense", rounds=4)
    taught = small_module(topology="dense", rounds=4, self_distillation=True)
    flops = forward_flops(plain, rounds=4)
    more = 3 * flops["decoders"] + 3 * flops["blocks"] * (1 + 2 + 3) / 3 / 4
    assert step_flops(taught, rounds=4) == step_flops(plain, rounds=4) + more


def test_equal_flops_and_equal_parameters():
    recurrent = scene_experiment(toy_config("")).model.module
    distinct = scene_experiment(toy_config("distinct")).model.module
    narrow = scene_experiment(toy_config("narrow")).model.module
    assert step_flops(recurrent, rounds=4) == step_flops(distinct, rounds=1)
    blocks = [model_parameters(module)["blocks"] for module in (recurrent, narrow)]
    assert narrow.layout.d_model == 32 and blocks == [149_952, 152_448]


def test_the_narrowed_width_comes_nearest():
    assert block_parameters(64) == 12 * 64**2 + 13 * 64
    wanted = 3 * block_parameters(64)
    width = narrowed_width(width=64, depth=3, heads=4, to_depth=12)
    for other in (width - 8, width + 8):
        assert abs(12 * block_parameters(width) - wanted) < abs(
            12 * block_parameters(other) - wanted
        )
    assert narrowed_width(width=64, depth=3, heads=4, to_depth=3) == 64
    with pytest.raises(ValueError, match="2 blocks: expected at least the 3"):
        narrowed_width(width=64, depth=3, heads=4, to_depth=2)


@pytest.mark.parametrize(
    "sizes, message",
    [
        ((64, 0, 4), "model.depth = 0: expected at least 1"),
        ((64, 3, 0), "model.heads = 0: expected at least 1"),
        ((60, 3, 4), r"model.width = 60: .*multiple of 8 .*nearest: 56 or 64"),
        ((40, 3, 16), r"model.width = 40: .*model.heads = 16 \(nearest: 32 or 48"),
        ((0, 3, 4), "model.width = 0"),
    ],
)
def test_impossible_sizes_are_refused(sizes, message):
    width, depth, heads = sizes
    with pytest.raises(ValueError, match=message):
        check_sizes(width=width, depth=depth, heads=heads)


def test_what_is_not_counted_is_refused():
    module = small_module(topology="thalamic_relay")
    assert not is_counted(module) and is_counted(small_module())
    with pytest.raises(ValueError, match="edges of kind gated: counted is softmax attention"):
        forward_flops(module, rounds=2)
