"""Traced FLOPs against a hand count of the transformer; bytes against sharded arrays."""

import dataclasses
import math

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from roam_jax.evaluate.flops import count_flops
from roam_jax.evaluate.parameters import stored_parameters
from roam_jax.evaluate.step_cost import compiled_bytes, device_bytes, mesh_sizes, trace_step
from roam_jax.tasks.sketch import sketch
from roam_jax.train import names
from roam_jax.train.optim import make_optimizer
from roam_jax.train.sharding import make_mesh
from roam_jax.train.state import abstract_params, partition
from tests.tiny_weights import TRANSFORMER
from tests.train import toy

BATCH = 4


@pytest.fixture(scope="module")
def plan(weights):
    from roam_jax.cli.arguments import load_config

    config = load_config("configs/bridge_3loop.py:tiny")
    config.backbone.path, config.train.batch_size = str(weights), BATCH
    return sketch(config)


@pytest.fixture(scope="module")
def stored(plan):
    return stored_parameters(plan.task)


def hand_count(rounds: int) -> dict[str, int]:
    """One pass through all blocks: a multiply-add is 2."""
    layers, width = TRANSFORMER.num_layers, TRANSFORMER.width
    cells = 1 + 3 * 16 + 4 + 4  # text, video, past and future actions
    tokens = 2 * layers * rounds * BATCH * cells
    return {
        "projections": tokens * 4 * width**2,
        "attention": tokens * 2 * cells * width,
        "feed-forward": tokens * 2 * 4 * width**2,
    }


@pytest.mark.parametrize("rounds", [1, 3])
def test_a_step_with_frozen_blocks(plan, stored, rounds):
    trace = trace_step(plan.encoded_task, stored, rounds=rounds)
    once = hand_count(rounds)
    # Computed again, because what the two layers add is kept: q, k and v of the four projections,
    # both attention products, the widening one of two feed-forward products.
    again = {"projections": 3 / 4, "attention": 1, "feed-forward": 1 / 2}
    # The gradient of activations; both factors of an attention product are activations.
    backward = {"projections": 1, "attention": 2, "feed-forward": 1}
    for part, count in once.items():
        assert trace.parts[part] == (1 + again[part] + backward[part]) * count
    assert trace.flops == sum(trace.parts.values())
    modulation = 2 * TRANSFORMER.num_layers * rounds * BATCH * 2 * 16 * 6 * TRANSFORMER.width
    recomputed = sum(again[part] * count for part, count in once.items())
    assert trace.passes["recomputed"] == recomputed + modulation


def test_weights_that_train_cost_another_product(plan, stored):
    task = dataclasses.replace(plan.encoded_task, trainable=(r"^(?!vae/)",))
    trace, once = trace_step(task, stored, rounds=1), hand_count(1)
    assert trace.parts["projections"] == (1 + 3 / 4 + 2) * once["projections"]
    assert trace.parts["feed-forward"] == (1 + 1 / 2 + 2) * once["feed-forward"]
    assert trace.parts["attention"] == (1 + 1 + 2) * once["attention"]


def test_the_forward_pass_within_a_step_is_the_loss_alone(plan, stored):
    task = plan.encoded_task
    batch = {n: jax.ShapeDtypeStruct(s.shape, s.dtype) for n, s in task.batch_spec.items()}
    jaxpr = jax.make_jaxpr(lambda p, b: task.loss(p, b, jax.random.key(0), 1))(
        names.unflatten(stored), batch
    )
    forward = trace_step(task, stored, rounds=1).passes["forward"]
    assert count_flops(jaxpr).total() == forward


def test_a_round_keeps_its_input_and_what_both_layers_add(plan, stored):
    kept = [trace_step(plan.encoded_task, stored, rounds=r).kept for r in (1, 2)]
    streams, loop_rows = BATCH * 57 * TRANSFORMER.width, 2 * TRANSFORMER.width + 1
    floats = 3 * streams + loop_rows
    round_bytes = 4 * TRANSFORMER.num_layers * floats
    np.testing.assert_allclose(np.diff(kept), round_bytes, rtol=2e-3)


@pytest.mark.parametrize("data, fsdp", [(8, 1), (2, 4)])
def test_bytes_of_a_device_are_those_of_its_shards(data, fsdp):
    task, config = toy.make_task(), toy.make_config()
    held = device_bytes(
        task,
        stored_parameters(task),
        rules=toy.RULES,
        axis_sizes={"data": data, "fsdp": fsdp},
    )
    params = abstract_params(task, make_mesh(data, fsdp), rules=toy.RULES)
    trained, frozen = partition(params, task.trainable)

    def elements(tree):
        return sum(math.prod(x.sharding.shard_shape(x.shape)) for x in jax.tree.leaves(tree))

    assert held["trained"] == held["gradients"] == 4 * elements(trained)
    assert held["frozen"] == 2 * elements(frozen)
    assert held["batch"] == sum(spec.nbytes for spec in task.batch_spec.values()) // 8
    tx, _ = make_optimizer(config.optim, steps=10, no_decay=task.no_decay)
    moments = [x for x in jax.tree.leaves(jax.eval_shape(tx.init, trained)) if x.ndim]
    assert sum(x.size for x in moments) == 2 * sum(x.size for x in jax.tree.leaves(trained))
    assert held["moments"] == 2 * held["trained"]


def test_a_batch_that_does_not_divide_is_refused():
    task = toy.make_task()
    with pytest.raises(ValueError, match="train.batch_size = 16 does not divide by .* = 3 devices"):
        device_bytes(
            task, stored_parameters(task), rules=toy.RULES, axis_sizes={"data": 3, "fsdp": 1}
        )


def test_the_rest_of_the_devices_counts_as_one():
    asked = {"data": -1, "fsdp": 8, "sequence": 1, "tensor": 2}
    assert mesh_sizes(ConfigDict(asked)) == {**asked, "data": 1}


def test_the_rows_of_a_batch_are_not_split_along_tensor_and_sequence(plan, stored):
    sizes = {"data": 1, "fsdp": 2, "sequence": 1, "tensor": 1}
    wide = {**sizes, "sequence": 2}
    two, more = (
        device_bytes(plan.task, stored, rules=plan.rules, axis_sizes=each) for each in (sizes, wide)
    )
    assert more["batch"] == two["batch"] > 0


def test_xla_is_given_what_the_step_has():
    task, config = toy.make_task(), toy.make_config()
    memory = compiled_bytes(task, config, rules=toy.RULES, rounds=2)
    held = device_bytes(
        task, stored_parameters(task), rules=toy.RULES, axis_sizes={"data": 1, "fsdp": 1}
    )
    expected = sum(held.values()) - held["gradients"]
    assert memory["arguments"] == pytest.approx(expected, abs=64)  # step counters beside them
    assert memory["temporaries"] > 0
