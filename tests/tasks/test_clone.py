"""Cloned policies: one set of parameters, exact masks, bodies that do not meet, no future."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from roam_jax.data.demonstration_batches import Chunks
from roam_jax.tasks.clone import fields_of
from roam_jax.tasks.clone_canvas import body_layout, cell_values, joint_numbers, tree_columns
from roam_jax.train import names
from tests.tasks.bodies import FORK, SPECS, noise, small_policy, spec_of
from tests.tasks.scenes import random_like

ROWS = np.array([0, 3, 4, 6, 11])


def rows_of(body, chunk=4):
    return Chunks(noise()[body], chunk=chunk)[ROWS]


def batch_of(*bodies):
    return {f"{b}/{name}": x for b in bodies for name, x in rows_of(b).items()}


def pick(specs, *bodies):
    return {body: specs[body] for body in bodies}


@pytest.fixture(scope="module")
def policy():
    return small_policy()


@pytest.fixture(scope="module")
def params(policy):
    return random_like(jax.eval_shape(policy.init, jax.random.key(0)))


@pytest.fixture(scope="module")
def run(policy, params):
    """From a batch to loss, (metrics, body -> its actions and measures)."""

    def loss(params, batch):
        total, metrics = policy.loss(params, batch, jax.random.key(0), 2)
        seen = {body: fields_of(batch, body) for body in policy.bodies}
        return total, (
            metrics,
            {b: policy.predict(params, b, seen[b], rounds=2) for b in policy.bodies},
        )

    step = jax.jit(loss)
    return lambda batch: step(params, batch)


def test_joints_share_parameters_whatever_the_body(policy):
    shapes = names.flatten(jax.eval_shape(policy.init, jax.random.key(0)))
    owners = {name.split("/")[1] for name in shapes if name.startswith(("cells/", "decoders/"))}
    assert owners == {"joint", "action", "tip", "goal", "thought"}
    assert shapes["cells/action/query"].shape == (1, 16)
    assert shapes["decoders/action/out/kernel"].shape == (32, 4)
    for body in policy.bodies.values():
        alone = names.flatten(jax.eval_shape(body.init, jax.random.key(0)))
        assert {n: x.shape for n, x in alone.items()} == {n: x.shape for n, x in shapes.items()}


def test_bodies_that_cannot_share_are_refused():
    other = SPECS | {"fork": spec_of(FORK, goals=1)}
    streams = other["fork"].streams
    other["fork"] = dataclasses.replace(other["fork"], streams=streams[:2])
    with pytest.raises(ValueError, match="'chain' and 'fork' cannot share parameters: cells/goal"):
        small_policy(other)
    with pytest.raises(ValueError, match="cannot share parameters: blocks/attn/edges/gate_"):
        small_policy(SPECS, **{"topology.kind": "thalamic_relay"})


def test_a_body_is_the_same_beside_another(run, params):
    """Its actions, joint by joint, and its loss."""
    alone = small_policy(pick(SPECS, "fork"))

    @jax.jit
    def run_alone(params, batch):
        _, metrics = alone.loss(params, batch, jax.random.key(0), 2)
        return alone.predict(params, "fork", fields_of(batch, "fork"), rounds=2)[0], metrics

    expected, metrics = run_alone(params, batch_of("fork"))
    total, (both, predictions) = run(batch_of("chain", "fork"))
    found, info = predictions["fork"]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert found.shape == (5, 4, 4) and set(info["residual"]) >= {"joint", "action", "goal"}
    np.testing.assert_allclose(metrics["loss/fork"], both["loss/fork"], rtol=1e-5)
    np.testing.assert_allclose(total, np.mean([both["loss/chain"], both["loss/fork"]]), rtol=1e-6)


def test_nothing_behind_the_end_of_an_episode_counts(policy, run):
    batch = batch_of("chain", "fork")
    loss, (metrics, predictions) = run(batch)
    for body in policy.bodies:
        rows = rows_of(body)
        counted = np.square(predictions[body][0] - rows["action"])[rows["mask"]]
        assert 0 < rows["mask"].mean() < 1
        np.testing.assert_allclose(metrics[f"loss/{body}"], counted.mean(), rtol=1e-5)
        batch[f"{body}/action"] = np.where(rows["mask"][..., None], rows["action"], 1e9)
    batch = {
        name: np.asarray(x, batch_of("chain", "fork")[name].dtype) for name, x in batch.items()
    }
    assert float(run(batch)[0]) == float(loss)


def test_actions_are_no_input(policy):
    """What enters the canvas is what is observed now."""
    for name, body in policy.bodies.items():
        rows = rows_of(name)
        cells = body.observed(rows) | body.targets(jnp.asarray(rows["action"]))
        entered = body.noise(cells, {}, {}).data
        assert set(entered) == set(cells) - set(body.actions)
        later = body.observed(rows | {"action": rows["action"] + 1})
        for region in entered:
            np.testing.assert_array_equal(entered[region], later[region])


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({"loop.halting": "learned"}, {"loss/ponder", "rounds_used"}),
        (
            {"loop.over": "stack", "loop.self_distillation": True},
            {"distillation/fork"},
        ),
        (
            {"topology.kind": "dense", "canvas.geometry": "relative", "model.decoder": "linear"},
            set(),
        ),
    ],
)
def test_loops_of_the_config_run(changes, expected):
    policy = small_policy(pick(SPECS, "fork"), **changes)
    params = jax.eval_shape(policy.init, jax.random.key(0))
    _, metrics = jax.eval_shape(
        lambda p, b: policy.loss(p, b, jax.random.key(0), 2), params, batch_of("fork")
    )
    assert set(metrics) == {"loss/fork"} | expected


def test_wrong_bodies_and_observations_are_refused(policy, params):
    rows = rows_of("chain")
    with pytest.raises(ValueError, match="body = 'chian'.*chain"):
        policy.predict(params, "chian", rows, rounds=2)
    with pytest.raises(
        ValueError, match=r"of reach/fork: joints is \(2, 3\), expected \(B, 4, 3\)"
    ):
        policy.predict(params, "fork", rows, rounds=2)
    del rows["goal"]
    with pytest.raises(ValueError, match="goal is missing, expected"):
        policy.predict(params, "chain", rows, rounds=2)


def test_a_joint_lies_at_its_depth_and_branch():
    assert tree_columns(FORK) == (0, 0, 0, 1) and FORK.depths == (0, 1, 2, 1)
    layout = body_layout(spec_of(FORK, goals=3), width=16, thought_cells=2)
    bounds = {name: region.bounds for name, region in layout.regions.items()}
    assert bounds["joint_right"] == (0, 1, 1, 2, 1, 2)
    assert bounds["action_right"] == (1, 2, 1, 2, 1, 2)
    assert bounds["goal"] == (0, 1, 4, 5, 0, 3) and bounds["thought"] == (0, 1, 5, 6, 0, 2)
    assert {n for n, r in layout.regions.items() if r.is_output} == {
        f"action_{name}" for name in FORK.joint_names
    }
    shown = body_layout(SPECS["fork"], width=16, pixels=16)
    assert "goal" not in shown.regions and shown.regions["pixels"].bounds == (0, 1, 4, 6, 0, 2)
    with pytest.raises(ValueError, match="data.pixels = 12: expected 0, or a multiple of 8"):
        body_layout(SPECS["chain"], width=16, pixels=12)


def test_cells_hold_scaled_numbers_and_pixels():
    spec = SPECS["chain"]
    joints = np.array([[[0.25, 1.0, 0.1], [0.5, -2.0, 0.0]]], np.float32)
    found = np.asarray(joint_numbers(spec, jnp.asarray(joints)))[0]
    np.testing.assert_allclose(found[0, :4], [0.25, 0.5, 0.2, 0.0], atol=1e-6)
    np.testing.assert_allclose(found[1, 3:6], [0.0, np.sin(0.5), np.cos(0.5)], atol=1e-6)
    np.testing.assert_allclose(found[1, 6:], [1, -1, 2, 1.2, 0.25], atol=1e-6)
    frames = np.random.default_rng(0).integers(0, 256, (1, 16, 16, 3), np.uint8)
    seen = {"joints": joints, "tip": np.ones((1, 1, 2), np.float32)}
    seen |= {"goal": np.ones((1, 1, 2), np.float32), "pixels": frames}
    seen["tip"] = np.array([[[0.5, 1.5]]], np.float32)
    cells = cell_values(spec, seen, pixels=False)
    np.testing.assert_allclose(cells["tip"], [[[1.0, 3.0]]])
    np.testing.assert_allclose(cells["goal"], [[[2.0, 2.0, 5.0, -5.0]]], rtol=1e-5)
    assert cells["joint_elbow"].shape == (1, 1, 11)
    cells = cell_values(spec, seen, pixels=True)
    assert "goal" not in cells
    patch = frames[0, :8, 8:].reshape(-1) / 127.5 - 1
    np.testing.assert_allclose(cells["pixels"][0, 1], patch, atol=1e-6)
