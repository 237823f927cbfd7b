"""Topologies and slices from a config: every config of the study, and losses on actions alone."""

import jax
import numpy as np
import pytest

from roam_jax.canvas.plan import compile_plan
from roam_jax.canvas.reach import reachable
from roam_jax.cli.arguments import load_config
from roam_jax.evaluate.parameters import stored_parameters
from roam_jax.tasks.build import build
from roam_jax.tasks.sketch import sketch
from roam_jax.train import names
from tests.tasks.models import first_batch, make_params

STUDY = (
    "causal",
    "central_thought",
    "cortical_hierarchy",
    "thalamic_relay",
    "multi_agent",
    "local_window",
    "local_plus_sparse_global",
    "random_matched",
)


@pytest.mark.parametrize("variant", ["", ":tiny"])
@pytest.mark.parametrize("name", STUDY)
def test_every_config_of_the_study_builds(name, variant):
    config = load_config(f"configs/topology/{name}.py{variant}")
    assert config.topology.kind == name
    made = sketch(config)
    module = made.model.module
    plan = compile_plan(module.layout, module.topology)
    assert plan.pairs < plan.query_cells**2  # it forbids something
    applications = {"blocks": module.config.num_layers, "rounds": module.graft_config.rounds}
    for region in module.layout.regions:  # nothing is there in vain
        assert reachable(module.topology, module.layout, region, "future_action", **applications)
    gates = [key for key in stored_parameters(made.task) if "/attn1/edges/" in key]
    # Three streams read the relay through a gate: actions by two regions, robot state by one.
    assert len(gates) == (3 if name == "thalamic_relay" else 0)
    assert all(names.matches(key, made.task.trainable) for key in gates)


def test_geometry_trains_beside_the_loop_and_does_not_decay(robot_config):
    robot_config.canvas.geometry = "relative"
    task = sketch(robot_config).task
    added = [key for key in stored_parameters(task) if "/attn1/geometry/" in key]
    assert added == ["blocks/attn1/geometry/amplitude"]
    assert names.matches(added[0], task.trainable) and names.matches(added[0], task.no_decay)


def test_a_loss_on_actions_alone_computes_what_reaches_them(robot_config):
    robot_config.data.encode_once = 0
    experiment = build(robot_config)
    params, batch, rng = make_params(experiment), first_batch(experiment), jax.random.key(7)
    robot_config.canvas.visual_weight = 0.0
    alone = build(robot_config)
    assert experiment.model.wanted is None and alone.model.wanted == ("actions",)

    def gradients(model):
        run = jax.value_and_grad(model.loss, has_aux=True)
        (_, metrics), grads = jax.jit(run, static_argnums=3)(params, batch, rng, 2)
        return metrics, grads

    _, metrics = jax.jit(experiment.model.loss, static_argnums=3)(params, batch, rng, 2)
    found, grads = gradients(alone.model)
    assert set(found) == {"loss/action"}
    np.testing.assert_allclose(found["loss/action"], metrics["loss/action"], rtol=2e-6)
    readout = names.flatten(grads)["proj_out/kernel"]
    np.testing.assert_array_equal(readout, 0)  # nothing of the velocity is left


def test_nothing_to_learn_is_refused(robot_config):
    robot_config.canvas.visual_weight = robot_config.canvas.action_weight = 0.0
    with pytest.raises(ValueError, match=r"nothing is to be learned.*canvas.action_weight"):
        sketch(robot_config)


def test_unknown_kinds_are_refused_by_key(robot_config):
    for section, leaf, value, near in (
        ("topology", "kind", "central_tought", "central_thought"),
        ("loop", "sharpening", "linaer", "linear"),
        ("canvas", "geometry", "rotery", "rotary"),
    ):
        config = robot_config.copy_and_resolve_references()
        config[section][leaf] = value
        with pytest.raises(ValueError, match=f"{section}.{leaf} = '{value}'.*{near}"):
            sketch(config)
