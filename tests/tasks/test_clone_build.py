"""From a config to a cloned policy: what is built, refused, trained, and resumed bit for bit."""

import json
import shutil

import jax
import numpy as np
import pytest

import train as train_command
from roam_jax.model.sizes import step_flops
from roam_jax.sim.worlds import WORLDS
from roam_jax.tasks import clone_build
from roam_jax.tasks.build import build
from roam_jax.tasks.clone_build import clone_experiment, saved_specs
from roam_jax.tasks.experiment import Trainable
from roam_jax.train.metrics import read_metrics, reproducible
from roam_jax.train.workdir import Workdir
from tests.tasks.bodies import FORK, SPECS, clone_config
from tests.tasks.scenes import toy_config
from tests.test_commands import ROOT, command

TINY = str(ROOT / "configs/mujoco_bc.py:tiny")
# Rows for eight devices.
OPTIONS = [
    "--config.data.bodies=('arm2',)",
    "--config.data.demonstrations=2",
    "--config.train.batch_size=8",
    "--config.model.depth=1",
    "--config.topology.kind=dense",
]


def train(workdir, *options) -> int:
    arguments = ["--config", TINY, "--workdir", workdir, *OPTIONS, *options]
    return command(train_command.main, *arguments)


def losses(workdir):
    rows = read_metrics(workdir / "metrics.jsonl")
    return list(map(reproducible, rows))


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROAM_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def workdir(cache, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    assert train(folder) == 0
    return folder


def test_a_config_builds_without_demonstrations(monkeypatch):
    monkeypatch.setattr(clone_build, "ensure_demonstrations", lambda *_, **__: pytest.fail("made"))
    experiment = build(clone_config())
    assert isinstance(experiment, Trainable) and set(experiment.specs) == {"arm2", "arm3"}
    assert experiment.task.batch_spec["arm3/action"].shape == (2, 4, 3)
    modules = [body.module for body in experiment.model.bodies.values()]
    expected = 2 * sum(step_flops(module, rounds=2) for module in modules)
    assert experiment.flops_per_step(2) == expected
    own = clone_experiment(clone_config(), SPECS)
    assert own.specs == SPECS and own.task.batch_spec["fork/joints"].shape == (2, 4, 3)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"data.environment": "raech"}, "data.environment = 'raech'.*reach"),
        ({"data.bodies": ("arm5",)}, "data.bodies = 'arm5'"),
        ({"data.bodies": ("arm2", "arm2")}, "expected each body once"),
        ({"data.demonstrations": 0}, "data.demonstrations = 0: expected at least 1"),
        ({"data.chunk": 0}, "data.chunk = 0: expected at least 1"),
        ({"data.pixels": 20}, "data.pixels = 20: expected 0, or a multiple of 8"),
        ({"train.batch_size": 5}, r"train.batch_size = 5 .* 2 bodies \(nearest: 4 or 6\)"),
        ({"canvas.thought_cells": -1}, "canvas.thought_cells = -1"),
        ({"canvas.thought_cells": 0, "topology.kind": "hub_spoke"}, "canvas.thought_cells above 0"),
        ({"loss.balance": "gradnorm"}, "loss.balance = 'gradnorm': train.task = clone has no"),
        ({"data.scene": "contact"}, "data.scene = 'contact': train.task = clone has no backbone"),
        ({"backbone.path": "tiny"}, "backbone.path = 'tiny': train.task = clone has no backbone"),
        (
            {"loop.halting": "learned", "loop.rounds": 1},
            "loop.halting = 'learned' with loop.rounds",
        ),
    ],
)
def test_what_a_policy_cannot_heed_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        build(clone_config(**changes))


def test_other_tasks_refuse_what_cloning_alone_reads():
    config = toy_config()
    config.data.chunk = 4
    with pytest.raises(ValueError, match="data.chunk = 4: train.task = canvas clones no expert"):
        build(config)


def test_a_run_says_where_it_comes_from(workdir):
    config, provenance = Workdir(workdir).read()
    assert provenance["data"]["train"]["arm2"]["episodes"] == 2
    assert list(provenance["fingerprints"]) == ["demonstrations/arm2"]
    specs = saved_specs(provenance)
    assert specs == clone_experiment(clone_config(**{"data.bodies": ("arm2",)})).specs
    assert saved_specs({}) == {} and config["train"]["task"] == "clone"
    rows = losses(workdir)
    assert [row["step"] for row in rows] == [1, 2, 3, 4] and "loss/arm2" in rows[0]
    json.dumps(rows)


def test_a_run_resumes_bit_for_bit(workdir, tmp_path):
    resumed = tmp_path / "run"
    shutil.copytree(workdir, resumed)
    shutil.rmtree(resumed / "checkpoints" / "4")
    assert train(resumed) == 0
    assert losses(resumed) == losses(workdir)


def test_seeds_train_at_once(workdir, tmp_path):
    assert train(tmp_path / "seeds", "--seeds", "0:2") == 0
    rows = losses(tmp_path / "seeds")
    one, other = ([row["loss"] for row in rows if row["seed"] == seed] for seed in range(2))
    # Later ones may differ: Adam makes whole steps of gradients that are nearly 0 at the start.
    np.testing.assert_allclose(one[0], losses(workdir)[0]["loss"], rtol=1e-5)
    assert len(one) == len(other) == 4 and one[0] != other[0]


def test_walkers_and_their_topology_build():
    """Bodies of other trees share parameters too."""
    config = clone_config(**{"data.environment": "walk", "data.bodies": ()})
    config.train.batch_size = len(WORLDS["walk"])
    model = build(config).model
    assert list(model.bodies) == list(WORLDS["walk"]) and len(FORK) == 4
    assert "root" in model.first.module.layout.regions
    assert jax.eval_shape(model.init, jax.random.key(0))["cells"]["joint"]
